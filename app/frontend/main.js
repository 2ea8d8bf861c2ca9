// Streamlit calls this when the component is mounted, and again when its data or theme change.

const LAYOUTS = {
  examples: drawExamples,
  text: drawText,
  bars: drawBars,
  facts: drawFacts,
  cards: drawCards,
  table: drawTable,
  heat: drawHeat,
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component
  const root = parentElement.querySelector(".loupe")
  if (!root || !data) return
  root.replaceChildren()
  const view = { data, root, send: (event) => setTriggerValue("event", event) }
  view.tip = tooltip(view)
  root.append(LAYOUTS[data.layout](view))
}
