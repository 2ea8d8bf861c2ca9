"""The browser's pages run in process by Streamlit's AppTest, and what is on them."""

import json
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).parent.parent.parent
BROWSER = ROOT / "app" / "browser.py"
PAGES = ("overview", "features", "feature", "prompt")


def open_page(name: str = "overview", **query: str) -> AppTest:
    app = AppTest.from_file(BROWSER, default_timeout=60).run()
    if name != "overview":
        app.switch_page(f"pages_/{name}.py")
    for key, value in query.items():
        app.query_params[key] = value
    return check(app.run())


def check(app: AppTest) -> AppTest:
    assert [error.value for error in app.exception] == []
    return app


def view(app: AppTest, key: str) -> dict[str, Any]:
    """What the token view with this key was given."""
    found = [e for e in app.get("bidi_component") if e.key == key]
    assert len(found) == 1, f"{key} is not on the page"
    return json.loads(found[0].proto.json)  # pyright: ignore[reportAttributeAccessIssue]


def said(app: AppTest) -> str:
    kinds = (app.markdown, app.caption, app.error, app.code)
    return "\n".join(str(element.value) for kind in kinds for element in kind)
