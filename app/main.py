"""Entry of the browser's server, which `app.launch` (and so `sae browse RUN`) starts.

Streamlit finds the ASGI application below and serves `browser.py` with it. Against running that
script directly this gains three things: the index is opened before the first visitor comes, the
page is told where its server is, and a server without the protections of `app.launch` is refused.
Without the second, Streamlit's client, loaded at `/feature?…`, first asks for the server at
`/feature/_stcore/…`, and every reload leaves errors in the console.
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
from streamlit import net_util

from app.base_url import BaseUrl
from app.launch import lacking
from app.run_folder import ENVIRONMENT, find_run
from sae.base.errors import UserError

if unsafe := lacking(st.get_option):
    sys.exit(
        f"The browser was started without `--{unsafe[0]}`, which keeps others out; start it with "
        "`sae browse RUN`."
    )
# Before it refuses a page of another site, Streamlit would ask a server elsewhere for this
# machine's own address.
net_util.get_external_ip = lambda: None

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
