"""The script that Streamlit runs for every page: menu, coder, and the page itself."""

import sys
from pathlib import Path

# Streamlit puts this script's own folder on the path; the package `app` lies one above it.
if (_root := str(Path(__file__).resolve().parent.parent)) not in sys.path:
    sys.path.insert(0, _root)

import streamlit as st

from app import pagekit, state
from app.navigation import PAGES
from app.visible import markdown
from sae.base.errors import UserError

st.set_page_config(page_title="Loupe", page_icon=pagekit.ICON, layout="wide")
st.logo(pagekit.LOGO, icon_image=pagekit.ICON, size="large")

pages = [
    st.Page(page.script, title=page.title, icon=page.icon, url_path=page.path, help=page.help)
    for page in PAGES
]
# The menu is drawn below: the links of Streamlit's own forget which coder one looks at.
chosen = st.navigation(pages, position="hidden")
state.start_of_run()
state.follow()

try:
    run = pagekit.current_run()
except UserError as error:
    st.error(markdown(str(error)), title="There is nothing to show", icon=":material/folder_off:")
    st.stop()

with st.sidebar:
    st.caption(f"Run {markdown(run.name)}")
    coders = run.coders
    write_back = state.bound(
        "coder", coders[0], state.one_of(coders), clears=("feature", "bin", "seed", "page")
    )
    st.selectbox("Coder", coders, key="coder", on_change=write_back)
    for page in pages:
        st.page_link(page, query_params=state.carried(), width="stretch")

try:
    chosen.run()
except UserError as error:  # a file that is damaged, or of another version, or in use
    st.error(markdown(str(error)), icon=":material/error:")
finally:
    state.end_of_run()
