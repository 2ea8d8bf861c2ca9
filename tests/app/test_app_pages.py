"""The pages, run in process by Streamlit's AppTest: what they show, and what a click changes."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from app import state
from app.run_folder import ENVIRONMENT
from app.visible import markdown
from sae.base.errors import UserError
from sae.base.sums import seal
from sae.features import FeatureIndex, Notes
from sae.features.layout import SCORECARD
from sae.features.scorecard import COLUMNS, write_scorecard
from tests.app.pages import BROWSER, PAGES, ROOT, check, open_page, said, view
from tests.damage import Damage


@pytest.fixture
def run(hostile_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one's own, to write notes into."""
    folder = tmp_path / "demo"
    shutil.copytree(hostile_run / "features" / "hostile", folder / "features" / "hostile")
    shutil.copytree(hostile_run / "evaluation", folder / "evaluation")
    monkeypatch.setenv(ENVIRONMENT, str(folder))
    return folder


def test_no_page_imports_torch(hostile_run: Path) -> None:
    script = f"""
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file({str(BROWSER)!r}, default_timeout=60).run()
for name in {PAGES}:
    app.switch_page(f"pages_/{{name}}.py").run()
    if app.exception:
        sys.exit(str([error.value for error in app.exception]))
    if "torch" in sys.modules:
        sys.exit(name + " imported torch")
"""
    environment = {**os.environ, ENVIRONMENT: str(hostile_run), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_overview_shows_the_evaluation_with_its_interval(run: Path) -> None:
    app = open_page()
    tiles = {metric.label: metric for metric in app.metric}
    assert tiles["Explained variance"].value == "0.912"
    assert "0.908 to 0.916" in tiles["Explained variance"].help
    assert tiles["Alive (200 k tokens)"].value == "97.5 %"
    assert [bar["shown"] for bar in view(app, "overview-controls")["items"]] == [
        "0.912",
        "0.780",
        "0.210",
    ]
    assert len(view(app, "gallery")["items"]) == 12


def test_an_evaluation_of_other_weights_is_not_shown_as_this_coders(run: Path) -> None:
    coder = run / "coders" / "hostile"
    coder.mkdir(parents=True)
    (coder / "sae_weights.safetensors").write_bytes(b"trained anew")
    app = open_page()
    assert "Explained variance" not in {metric.label for metric in app.metric}
    assert "of another coder" in said(app)
    assert f"sae evaluate {run}" in said(app)
    seal(coder, ["sae_weights.safetensors"])
    assert "of another coder" in said(open_page())


def test_random_feature_opens_one_that_fires(run: Path) -> None:
    app = open_page()
    app.button[0].click().run()
    check(app)
    index = FeatureIndex.open(run / "features" / "hostile")
    assert index.table.loc[int(app.query_params["feature"]), "count"] > 0


def test_what_is_missing_names_the_command_that_makes_it(run: Path) -> None:
    (run / "evaluation" / "hostile.json").unlink()
    app = open_page()
    assert f"sae evaluate {run}" in said(app)
    assert len(view(app, "gallery")["items"]) == 12
    (run / "coders" / "bare").mkdir(parents=True)
    (run / "coders" / "bare" / "cfg.json").write_text("{}")
    for name in PAGES:
        app = open_page(name, coder="bare")
        assert f"sae index {run}" in said(app)


def test_without_a_run_the_browser_says_how_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "nowhere"))
    assert "is not a folder" in said(open_page())
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    assert "holds no coder yet" in said(open_page())


def test_features_are_filtered_sorted_and_counted(run: Path) -> None:
    app = open_page("features", filter="density<0.005 count>0", sort="density", order="down")
    shown = view(app, "table")["items"]
    index = FeatureIndex.open(run / "features" / "hostile")
    table = index.table[(index.table["density"] < 0.005) & (index.table["count"] > 0)]
    expected = table.sort_values("density", ascending=False, kind="stable")["id"].tolist()
    assert [item["id"] for item in shown] == expected
    assert f"{len(expected)} of 40 features" in said(app)


def test_a_wrong_filter_is_explained(run: Path) -> None:
    app = open_page("features", filter="densty>1")
    assert "Did you mean" in said(app)
    assert "density" in app.error[0].value
    assert not app.get("bidi_component")


def test_a_preset_adds_a_term_and_takes_it_out_again(run: Path) -> None:
    app = open_page("features", filter="density<0.5", page="2")
    app.get_by_key("preset").set_value("alive").run()
    assert app.query_params["filter"] == "density<0.5 count>0"
    assert "page" not in app.query_params
    app.get_by_key("preset").set_value("alive").run()
    assert app.query_params["filter"] == "density<0.5"
    check(app)


