"""What the browser must not do: listen to the network, obey other sites, read other files, or show
one visitor what another one does."""

import http.client
import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from app.launch import streamlit_arguments
from app.run_folder import ENVIRONMENT
from tests.app.server import serving
from tests.app.test_app_pages import check, open_page, said

EVIL = "http://evil.example"
SECRET = "the-secret-of-another-file"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
LISTENS, LOCALHOST = "0A", "0100007F"  # of /proc/net/tcp


@pytest.fixture(scope="module")
def server(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Started where the user's own settings switch all protection off."""
    (hostile_run.parent / "secret.json").write_text(json.dumps({"filter": SECRET}))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ENABLE_XSRF_PROTECTION", "ENABLE_CORS"):
            patch.setenv(f"STREAMLIT_SERVER_{name}", "false")
        patch.setenv("STREAMLIT_SERVER_ADDRESS", "0.0.0.0")
        patch.setenv("STREAMLIT_GLOBAL_DEVELOPMENT_MODE", "true")
        patch.setenv("STREAMLIT_SERVER_CORS_ALLOWED_ORIGINS", f'["{EVIL}"]')
        with serving(hostile_run, tmp_path_factory.mktemp("server")) as address:
            yield address


def ask(server: str, method: str, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of a request whose path goes out as it is given."""
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=20)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=names)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_listens_to_this_machine_alone(server: str) -> None:
    assert "--server.address=127.0.0.1" in streamlit_arguments("runs/demo")
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    if not tables[0].exists():
        pytest.skip("needs Linux, to see who listens")
    port = f"{urlsplit(server).port:04X}"
    lines = [line.split() for t in tables if t.exists() for line in t.read_text().splitlines()[1:]]
    ends = [line[1].split(":") for line in lines if line[3] == LISTENS]
    assert {address for address, its_port in ends if its_port == port} == {LOCALHOST}


def test_other_sites_are_not_obeyed(server: str) -> None:
    """Neither a request that changes something without its token, nor a foreign page's socket."""
    assert ask(server, "PUT", "/_stcore/upload_file/session/file")[0] == 403
    assert ask(server, "DELETE", "/_stcore/upload_file/session/file")[0] == 403
    assert ask(server, "GET", "/_stcore/stream", Origin=EVIL, **UPGRADE)[0] == 403
    # a foreign name that was made to lead here
    assert ask(server, "GET", "/_stcore/stream", Host="evil.example", **UPGRADE)[0] == 403
    assert ask(server, "GET", "/_stcore/stream", **UPGRADE)[0] == 101


def test_no_other_machine_is_asked_about_a_foreign_page(
    hostile_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamlit asks a server elsewhere for this machine's address, to compare the page's with."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        with serving(hostile_run, tmp_path) as address:
            assert ask(address, "GET", "/_stcore/stream", Origin=EVIL, **UPGRADE)[0] == 403
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("way", ["..", "%2e%2e", "..%2f..", "%252e%252e", ".%00./.."])
@pytest.mark.parametrize("start", ["", "static/", "app/static/", "media/", "component/x/"])
def test_no_address_leads_to_another_file(server: str, start: str, way: str) -> None:
    for target in ("secret.json", "etc/passwd", "demo/evaluation/hostile.json"):
        for depth in (1, 3, 12):
            body = ask(server, "GET", f"/{start}{'/'.join([way] * depth)}/{target}")[1]
            assert SECRET.encode() not in body
            assert b"root:" not in body
            assert b'"metrics"' not in body


@pytest.fixture
def run(hostile_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "demo"
    shutil.copytree(hostile_run / "features" / "hostile", folder / "features" / "hostile")
    shutil.copytree(hostile_run / "evaluation", folder / "evaluation")
    other = tmp_path / "other"  # a whole run beside it, with an evaluation of its own
    shutil.copytree(folder, other)
    (tmp_path / "secret.json").write_text(json.dumps({"filter": f'label:"{SECRET}"'}))
    monkeypatch.setenv(ENVIRONMENT, str(folder))
    return folder


@pytest.mark.parametrize("page", ["overview", "features", "feature", "prompt"])
@pytest.mark.parametrize(
    "query",
    [
        {"coder": "../../other/features/hostile"},
        {"coder": "/etc"},
        {"run": "../other", "LOUPE_RUN": "../other"},
        {"filter": "@{folder}/secret.json"},
        {"filter": '@"{folder}/secret.json"', "sort": "__class__", "order": "'"},
        {"feature": "../../secret.json", "bin": "x", "seed": "-9", "token": "1e9", "page": "-4"},
        {"feature": "9" * 5000, "context": "../..", "tab": "\0", "near": "<b>", "text": "\0" * 99},
        {"filter": "9" * 5000},
    ],
    ids=lambda query: " ".join(query),
)
def test_no_parameter_leads_to_another_file(run: Path, page: str, query: dict[str, str]) -> None:
    """Nor to a traceback: what makes no sense is left out, or told in a sentence."""
    given = {name: text.replace("{folder}", str(run.parent)) for name, text in query.items()}
    app = open_page(page, **given)
    shown = said(app)
    assert SECRET not in shown
    assert app.selectbox(key="coder").value == "hostile"
    if page == "features" and query.get("filter", "").startswith("@"):
        assert "reads no files" in shown


def test_visitors_do_not_see_each_other(run: Path) -> None:
    """Addresses and fields are a visitor's own; notes are the run's, for all."""
    one, other = open_page("feature", feature="3"), open_page("feature", feature="8")
    one.button(key="step-Right").click().run()
    one.text_input(key="label-4").set_value("mine alone so far")
    one.query_params["filter"] = "3,4,8"
    one.query_params["tab"] = "random"
    check(one.run())
    check(other.run())
    assert other.number_input(key="feature").value == 8
    assert other.query_params == {"feature": "8"}
    assert one.number_input(key="feature").value == 4
    for key in ("label-4", "tags-4"):
        assert key in one.session_state
        assert key not in other.session_state
