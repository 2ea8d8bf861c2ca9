"""Entry of the browser: `streamlit run app/main.py -- RUN` (or `LOUPE_RUN=RUN`).

Streamlit finds the ASGI application below and serves `browser.py` with it. Against running that
script directly this gains two things: the index is opened before the first visitor comes, and the
page is told where its server is. Without the latter, Streamlit's client, loaded at `/feature?…`,
first asks for the server at `/feature/_stcore/…`, and every reload leaves errors in the console.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

# Streamlit puts this script's own folder on the path; the package `app` lies one above it.
if (_root := str(Path(__file__).resolve().parent.parent)) not in sys.path:
    sys.path.insert(0, _root)

import streamlit as st
from starlette.middleware import Middleware

from app.base_url import BaseUrl
from app.run_folder import ENVIRONMENT, find_run
from sae.base.errors import UserError

if len(sys.argv) > 1:
    os.environ[ENVIRONMENT] = str(Path(sys.argv[1]).absolute())


@asynccontextmanager
async def warm(_app: object) -> AsyncIterator[dict[str, object]]:
    """Opens the first index before the first page asks for it; what is wrong, the pages tell."""
    from app import data

    try:
        run = find_run()
        index = data.open_index(run, run.coders[0])
        data.Here(run, run.coders[0], index).table()
    except UserError:
        pass
    yield {}


app = st.App(
    Path(__file__).with_name("browser.py"), lifespan=warm, middleware=[Middleware(BaseUrl)]
)