def test_a_deep_link_shows_the_feature_with_its_examples(run: Path) -> None:
    app = open_page("feature", feature="7", tab="quantiles", context="32")
    shown = view(app, "examples")
    index = FeatureIndex.open(run / "features" / "hostile")
    expected = index.examples(7, "quantiles", context=32)
    assert [item["row"] for item in shown["items"]] == [e.row for e in expected]
    assert shown["high"] == pytest.approx(index.table.loc[7, "max"])
    assert app.number_input(key="feature").value == 7


@pytest.mark.parametrize(("feature", "name"), [(4, "dead"), (5, "dense"), (7, "hostile")])
def test_every_kind_of_example(run: Path, feature: int, name: str) -> None:
    app = open_page("feature", feature=str(feature), context="full")
    for tab in ("top", "quantiles", "bin", "random", "near-miss"):
        app.query_params["tab"] = tab
        check(app.run())
        if name == "dead":
            assert "never fires" in said(app)
        elif tab == "near-miss":  # the other two fire wherever their tokens are
            assert "There are none" in said(app)
        else:
            assert view(app, "examples")["items"]


def test_near_misses_are_silent(run: Path) -> None:
    items = view(open_page("feature", feature="9", tab="near-miss"), "examples")["items"]
    assert items
    assert all(str(i["tokens"]["focus"]) not in i["tokens"]["at"] for i in items)


def test_the_chosen_bin_filters_the_examples(run: Path) -> None:
    index = FeatureIndex.open(run / "features" / "hostile")
    histogram = index.histogram(1)
    low, high = histogram.edges[5], histogram.edges[6]
    app = open_page("feature", feature="1", tab="bin", bin="5")
    acts = [item["activation"] for item in view(app, "examples")["items"]]
    assert acts
    assert all(low <= act < high for act in acts)


def test_a_feature_that_does_not_exist_is_told_with_the_range(run: Path) -> None:
    app = open_page("feature", feature="4000")
    assert "0 to 39" in app.error[0].value.replace("\\", "")
    app.button[0].click().run()
    assert check(app).number_input(key="feature").value == 0


@pytest.mark.parametrize("text", ["\n\n![x](https://evil.example/p.png)", "` $x$ :red[y]"])
def test_a_filter_of_the_address_is_shown_as_text(run: Path, text: str) -> None:
    expression = f'label:"{text}"'
    app = open_page("feature", feature="3", filter=expression)
    [shown] = [caption.value for caption in app.caption if "filter" in caption.value]
    assert f"filter {markdown(expression)}" in shown
    assert "\n" not in shown
    assert "![" not in shown


def test_a_note_that_cannot_be_saved_is_told_as_text(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("![x](https://evil.example/p.png) cannot be used now; try again.")

    monkeypatch.setattr(Notes, "star", refuse)
    app = open_page("feature", feature="3")
    app.button(key="star").click().run()
    check(app)
    [told] = [toast.value for toast in app.toast]
    assert "![" not in told
    assert told.endswith("try again\\.")


def test_a_run_that_is_not_there_is_told_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "![x](evil)"))
    app = check(AppTest.from_file(BROWSER, default_timeout=60).run())
    assert "![" not in app.error[0].value


def test_next_and_previous_stay_within_the_filter_and_go_round(run: Path) -> None:
    app = open_page("feature", feature="3", filter="3,8,20", bin="2")
    app.button(key="step-Right").click().run()
    assert app.query_params["feature"] == "8"
    assert "bin" not in app.query_params
    app.button(key="step-Left").click().run()
    app.button(key="step-Left").click().run()
    assert app.query_params["feature"] == "20"
    assert "3 of 3" in said(app)
    app.number_input(key="feature").set_value(11).run()
    assert "not among 3" in said(check(app))


def test_labels_stars_and_tags_are_kept_and_undone(run: Path) -> None:
    app = open_page("feature", feature="8")
    app.text_input(key="label-8").set_value("script *tags*").run()
    app.button(key="star").click().run()
    app.multiselect(key="tags-8").set_value(["danger"]).run()
    check(app)
    table = view(open_page("features", filter="starred"), "table")["items"]
    assert [(item["id"], item["label"], item["star"]) for item in table] == [
        (8, "script *tags*", True)
    ]
    assert table[0]["tags"] == ["danger"]
    app = open_page("feature", feature="8")
    assert r"script \*tags\*" in said(app)
    for _ in range(3):
        app.button(key="undo").click().run()
    assert "alert" in app.markdown[0].value
    notes = FeatureIndex.open(run / "features" / "hostile").notes
    assert notes.export_json()["features"] == {}


def test_malicious_labels_are_escaped(run: Path) -> None:
    notes = FeatureIndex.open(run / "features" / "hostile").notes
    notes.set_label(0, "<img src=x onerror=alert(1)> :red[x] $y$")
    app = open_page("feature", feature="0")
    head = next(m.value for m in app.markdown if "img" in m.value)
    assert head == r"## \<img src\=x onerror\=alert\(1\)\> \:red\[x\] \$y\$"


