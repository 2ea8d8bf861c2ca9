// Features by tokens: one cell per pair, coloured by the value.

function heatCell(view, item, column) {
  const cell = make("td", "cell")
  const found = item.at[column]
  if (!found) return cell
  const [value, colour, notes] = found
  cell.style.setProperty("--a", (0.08 + 0.92 * colour).toFixed(3))
  cell.classList.add("fires")
  const fill = (box) => {
    const head = make("div", "tip-token")
    addPieces(head, view.data.tokens.text[column], false)
    box.append(head)
    const list = make("dl", "tip-facts")
    list.append(make("dt", "", "feature"), make("dd", "", item.feature))
    list.append(make("dt", "", "activation"), make("dd", "", short(value)))
    for (const [name, text] of notes ?? []) list.append(make("dt", "", name), make("dd", "", text))
    box.append(list)
  }
  cell.addEventListener("pointerover", () => view.tip.show(cell, fill))
  cell.addEventListener("pointerleave", () => view.tip.hide())
  onPress(cell, () => view.send({ kind: "token", token: column }))
  return cell
}

function drawHeat(view) {
  const scroller = make("div", "scroller")
  const table = scroller.appendChild(make("table", "heat"))
  const head = table.createTHead().insertRow()
  head.append(make("th", "corner", "feature"))
  const columns = view.data.tokens.text.map((_, i) => i).slice(view.data.first ?? 0)
  for (const column of columns) {
    const cell = head.appendChild(make("th", column === view.data.selected ? "turned selected" : "turned"))
    cell.scope = "col"
    cell.append(isolated("", view.data.tokens.text[column]))
  }
  const body = table.createTBody()
  for (const item of view.data.items) {
    const row = body.insertRow()
    const name = row.appendChild(make("th", "name"))
    name.scope = "row"
    const anchor = name.appendChild(featureLink(view, item.feature, "label-link"))
    anchor.append(make("span", "feature-id", item.feature))
    anchor.append(isolated("", item.text))
    for (const column of columns) row.append(heatCell(view, item, column))
  }
  return scroller
}
