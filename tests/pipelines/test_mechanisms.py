"""Mechanisms and concepts of a trained coder, from the command to the file."""

from pathlib import Path

import pytest

from pipelines.cli import main as sae
from sae.base.files import read_json
from sae.base.sums import problems_of
from tests.conftest import tiny_settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("mechanisms") / "run"
    settings = tiny_settings(folder, tiny_folder, tiny_corpus)
    for stage in ("harvest", "train"):
        sae(["run", *settings, "--only", stage])
        settings = [str(folder)]
    return folder


def test_concepts_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sae(["mechanisms", "concepts", str(run), "--tokens", "5000"])
    report = read_json(run / "evaluation/mechanisms/topk.concepts.json")
    assert "digits" in report["probing"]
    assert set(report["controls"]) == {"random_dictionary"}
    whole = report["probing"]["digits"]["whole"]
    assert whole["low"] > 0.6  # tokens are in the residual stream of any model, trained or not
    assert "digits" in capsys.readouterr().out
    assert problems_of(run / "evaluation") == []


def test_a_random_model_has_no_induction_to_remove(run: Path) -> None:
    sae(["mechanisms", "induction", str(run), "--sequences", "8"])
    report = read_json(run / "evaluation/mechanisms/topk.induction.json")
    clean = report["clean"]
    assert clean["loss_first"]["value"] == pytest.approx(clean["loss_second"]["value"], abs=0.2)
    for row in report["ablations"]:
        assert abs(row["features"]["delta_second"]["value"]) < 0.2


def test_a_coder_that_is_not_there_is_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        sae(["mechanisms", "induction", str(run), "--coder", "tpok"])
    assert stopped.value.code == 2
    assert "tpok" in capsys.readouterr().err
