// Lists of a text, a bar and a number: logits, enrichment, neighbours, features of a token.

function barRow(view, item, largest) {
  const row = item.feature === undefined ? make("div", "bar-row") : featureLink(view, item.feature, "bar-row")
  const fill = make("div", item.value < 0 ? "bar negative" : "bar")
  fill.style.setProperty("--w", `${(100 * Math.abs(item.value)) / largest}%`)
  row.append(fill)
  if (item.feature !== undefined) row.append(make("span", "feature-id", item.feature))
  const words = item.feature !== undefined || view.data.words
  row.append(isolated(words ? "bar-label" : "chip", item.text), make("span", "spring"))
  for (const extra of item.extra ?? []) row.append(make("span", "bar-extra", extra))
  row.append(make("span", "bar-value", item.shown ?? short(item.value)))
  if (item.note) row.title = item.note
  return row
}

function drawBars(view) {
  const list = make("div", "bars")
  if (view.data.head) {
    const head = make("div", "bars-head")
    view.data.head.forEach((text, i) => head.append(make("span", i === 0 ? "first" : "", text)))
    list.append(head)
  }
  const sizes = view.data.items.map((item) => Math.abs(item.value))
  const largest = view.data.largest ?? Math.max(...sizes, 1e-30)
  for (const item of view.data.items) list.append(barRow(view, item, largest))
  if (view.data.items.length === 0) list.append(make("div", "empty", view.data.empty ?? "None."))
  return list
}

// Names and values: [name, value, hint].
function drawFacts(view) {
  const list = make("dl", view.data.rows ? "facts rows" : "facts")
  for (const [name, value, hint] of view.data.items) {
    const cell = make("div", "fact")
    if (hint) cell.title = hint
    cell.append(make("dt", "", name), make("dd", "", value))
    list.append(cell)
  }
  return list
}
