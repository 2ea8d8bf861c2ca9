"""The browser in a real Chromium: clicks, tooltips, history, links, and an empty console."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from app.visible import plain
from sae.features import FeatureIndex, select
from tests.app.server import serving

CHROMIUM = os.environ.get("LOUPE_CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 60_000  # ms
pytestmark = [pytest.mark.browser, pytest.mark.slow]

try:
    from playwright.sync_api import Browser, Page, expect, sync_playwright

    missing = "" if Path(CHROMIUM).exists() else f"there is no Chromium at {CHROMIUM}"
except ImportError:
    missing = "playwright is not installed"
if missing and os.environ.get("LOUPE_REQUIRE_BROWSER") == "1":
    raise RuntimeError(f"LOUPE_REQUIRE_BROWSER is set, but {missing}.")
if missing:
    pytest.skip(f"BROWSER TESTS SKIPPED: {missing}.", allow_module_level=True)


@pytest.fixture(scope="module")
def server(live_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The browser as `sae browse` starts it; its address."""
    with serving(live_run, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: "Browser") -> Iterator["Page"]:
    """A page whose console must stay empty and that asks for nothing elsewhere."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    noise: list[str] = []
    page.on("console", lambda m: noise.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("dialog", lambda dialog: (noise.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "requestfailed",
        # Leaving a page aborts what it was still loading; anything else is an error.
        lambda r: (
            noise.append(f"{r.failure}: {r.url}") if "ABORTED" not in str(r.failure) else None
        ),
    )
    yield page
    page.wait_for_timeout(200)
    context.close()
    assert noise == []


def settle(page: "Page") -> None:
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_timeout(150)


def visit(page: "Page", server: str, path: str = "") -> None:
    page.goto(f"{server}/{path}")
    page.wait_for_selector('[data-testid="stSidebar"]')
    settle(page)


def query(page: "Page") -> dict[str, str]:
    return {name: found[0] for name, found in parse_qs(urlsplit(page.url).query).items()}


def test_overview_leads_to_a_feature_and_back(page: "Page", server: str) -> None:
    visit(page, server)
    expect(page.get_by_text("Explained variance", exact=True)).to_be_visible()
    cards = page.locator(".card")
    expect(cards).to_have_count(12)
    number = cards.first.locator(".feature-id").inner_text()
    cards.first.click()
    expect(page.locator(".example").first).to_be_visible()
    assert urlsplit(page.url).path == "/feature"
    assert query(page)["feature"] == number
    page.go_back()
    expect(page.locator(".card")).to_have_count(12)
    page.go_forward()
    expect(page.locator(".example").first).to_be_visible()
    page.reload()
    expect(page.locator(".example").first).to_be_visible()
    assert query(page)["feature"] == number


def test_malicious_tokens_are_shown_literally(page: "Page", server: str) -> None:
    visit(page, server, "feature?feature=8")
    expect(page.locator(".token.focus").first).to_have_text("<script>alert(1)</script>")
    expect(page.locator("h2")).to_contain_text("<script>alert(1)</script>")
    visit(page, server, "feature?feature=7&context=32")
    expect(page.locator(".example").first).to_be_visible()
    text = "\n".join(page.locator(".run").all_inner_texts())
    for exact in ("<b>bold</b>", "&amp;", "⟨U+202E⟩", "€", "↵", "␀", "שלום"):
        assert exact in text
    titles = page.locator(".foot .title").all_inner_texts()
    assert all(re.fullmatch(r"Chapter \d+ <i>of</i> a book", title) for title in titles)
    inside = page.evaluate(
        """() => [...document.querySelectorAll('*')].filter(e => e.shadowRoot).flatMap(
             e => [...e.shadowRoot.querySelectorAll('script, b, i, img, iframe')]).length"""
    )
    assert inside == 0
    directions = page.locator(".token").evaluate_all(
        "spans => new Set(spans.map(s => getComputedStyle(s).unicodeBidi)).size === 1 "
        "&& getComputedStyle(spans[0]).unicodeBidi"
    )
    assert directions == "isolate"


def test_tooltip_of_a_token(page: "Page", server: str, live_run: Path) -> None:
    index = FeatureIndex.open(live_run / "features" / "hostile")
    best = index.examples(3, "top")[0]
    visit(page, server, "feature?feature=3")
    page.locator(".example").first.locator(".token.focus").hover()
    tip = page.locator(".tip:visible")
    expect(tip).to_have_count(1)
    name = plain(index.vocabulary.name(best.window.token_ids[best.window.focus]), spaces=True)
    expect(tip.locator(".tip-token")).to_have_text(name)
    facts = dict(
        zip(tip.locator("dt").all_inner_texts(), tip.locator("dd").all_inner_texts(), strict=True)
    )
    assert facts["position"] == str(best.row % index.context)
    assert facts["token id"] == str(best.window.token_ids[best.window.focus])
    assert facts["percentile"] == "100 %"
    assert float(facts["activation"]) == pytest.approx(best.activation, rel=0.01)


def test_arrow_keys_and_the_back_button(page: "Page", server: str) -> None:
    visit(page, server, "feature?feature=3&filter=3%2C8%2C20")
    field = page.get_by_role("spinbutton", name="Feature")
    expect(field).to_have_value("3")
    expect(page.get_by_role("button", name="Next")).to_be_visible()  # it brings the shortcut
    page.keyboard.press("ArrowRight")
    expect(field).to_have_value("8")
    page.keyboard.press("ArrowRight")
    expect(field).to_have_value("20")
    page.keyboard.press("ArrowLeft")
    expect(field).to_have_value("8")
    page.go_back()
    expect(field).to_have_value("20")
    page.go_back()
    expect(field).to_have_value("8")
    assert query(page) == {"feature": "8", "filter": "3,8,20"}


def test_a_bar_of_the_histogram_filters_the_examples(
    page: "Page", server: str, live_run: Path
) -> None:
    visit(page, server, "feature?feature=1")
    chart = page.locator('[data-testid="stVegaLiteChart"]').first
    for wait in (10_000, 10_000, 60_000):  # a chart is drawn before it listens to clicks
        chart.locator("path[aria-roledescription=bar]").nth(2).click()
        with suppress(AssertionError):
            expect(page.get_by_role("radio", name="Bin")).to_be_checked(timeout=wait)
            break
    settle(page)
    assert query(page)["tab"] == "bin"
    edges = FeatureIndex.open(live_run / "features" / "hostile").histogram(1).edges
    chosen = int(query(page)["bin"])
    for shown in page.locator(".activation").all_inner_texts():
        assert edges[chosen] - 0.05 <= float(shown) <= edges[chosen + 1] + 0.05


def test_an_example_opens_its_document(page: "Page", server: str, live_run: Path) -> None:
    index = FeatureIndex.open(live_run / "features" / "hostile")
    best = index.examples(3, "top")[0]
    visit(page, server, "feature?feature=3")
    page.locator(".example").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(best.document.title)
    expect(dialog.locator(".token")).to_have_count(index.context)
    expect(dialog.locator(".token.focus")).to_be_in_viewport()
    also = [f for f, _ in index.active_at(best.row) if f != 3]
    ids = dialog.locator(".bar-row .feature-id").all_inner_texts()
    assert ids == [str(f) for f in also]
    dialog.locator(".bar-row").first.click()
    expect(dialog).to_have_count(0)
    page.wait_for_url(re.compile(rf"feature={also[0]}(&|$)"))  # set by the rerun after the click


def test_neighbours_lead_on_and_links_open_anew(page: "Page", server: str) -> None:
    visit(page, server, "feature?feature=2")
    row = page.locator("a.bar-row").first
    number = row.locator(".feature-id").inner_text()
    assert row.get_attribute("href") == f"/feature?feature={number}"
    row.click()
    expect(page.get_by_role("spinbutton", name="Feature")).to_have_value(number)
    page.get_by_role("tab", name="Co-active").click()
    expect(page.get_by_text("Tokens on which both fire")).to_be_visible()
    assert query(page)["near"] == "Co-active"


def test_the_table_sorts_filters_exports_and_opens(
    page: "Page", server: str, live_run: Path, tmp_path: Path
) -> None:
    index = FeatureIndex.open(live_run / "features" / "hostile")
    visit(page, server, "features?filter=density%3C0.02")
    page.get_by_role("button", name="Density").click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Density")
    ids = [int(text) for text in page.locator("td .feature-id").all_inner_texts()]
    chosen = index.table[index.table["density"] < 0.02]
    by_density = chosen.sort_values("density", ascending=False, kind="stable")
    assert ids == by_density["id"].tolist()[: len(ids)]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save filter").click()
    saved = tmp_path / "filter.json"
    waiting.value.save_as(saved)
    assert json.loads(saved.read_text()) == {"filter": "density<0.02"}
    assert select(index, f"@{saved}").tolist() == chosen["id"].tolist()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="CSV").click()
    waiting.value.save_as(tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().count("\n") >= 1 + len(chosen)
    page.locator("tbody tr").nth(1).click()
    expect(page.get_by_role("spinbutton", name="Feature")).to_have_value(str(ids[1]))
    assert query(page)["filter"] == "density<0.02"
    expect(page.get_by_text(f"2 of {len(chosen)}")).to_be_visible()


def test_the_menu_keeps_coder_and_filter(page: "Page", server: str) -> None:
    visit(page, server, "features?coder=live&filter=count%3E0")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator("h2")).to_have_text("live")
    assert query(page) == {"coder": "live", "filter": "count>0"}


def test_the_prompt_page_answers_a_typed_sentence(page: "Page", server: str) -> None:
    visit(page, server, "prompt?coder=live")
    box = page.get_by_role("textbox", name="Text")
    box.fill("Who <i>is</i> there?")
    page.get_by_role("button", name="Read").click()
    strip = page.locator(".document .token")
    expect(strip).to_have_count(21)
    assert "".join(strip.all_inner_texts()[1:]) == "Who <i>is</i> there?"
    expect(page.locator(".heat tbody tr").first).to_be_visible()
    box.fill("Another one, warm")
    start = time.perf_counter()
    page.get_by_role("button", name="Read").click()
    expect(strip).to_have_count(18)
    assert time.perf_counter() - start < 5  # 0.4 s on a free machine
    strip.nth(3).click()
    expect(page.locator("h5", has_text="· 3")).to_be_visible()
    assert query(page)["token"] == "3"
    page.locator(".heat .name a").first.click()
    expect(page.locator(".example").first).to_be_visible()


def test_both_themes_draw(chromium: "Browser", server: str) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        context = chromium.new_context(color_scheme=scheme)  # pyright: ignore[reportArgumentType]
        page = context.new_page()
        visit(page, server, "feature?feature=3")
        colour = page.locator(".example .run").first.evaluate("e => getComputedStyle(e).color")
        red = int(re.findall(r"\d+", colour)[0])
        assert (red > 128) == dark
        context.close()
