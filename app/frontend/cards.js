// Features as cards: number, label, one context, a sparkline of the activations.

const SVG = "http://www.w3.org/2000/svg"

function sparkline(heights) {
  const svg = document.createElementNS(SVG, "svg")
  svg.setAttribute("viewBox", `0 0 ${heights.length * 4} 20`)
  svg.setAttribute("class", "spark")
  svg.setAttribute("preserveAspectRatio", "none")
  svg.setAttribute("aria-hidden", "true")
  heights.forEach((height, i) => {
    if (height <= 0) return
    const bar = document.createElementNS(SVG, "rect")
    bar.setAttribute("x", i * 4 + 0.5)
    bar.setAttribute("width", 3)
    bar.setAttribute("y", (20 - 20 * height).toFixed(1))
    bar.setAttribute("height", (20 * height).toFixed(1))
    svg.append(bar)
  })
  return svg
}

function card(view, item) {
  const box = featureLink(view, item.feature, "card")
  const head = make("div", "card-head")
  head.append(make("span", "feature-id", item.feature), make("span", "spring"))
  head.append(sparkline(item.spark))
  box.append(head)
  const label = make("div", "card-label")
  label.append(isolated("", item.label))
  box.append(label)
  for (const run of item.runs) {
    // Each card has its own scale: the largest activation of its feature.
    const scaled = { ...view, data: { ...view.data, high: item.high } }
    const line = tokenRun(scaled, run, false)
    tipTokens(view, line, run)
    box.append(line)
  }
  const foot = make("div", "card-foot")
  for (const text of item.foot) foot.append(make("span", "", text))
  box.append(foot)
  return box
}

function drawCards(view) {
  const grid = make("div", "cards")
  for (const item of view.data.items) grid.append(card(view, item))
  return grid
}
