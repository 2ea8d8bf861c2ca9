"""Feature: where one feature fires, what it does to the logits, and what is near it."""

import streamlit as st

from app import feature_examples, feature_header, feature_live, feature_panels, pagekit, state
from app.visible import markdown
from sae.base.errors import UserError

here = pagekit.here()
try:
    order = here.matches()
    first = int(order[0]) if len(order) else 0
    feature = here.index.check(state.value("feature", first, int))
except UserError as error:
    st.error(markdown(str(error)), title="This feature cannot be shown")
    st.button("Show the first feature", on_click=lambda: state.put(feature=0, filter=None))
    st.stop()

row = here.row(feature)
feature_header.draw(here, feature, row)
left, right = st.columns([1, 2], gap="large")
with right:
    feature_examples.draw(here, feature, row)
with left:
    feature_panels.draw(here, feature, row)
feature_live.draw(here, feature, row)
