// Small helpers. Text reaches the page through textContent alone: never innerHTML.

function make(tag, className, text) {
  const element = document.createElement(tag)
  if (className) element.className = className
  if (text !== undefined && text !== null) element.textContent = text
  return element
}

// A text, or an array of plain parts and marks in turn (see app/visible.py).
// With `breaks`, a marked line end also ends the line.
function addPieces(parent, pieces, breaks) {
  if (!Array.isArray(pieces)) {
    parent.append(document.createTextNode(pieces))
    return parent
  }
  pieces.forEach((part, i) => {
    if (!part) return
    if (i % 2 === 0) {
      parent.append(document.createTextNode(part))
      return
    }
    const lines = breaks ? part.split(/(?<=↵)/u) : [part]
    for (const line of lines) {
      parent.append(make("span", "mark", line))
      if (breaks && line.endsWith("↵")) parent.append(document.createTextNode("\n"))
    }
  })
  return parent
}

// A text that its surroundings cannot turn around, nor it them; always from left to right, so that
// the marks of a token in a right-to-left script stay where its bytes are.
function isolated(className, pieces) {
  const element = make("bdi", className)
  element.dir = "ltr"
  return addPieces(element, pieces, false)
}

function joined(pieces) {
  return Array.isArray(pieces) ? pieces.join("") : pieces
}

function short(value) {
  if (value === null || value === undefined) return "–"
  if (value === 0) return "0"
  const size = Math.abs(value)
  if (size >= 1000) return Math.round(value).toLocaleString("en-US")
  if (size < 0.001) return value.toExponential(1)
  return Number.isInteger(value) ? String(value) : value.toPrecision(3)
}

function percent(value) {
  if (value === null || value === undefined) return "–"
  return `${short(100 * value)} %`
}

// A real link, so that it can be opened in a new tab; a plain click stays in the session.
function link(href, className, onOpen) {
  const anchor = make("a", className)
  anchor.href = href
  anchor.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return
    event.preventDefault()
    event.stopPropagation()
    onOpen()
  })
  return anchor
}

function featureHref(view, feature) {
  const query = new URLSearchParams(view.data.query ?? {})
  query.set("feature", feature)
  return `${view.data.base ?? "/"}feature?${query}`
}

function featureLink(view, feature, className) {
  const open = () => view.send({ kind: "feature", feature })
  return link(featureHref(view, feature), className, open)
}

// A click or Enter / space on something that is no link.
function onPress(element, handler) {
  element.tabIndex = 0
  element.setAttribute("role", "button")
  element.addEventListener("click", handler)
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return
    event.preventDefault()
    handler(event)
  })
}

// One tooltip per view, moved about; `fill` puts its contents in.
function tooltip(view) {
  const box = make("div", "tip")
  box.setAttribute("role", "tooltip")
  box.hidden = true
  view.root.append(box)
  const place = (target) => {
    const at = target.getClientRects()[0] ?? target.getBoundingClientRect()
    box.hidden = false
    const size = box.getBoundingClientRect()
    const left = Math.min(Math.max(8, at.left), window.innerWidth - size.width - 8)
    const above = at.top - size.height - 6
    box.style.left = `${left}px`
    box.style.top = `${above > 8 ? above : at.bottom + 6}px`
  }
  return {
    show(target, fill) {
      box.replaceChildren()
      fill(box)
      place(target)
    },
    hide() {
      box.hidden = true
    },
  }
}
