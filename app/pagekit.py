"""What all pages share: the run, the coder that is looked at, and how a missing file is told."""

from pathlib import Path
from typing import NoReturn

import streamlit as st

from app import component, data, state
from app.run_folder import Run, find_run
from app.visible import markdown

# Files of our own: Streamlit fetches the icon of a `:material/…:` page from a server elsewhere.
ICON, LOGO = (str(Path(__file__).parent / "theme" / name) for name in ("icon.svg", "logo.svg"))


def current_run() -> Run:
    """The run that the browser was started on; a `UserError` if there is none."""
    return find_run()


def current_coder(run: Run) -> str:
    return state.value("coder", run.coders[0], state.one_of(run.coders))


def here() -> data.Here:
    """Run, coder and index of this page; without an index the page ends with what to do."""
    run = current_run()
    coder = current_coder(run)
    if not (run.index(coder) / "index.json").is_file():
        missing(
            f"The coder {markdown(coder)} has no feature index yet",
            "The index says which tokens fire each feature. Make it with:",
            run.command("index"),
        )
    return data.Here(run, coder, data.open_index(run, coder))


def missing(title: str, body: str, command: str) -> NoReturn:
    """Ends the page with the command that makes what it needs."""
    tell_missing(title, body, command)
    st.stop()


def tell_missing(title: str, body: str, command: str) -> None:
    """Says which command makes a file that is not there, and goes on."""
    with st.container(border=True):
        st.markdown(f"**{title}**")
        st.caption(body)
        st.code(command, language="bash")


def link_base() -> dict[str, object]:
    """What the component needs to make links to features."""
    path = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return {"base": f"/{path}/" if path else "/", "query": state.carried()}


def open_on_click(event: component.Event) -> None:
    """Event handler: opens the feature that was clicked."""
    if event.get("kind") == "feature":
        state.open_feature(int(event["feature"]))
