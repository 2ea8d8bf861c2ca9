// The table of features. Sorting is the server's: a click on a heading asks for it.

function headCell(view, column) {
  const cell = make("th", column.align === "right" ? "right" : "")
  cell.scope = "col"
  if (column.hint) cell.title = column.hint
  const sorted = view.data.sort === column.name
  if (!column.sortable) {
    cell.textContent = column.title
    return cell
  }
  cell.setAttribute("aria-sort", sorted ? (view.data.down ? "descending" : "ascending") : "none")
  const button = make("button", sorted ? "sort sorted" : "sort", column.title)
  button.type = "button"
  button.append(make("span", "arrow", sorted ? (view.data.down ? "↓" : "↑") : "↕"))
  button.addEventListener("click", () => view.send({ kind: "sort", column: column.name }))
  cell.append(button)
  return cell
}

function bodyCell(view, column, item) {
  const cell = make("td", column.align === "right" ? "right" : "")
  const value = item[column.name]
  if (column.kind === "feature") {
    cell.append(make("span", "feature-id", value))
  } else if (column.kind === "spark") {
    if (value.length) cell.append(sparkline(value))
  } else if (column.kind === "token") {
    if (value !== null) cell.append(isolated("chip", value))
  } else if (column.kind === "label") {
    if (item.star) cell.append(make("span", "star", "★"))
    const label = featureLink(view, item.id, "label-link")
    label.append(isolated("", value))
    cell.append(label)
    for (const tag of item.tags) cell.append(isolated("badge", tag))
  } else {
    cell.textContent = value
  }
  return cell
}

function drawTable(view) {
  const scroller = make("div", "scroller")
  const table = scroller.appendChild(make("table", "features"))
  const head = table.createTHead().insertRow()
  for (const column of view.data.columns) head.append(headCell(view, column))
  const body = table.createTBody()
  for (const item of view.data.items) {
    const row = body.insertRow()
    for (const column of view.data.columns) row.append(bodyCell(view, column, item))
    row.addEventListener("click", () => view.send({ kind: "feature", feature: item.id }))
  }
  return scroller
}
