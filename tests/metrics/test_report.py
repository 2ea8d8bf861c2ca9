"""The report: whole, self-contained, honest about controls that win."""

import copy
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from sae.base.errors import UserError
from sae.coders import make_coder
from sae.lm import LanguageModel
from sae.metrics import evaluate, write_report, write_report_index
from sae.metrics.breakdown import USUAL
from sae.metrics.plots import count
from sae.metrics.report import PARTS, interval, number
from sae.store import ActivationStore
from tests.metrics.conftest import SITE

FIGURES = 11  # of one coder


@pytest.fixture(scope="session")
def evaluation(store: ActivationStore, lm: LanguageModel) -> dict[str, Any]:
    coder = make_coder("topk", 32, 128, k=6)
    coder.initialise(torch.from_numpy(store.stats(SITE).mean_D).float(), torch.Generator())
    coder.metadata = {"hook_name": SITE}
    return evaluate(coder.eval(), store, lm, quick=True, tokens=800, loss_tokens=300)


class Page(HTMLParser):
    """Collects opened tags and checks that they are closed in order."""

    VOID = ("meta", "br", "link", "path", "use", "rect", "circle", "line", "hr", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def read(evaluation: dict[str, Any], folder: Path, name: str = "topk") -> tuple[str, Page]:
    return parsed(write_report(name, evaluation, folder / "page.html"))


def parsed(path: Path) -> tuple[str, Page]:
    text, page = path.read_text(), Page()
    page.feed(text)
    assert not page.open
    return text, page


def test_one_coder(evaluation: dict[str, Any], tmp_path: Path) -> None:
    text, page = read(evaluation, tmp_path)
    assert sum(tag == "figure" for tag, _ in page.seen) == FIGURES
    assert text.count("<figcaption>") == FIGURES  # each plot says how to read it
    for name in evaluation["metrics"]:
        assert f"<code>{name}</code>" in text
    assert number(evaluation["metrics"]["ev"]["value"]) in text
    assert interval(evaluation["metrics"]["ev"]) in text


def test_the_error_budget_says_what_it_rests_on(evaluation: dict[str, Any], tmp_path: Path) -> None:
    text, _ = read(evaluation, tmp_path)
    details = evaluation["error_budget_details"]
    assert f"tokens of {details['units']} documents" in text
    assert f"silent for {count(details['silent']['tokens'])} tokens" in text
    assert f"fitted on {count(details['linear_fitted_on'])} tokens" in text
    assert f"more than {100 * USUAL:.0f} % of the first token" in text
    assert "these three are gained at least, and the rest is at most what is left" in text
    bars = text[text.index("Budget of the unexplained") :]
    assert bars[: bars.index("</figure>")].count('id="LineCollection') == len(PARTS)


def test_the_units_that_were_resampled_are_said(evaluation: dict[str, Any], tmp_path: Path) -> None:
    odd = copy.deepcopy(evaluation)
    odd["provenance"]["interval"].update(sparsity_over="groups of documents", sparsity_units=77)
    text, _ = read(odd, tmp_path)
    assert "who fires: 77 groups of documents" in text
    assert "none of fewer than 10" in text
    assert "are dependent" not in text
    odd["provenance"]["interval"]["over"] = "sequences"
    assert "are dependent" in read(odd, tmp_path)[0]


def test_what_rests_on_a_few_units_has_no_interval(
    evaluation: dict[str, Any], tmp_path: Path
) -> None:
    odd = copy.deepcopy(evaluation)
    details = odd["error_budget_details"]
    details["units"] = 4
    details["intervals"] = {part: [None, None] for part in details["intervals"]}
    row = odd["breakdown"]["repetition"][0]
    row.update(over="sequences", units=4)
    for name in ("delta_ce", "kl", "ce_clean"):
        row[name].update(low=None, high=None, units=4)
    text, _ = read(odd, tmp_path)
    assert f"of 4 {details['over']} (too few for intervals)" in text
    told = re.findall(r" Of ([^.]*) there are too few for an interval\.", text)
    assert any(row["group"] in groups.split("; ") for groups in told)


def test_every_lift_has_its_interval_and_its_tokens(
    evaluation: dict[str, Any], tmp_path: Path
) -> None:
    text, _ = read(evaluation, tmp_path)
    said = evaluation["provenance"]
    of_losses = count(said["control_loss_tokens"])
    assert f"{count(said['control_tokens'])} for activations, {of_losses} for losses" in text
    table = text[text.index("Lift over the best control") :]
    table = table[: table.index("</table>")]
    for rung in evaluation["ladder"].values():
        assert (
            f'<small>{interval(rung)}</small></td><td class="r">{count(rung["tokens"])}<' in table
        )


def test_a_page_leads_to_those_of_the_coders(evaluation: dict[str, Any], tmp_path: Path) -> None:
    other = copy.deepcopy(evaluation)
    other["provenance"]["coder"]["target_site"] = "elsewhere"
    both = {"narrow": evaluation, "wide": other}
    text, page = parsed(write_report_index(both, tmp_path / "report.html", "compare/c.html"))
    links = [attributes["href"] for tag, attributes in page.seen if tag == "a"]
    assert links == ["compare/c.html", "narrow.html", "wide.html"]
    assert text.count("to <code>elsewhere</code>") == 1
    assert number(evaluation["metrics"]["ev"]["value"]) in text
    assert not {tag for tag, _ in page.seen} & {"script", "link", "iframe", "img"}


def test_a_quick_page_names_the_command_of_the_whole(
    evaluation: dict[str, Any], tmp_path: Path
) -> None:
    command = "sae evaluate runs/demo --full"
    text = write_report("topk", evaluation, tmp_path / "a.html", command).read_text()
    assert f"The whole: <code>{command}</code>" in text
    whole = copy.deepcopy(evaluation)
    whole["provenance"]["quick"] = False
    assert "A quick evaluation" not in read(whole, tmp_path)[0]


def test_nothing_is_loaded_from_elsewhere(evaluation: dict[str, Any], tmp_path: Path) -> None:
    text, page = read(evaluation, tmp_path)
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "link", "iframe", "img"}
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)  # clip paths of the SVGs only
    for _, attributes in page.seen:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")