def test_the_feature_page_is_fast(run: Path) -> None:
    app = open_page("feature", feature="7")
    times = []
    for feature in (1, 3, 5, 9):
        app.query_params["feature"] = str(feature)
        start = time.perf_counter()
        app.run()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # 0.07 s on a free machine; the bound allows for a busy one


def test_the_prompt_page_reads_a_text(live_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(live_run))
    text = "He said <b>no</b>"
    app = open_page("prompt", coder="live", text=text)
    strip = view(app, "strip")["tokens"]
    assert "".join(strip["text"][1:]) == text
    assert len(strip["at"]) == len(text)  # an error for each token but BOS
    items = view(app, "token-features")["items"]
    assert len(items) == 4  # k
    assert [i["value"] for i in items] == sorted((i["value"] for i in items), reverse=True)
    heat = view(app, "heat")["items"]
    assert heat[0]["feature"] in {i["feature"] for i in heat}
    for rank in ("percentile", "surprise"):
        other = open_page("prompt", coder="live", text=text, rank=rank, density="0.1", token="3")
        check(other)
        assert view(other, "strip")["tokens"]["selected"] == 3


def test_without_weights_the_prompt_page_names_the_command(run: Path) -> None:
    assert "sae train" in said(open_page("prompt", text="a")).replace("\\", "")


def test_the_live_test_shows_this_feature(live_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(live_run))
    index = FeatureIndex.open(live_run / "features" / "live")
    feature = int(index.table["count"].argmax())
    app = open_page("feature", coder="live", feature=str(feature))
    app.session_state["live"] = True
    app.run()
    app.text_area(key="live-text").set_value("Who is there?").run()
    shown = view(check(app), "live-tokens")["tokens"]
    assert "".join(shown["text"][1:]) == "Who is there?"
    assert shown["at"]


def test_another_coder_forgets_the_feature(live_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(live_run))
    app = open_page("feature", coder="live", feature="40", bin="3", filter="density>0")
    app.selectbox(key="coder").set_value("hostile").run()
    check(app)
    assert app.query_params == {"filter": "density>0"}


def test_a_click_that_had_not_heard_of_the_last_change_does_not_undo_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends its URL with each click; two clicks in a row carry the same, old one."""
    app = open_page("feature", feature="3", filter="3,8,20")
    clock = itertools.count(0.0, 0.9 * state.PATIENCE)  # even if drawing takes very long
    monkeypatch.setattr(state.time, "monotonic", lambda: next(clock))
    app.button(key="step-Right").click().run()
    assert app.query_params["feature"] == "8"
    app.query_params["feature"] = "3"
    app.button(key="star").click().run()
    assert check(app).number_input(key="feature").value == 8
    assert app.query_params["feature"] == "8"


def test_a_link_to_an_older_address_works_once_the_change_was_heard_of(run: Path) -> None:
    app = open_page("feature", feature="3")
    app.button(key="step-Right").click().run()
    app.run()
    app.query_params["feature"] = "3"
    assert check(app.run()).number_input(key="feature").value == 3


def test_another_coder_under_the_same_name_is_refused(
    live_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(live_run, folder)
    meta = folder / "features" / "live" / "index.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"coder_hash": "0" * 64}))
    (meta.parent / "SHA256SUMS").unlink()  # which would tell of the change first
    monkeypatch.setenv(ENVIRONMENT, str(folder))
    assert "is not the one" in said(open_page("prompt", coder="live", text="a"))


def add_scorecard(run: Path) -> FeatureIndex:
    """A scorecard whose ablation effect is the feature's number, of features that ever fire."""
    index = FeatureIndex.open(run / "features" / "hostile")
    ids = np.arange(index.width, dtype=np.float64)
    fires = index.table["count"].to_numpy() > 0
    effect = np.where(fires, ids / 1000, np.nan)
    measured = {
        "seed_replicated": pd.array([bool(i % 2) for i in range(index.width)], "boolean"),
        "seed_decoder_cosine": ids / 100,
        "seed_encoder_cosine": ids / 100,
        "seed_coders": 2,
        "ablation_kl": effect,
        "ablation_kl_error": effect / 10,
        "ablation_delta_ce": -effect,
        "ablation_delta_ce_error": effect / 10,
        "ablation_tokens": np.where(fires, 16, 0),
    }
    write_scorecard(index, pd.DataFrame(measured), {})
    seal(index.folder, [SCORECARD])
    return FeatureIndex.open(index.folder)


