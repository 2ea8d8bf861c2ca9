"""The datasets of `sae-probes`, or a folder like them, through our own probes."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest

from sae.base.errors import UserError
from sae.coders import Coder, make_coder
from sae.lm import LanguageModel, load_lm
from sae.metrics.probe_sets import last_tokens, probe_set_report, probe_sets, read_set

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_lm("pocket", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def coder(lm: LanguageModel) -> Coder:
    coder = make_coder("topk", lm.d_model, 256, k=16)
    coder.metadata = {"hook_name": SITE}
    return coder.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    words = ["river", "house", "garden", "letter", "morning", "captain"]
    openings = [" ".join(rng.choice(words, 5)) for _ in range(400)]
    digits = [str(n) for n in rng.integers(10, 99, 400)]
    rows = [
        (f"{o} {d if i % 2 else 'friend'}", i % 2)
        for i, (o, d) in enumerate(zip(openings, digits, strict=True))
    ]
    pandas.DataFrame(rows, columns=["prompt", "target"]).to_csv(folder / "1_digit.csv", index=False)
    three = [(o, i % 3) for i, o in enumerate(openings)]
    pandas.DataFrame(three, columns=["prompt", "target"]).to_csv(
        folder / "2_three.csv", index=False
    )
    return folder


def test_what_the_last_token_is_can_be_read_and_other_sets_are_left_out(
    coder: Coder, lm: LanguageModel, folder: Path
) -> None:
    other = make_coder("topk", lm.d_model, 64, k=4).requires_grad_(False).eval()
    controls = {"other": other, "same": coder}
    report = probe_set_report(coder, lm, folder=folder, texts=400, controls=controls)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report["probing"]) == {"1_digit"}
    assert report["left_out"] == ["2_three"]
    assert report["mean"]["whole"] > 0.95
    own, against = report["probing"]["1_digit"], report["against_controls"]
    for side in ("coder", "dimensions"):
        assert report["mean"][side]["k1"] == own[side]["k1"]["value"]
    same, others = (report["controls"][name] for name in ("same", "other"))
    assert same["probing"]["1_digit"]["coder"] == own["coder"]
    assert same["mean"]["coder"] == report["mean"]["coder"]
    assert set(others["probing"]["1_digit"]) == {"positives", "latents", "coder"}
    assert set(against) == {"1_digit k1", "1_digit k2", "1_digit k5"}
    for found in against.values():
        assert "same" in found["won_by"]
        assert set(found["lift"]) == {"same", "other", "dimensions"}


def test_long_texts_lose_their_beginning_and_padding_is_not_seen(
    coder: Coder, lm: LanguageModel
) -> None:
    long = "The captain read a letter. " * 200
    alone = last_tokens(coder, lm, ["A house"], "x", np.ones(1, np.int8))
    beside = last_tokens(coder, lm, ["A house", long], "x", np.ones(2, np.int8))
    assert beside.x_ED[0] == pytest.approx(alone.x_ED[0], abs=1e-3)


def test_as_many_texts_of_either_target(folder: Path) -> None:
    prompts, label_E = read_set(folder / "1_digit.csv", 100, seed=0)
    assert len(prompts) == 100
    assert label_E.sum() == 50
    assert all(
        text[-1].isdigit() == bool(label) for text, label in zip(prompts, label_E, strict=True)
    )


def test_what_is_not_there_is_said(
    coder: Coder, lm: LanguageModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"1_digt.*1_digit"):
        probe_set_report(coder, lm, ["1_digt"], folder=folder)
    with pytest.raises(UserError, match="holds no"):
        probe_sets(tmp_path)
    monkeypatch.setattr("sae.metrics.probe_sets.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps sae-probes"):
        probe_sets()
