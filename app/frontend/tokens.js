// Runs of tokens, coloured by a value: the examples of a feature, a document, a typed text.

// How strongly a value colours its token: 0 below `low`, 1 from `high` on.
function strength(view, value) {
  const low = view.data.low ?? 0
  const high = view.data.high ?? 1
  return high > low ? Math.min(1, Math.max(0, (value - low) / (high - low))) : 0
}

function tokenSpan(view, run, i, breaks) {
  const span = make("span", "token")
  span.dataset.i = i
  addPieces(span, run.text[i], breaks)
  const found = run.at[i]
  if (found) {
    const colour = strength(view, found[0])
    // Even the weakest firing is visible.
    span.style.setProperty("--a", (0.08 + 0.92 * colour).toFixed(3))
    span.classList.add("fires")
    if (colour > 0.6) span.classList.add("hot")
  }
  if (i === run.focus) span.classList.add("focus")
  if (run.selected === i) span.classList.add("selected")
  return span
}

function tokenRun(view, run, breaks) {
  const line = make("div", breaks ? "run breaks" : "run")
  line.dir = "ltr"
  run.text.forEach((_, i) => line.append(tokenSpan(view, run, i, breaks)))
  return line
}

// A token that stands alone shows the spaces at its ends.
function withEnds(pieces) {
  if (Array.isArray(pieces)) return pieces
  const body = pieces.trim()
  const lead = body ? pieces.indexOf(body) : pieces.length
  return ["", "·".repeat(lead), body, "·".repeat(pieces.length - lead - body.length)]
}

function fillTip(view, run, i) {
  return (box) => {
    const head = make("div", "tip-token")
    const name = joined(run.text[i])
    if (name === "") head.append(make("span", "mark", "(rest of the character before)"))
    else addPieces(head, withEnds(run.text[i]), false)
    box.append(head)
    const found = run.at[i]
    const value = view.data.share ? percent : short
    const rows = [
      ["token id", run.id[i]],
      ["position", run.position + i],
      [view.data.valueName ?? "activation", found ? value(found[0]) : "0"],
    ]
    if (found && found[1] !== null) rows.push(["percentile", percent(found[1])])
    for (const [name, text] of run.notes?.[i] ?? []) rows.push([name, text])
    const list = make("dl", "tip-facts")
    for (const [name, text] of rows) list.append(make("dt", "", name), make("dd", "", text))
    box.append(list)
  }
}

// Tooltips by delegation: one listener, however many tokens.
function tipTokens(view, line, run) {
  line.addEventListener("pointerover", (event) => {
    const span = event.target.closest?.(".token")
    if (span) view.tip.show(span, fillTip(view, run, Number(span.dataset.i)))
  })
  line.addEventListener("pointerleave", () => view.tip.hide())
}

function exampleRow(view, item) {
  const row = make("div", "example")
  const margin = make("div", "margin")
  margin.append(make("span", "activation", item.activation ? short(item.activation) : "silent"))
  row.append(margin)
  const body = make("div", "body")
  const line = tokenRun(view, item.tokens, view.data.breaks)
  tipTokens(view, line, item.tokens)
  body.append(line)
  const foot = make("div", "foot")
  foot.append(isolated("title", item.title))
  if (item.split === "heldout") foot.append(make("span", "badge", "held-out"))
  if (item.copies > 1) foot.append(make("span", "badge", `× ${item.copies}`))
  body.append(foot)
  row.append(body)
  row.setAttribute("aria-label", "Open the document")
  onPress(row, () => view.send({ kind: "row", row: item.row }))
  return row
}

function drawExamples(view) {
  const list = make("div", "examples")
  let group = null
  for (const item of view.data.items) {
    if (item.group && item.group[0] !== group) {
      group = item.group[0]
      const [number, low, high] = item.group
      const heading = make("div", "group", `Interval ${number + 1}`)
      heading.append(make("span", "range", `${short(low)} – ${short(high)}`))
      list.append(heading)
    }
    list.append(exampleRow(view, item))
  }
  return list
}

// One run of tokens; with `pick`, a click on a token sends it.
function drawText(view) {
  const run = view.data.tokens
  const line = tokenRun(view, run, view.data.breaks)
  line.classList.add("document")
  tipTokens(view, line, run)
  if (view.data.pick) {
    line.classList.add("pick")
    for (const span of line.children) {
      if (Number(span.dataset.i) < (view.data.first ?? 0)) continue
      onPress(span, () => view.send({ kind: "token", token: Number(span.dataset.i) }))
    }
  }
  if (view.data.scroll) {
    requestAnimationFrame(() => line.querySelector(".focus")?.scrollIntoView({ block: "center" }))
  }
  return line
}