def test_the_table_shows_and_sorts_the_scorecard(run: Path) -> None:
    index = add_scorecard(run)
    app = open_page("features", sort="ablation_kl", order="down")
    table = view(app, "table")
    named = {column["name"]: column for column in table["columns"]}
    for name in ("label_score", "specificity", "sensitivity", "seed_replicated", "ablation_kl"):
        assert named[name]["sortable"]
        assert COLUMNS[name].meaning in named[name]["hint"]
    shown = [item["id"] for item in table["items"]]
    assert shown == [*range(39, 4, -1), *range(3, -1, -1), 4]  # the dead one has no effect
    first, last = table["items"][0], table["items"][-1]
    assert (first["ablation_kl"], first["ablation_delta_ce"]) == ("0.039", "-0.039")
    assert (first["seed_replicated"], last["ablation_kl"]) == ("yes", "–")
    assert first["specificity"] == f"{index.table['specificity'][39]:.2f}"
    assert "sae scorecard" not in said(app)
    ids = [
        i["id"] for i in view(open_page("features", filter="ablation_kl>0.03"), "table")["items"]
    ]
    assert ids == list(range(31, 40))


def test_a_feature_shows_its_scorecard_with_what_each_number_means(run: Path) -> None:
    add_scorecard(run)
    items = view(open_page("feature", feature="7"), "scorecard")["items"]
    facts = {name: (value, hint) for name, value, hint in items}
    assert facts["ablation KL"][0] == "0.0070"
    assert "Standard error 0.00070" in facts["ablation KL"][1]
    assert "Rests on 16 tokens" in facts["ablation KL"][1]
    assert facts["other seeds"][0] == "yes"
    assert COLUMNS["sensitivity"].meaning in facts["sensitivity"][1]
    assert "Rests on" in facts["specificity"][1]


def test_without_a_scorecard_the_pages_name_the_command(run: Path) -> None:
    app = open_page("features", sort="ablation_kl", order="down")
    names = [column["name"] for column in view(app, "table")["columns"]]
    assert "specificity" in names  # the index knows it
    assert "ablation_kl" not in names
    assert [item["id"] for item in view(app, "table")["items"]] == list(range(39, -1, -1))
    assert f"sae scorecard {run}" in said(app)
    app = open_page("feature", feature="7")
    assert [name for name, _, _ in view(app, "scorecard")["items"]][-1] == "sensitivity"
    assert f"sae scorecard {run}" in said(app)
    assert "sae scorecard" in open_page("features", filter="ablation_kl>1").error[0].value
    add_scorecard(run)  # while the browser runs
    assert f"sae scorecard {run}" not in said(open_page("feature", feature="7"))


def test_a_users_label_has_no_specificity(run: Path) -> None:
    FeatureIndex.open(run / "features" / "hostile").notes.set_label(0, "mine")
    item = view(open_page("features", filter="0"), "table")["items"][0]
    assert (item["label_score"], item["specificity"], item["sensitivity"]) == ("–", "–", "–")


def test_what_a_language_model_said_is_shown_as_text(run: Path) -> None:
    index = FeatureIndex.open(run / "features" / "hostile")
    side = {test: {"balanced_accuracy": 0.875} for test in ("detection", "fuzzing")}
    record = {"explanation": "<b>verbs</b> :red[of] saying", **side, "shuffled": side}
    report: dict[str, Any] = {
        "settings": {"coder_hash": index.meta["coder_hash"], "model": "m`1`"},
        "features": {"0": record, "1": {**record, "explanation": None}},
    }
    file = run / "evaluation" / "mechanisms" / "hostile.explanations.json"
    file.parent.mkdir()
    file.write_text(json.dumps(report))
    shown = said(open_page("feature", feature="0"))
    assert r"\<b\>verbs\<\/b\> \:red\[of\] saying" in shown
    assert "detection 0.88, another's 0.88" in shown
    assert r"m\`1\`" in shown
    assert "another's" not in said(open_page("feature", feature="1"))
    report["settings"]["coder_hash"] = "0" * 64  # of weights that are no more
    file.write_text(json.dumps(report))
    assert "another's" not in said(open_page("feature", feature="0"))
    file.write_text("{")
    assert "another's" not in said(open_page("feature", feature="0"))


@pytest.mark.parametrize(
    ("file", "page"), [("rows.npy", "feature"), ("features.parquet", "features")]
)
def test_a_damaged_file_is_a_sentence_on_the_page(run: Path, file: str, page: str) -> None:
    with Damage(run / "features" / "hostile" / file, "cut", 0.5):
        shown = said(open_page(page, feature="0")).replace("\\", "")  # which keep it text
    assert f"{file} is damaged" in shown, shown


def test_a_changed_evaluation_is_a_sentence_on_the_page(run: Path) -> None:
    seal(run / "evaluation", ["hostile.json"])
    file = run / "evaluation" / "hostile.json"
    file.write_text(file.read_text().replace("0.912", "0.999"))
    shown = said(open_page("overview")).replace("\\", "")
    assert "hostile.json is damaged" in shown
    assert "0.999" not in shown