def test_figures_are_well_formed_and_take_the_pages_colours(
    evaluation: dict[str, Any], tmp_path: Path
) -> None:
    text, _ = read(evaluation, tmp_path)
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) == FIGURES
    for svg in figures:
        ElementTree.fromstring(svg)
        assert "var(--series-0)" in svg
        assert "#0" not in svg  # no marker colour is left, nothing is black on black
    assert "prefers-color-scheme: dark" in text


def test_names_are_text_not_markup(evaluation: dict[str, Any], tmp_path: Path) -> None:
    name = '<b onclick="x">$k_1$ & co'
    text, page = read(evaluation, tmp_path, name)
    assert "<b onclick" not in text
    assert not any("onclick" in attributes for _, attributes in page.seen)
    assert "&lt;b onclick" in text
    assert "$k_1$ &amp; co" in text


def unbeaten(evaluation: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(evaluation)
    for rung in found["ladder"].values():
        rung.update(won_by=[], undecided=[], units=50)
    return found


def test_a_control_that_wins_is_marked(evaluation: dict[str, Any], tmp_path: Path) -> None:
    beaten, best = unbeaten(evaluation), unbeaten(evaluation)
    beaten["ladder"]["ev"].update(best="pca", won_by=["pca"])
    beaten["ladder"]["fvu"].update(best="raw_neurons", undecided=["raw_neurons"])
    text, _ = read(beaten, tmp_path)
    assert "PCA is as good as this coder or better on <code>ev</code>: a linear code" in text
    rows = text[: text.index("All metrics of")]
    assert rows.count('<td class="r bad">') == 2  # the control's number, and the lift over it
    assert text.count('<td class="r good">') == len(beaten["ladder"]) - 2
    assert text.count("<td>raw neurons</td></tr>") == 1
    assert text.count('<td class="bad">PCA</td><td>–</td></tr>') == 1
    beaten["ladder"]["ev"]["by_value"] = ["pca"]
    text, _ = read(beaten, tmp_path)
    assert "<code>ev</code> (by the values alone, for want of a paired interval): " in text
    text, _ = read(best, tmp_path)
    assert "as this coder or better" not in text
    assert "as good or better: " not in text


def test_what_a_control_wins_is_marked_where_people_look(
    evaluation: dict[str, Any], tmp_path: Path
) -> None:
    """With the control's name: in the tiles, and on the page that leads to those of the coders."""
    beaten = unbeaten(evaluation)
    beaten["ladder"]["delta_ce"].update(won_by=["pca", "raw_neurons"])
    value = number(beaten["metrics"]["delta_ce"]["value"])
    text, _ = read(beaten, tmp_path)
    tiles = text[text.index('<div class="tiles">') : text.index("Against what learns no features")]
    assert tiles.count("bad") == 2
    assert f'<div class="value bad">{value}</div>' in tiles
    assert '<span class="bad">as good or better: PCA, raw neurons</span>' in tiles
    both = {"won": beaten, "best": unbeaten(evaluation)}
    index = write_report_index(both, tmp_path / "report.html").read_text()
    assert index.count('<td class="r bad"') == 1
    assert f"{value}<small>" in index
    assert index.count("as good or better:<br>PCA<br>raw neurons</small>") == 1


def test_a_page_says_on_what_nothing_is_decided(evaluation: dict[str, Any], tmp_path: Path) -> None:
    few = unbeaten(evaluation)
    assert "Nothing is decided" not in read(few, tmp_path)[0]
    few["ladder"]["kl"].update(units=9, undecided=list(few["controls"]), low=None, high=None)
    for entry in (few["coder_beside_controls"]["kl"], few["controls"]["pca"]["kl"]):
        del entry["low"], entry["high"]  # an interval that nothing can give
    text, _ = read(few, tmp_path)
    assert "Nothing is decided on <code>kl</code>: with fewer than 10 documents" in text
    assert "no interval" in text


def test_controls_of_another_model_have_no_losses_to_show(
    evaluation: dict[str, Any], tmp_path: Path
) -> None:
    other = copy.deepcopy(evaluation)
    raw = other["controls"]["raw_neurons"]
    other["controls"]["random_model"] = {k: raw[k] for k in ("ev", "fvu", "l0")}
    text, _ = read(other, tmp_path)
    assert "coder of a random model" in text
    assert "scikit-learn&#39;s dictionary, OMP: takes minutes to train" in text


def test_missing_values_are_said_not_hidden(evaluation: dict[str, Any], tmp_path: Path) -> None:
    odd = copy.deepcopy(evaluation)
    odd["metrics"]["ce_recovered_mean"].update(value=None, low=None, high=None)
    odd["metrics"]["delta_ce"].update(low=None, high=None)
    odd["metrics"]["fvu"].update(value=None, low=None, high=None)
    odd["controls"], odd["ladder"] = {}, {}
    odd["error_budget"]["choice"] = None
    del odd["metrics"]["kl_error_ratio"]
    for name in ("max_decoder_cosine", "random", "encoder_decoder"):
        del odd["histograms"][name]
    text = read(odd, tmp_path)[0]
    text += write_report_index({"a": odd, "b": odd}, tmp_path / "report.html").read_text()
    assert "no interval" in text
    assert "NaN" not in text


def test_what_was_not_asked_is_no_pass(evaluation: dict[str, Any], tmp_path: Path) -> None:
    odd = copy.deepcopy(evaluation)
    tests = odd["self_tests"]
    for test in tests.values():
        test.update(passed=True, value=0.0, note=None)
    whole = len(tests)
    assert f"Self-tests ({whole} passed)" in read(odd, tmp_path)[0]
    tests["fold_identity"].update(passed=None, value=None, note="it has no <thresholds>")
    tests["decoder_identity"]["note"] = "worse than its bias alone"
    text, _ = read(odd, tmp_path)
    assert f"Self-tests ({whole - 1} passed, 1 not asked)" in text
    assert f"{whole - 1} self-tests passed, 1 had nothing to ask: had one failed" in text
    assert ">not asked</span>: it has no &lt;thresholds&gt;</td>" in text
    warning = '<p class="note"><code>decoder_identity</code>: worse than its bias alone.</p>'
    assert warning in text[: text.index("</header>")]
    assert text.count('class="note"><code>') == 1  # what was not asked is no warning


def test_nothing_to_report_is_refused(evaluation: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluation"):
        write_report_index({}, tmp_path / "r.html")
    with pytest.raises(UserError, match="schema"):
        write_report("x", {**evaluation, "schema": 2}, tmp_path / "r.html")
    with pytest.raises(UserError, match="schema"):
        write_report_index({"x": {**evaluation, "schema": 2}}, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_plotting_is_not_imported_with_the_metrics() -> None:
    code = "import sys, sae.metrics; print({'matplotlib', 'sae.metrics.plots'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.94816, "0.9482"),
        (32.0, "32"),
        (-0.01234, "-0.0123"),
        (1.2e-6, "1.20e-06"),
        (0.0, "0"),
        (3614.5, "3614"),
        (None, "–"),
    ],
)
def test_numbers_as_a_person_reads_them(value: float | None, text: str) -> None:
    assert number(value) == text


def test_counts() -> None:
    assert [count(v) for v in (7, 65_536, 1e6)] == ["7", "65.5 k", "1 M"]
