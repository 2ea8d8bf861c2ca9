"""Mechanisms and concepts of a trained coder, from the command to the file."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main as sae
from pipelines.mechanisms import Subject, concepts, induction
from pipelines.progress import with_interval
from pipelines.verify import verify
from sae.base.files import read_json
from sae.coders import coder_hash, load_coder
from tests.conftest import tiny_settings
from tests.damage import Damage


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
    assert set(report["controls"]) == {"random_dictionary", "train_rows"}
    whole = report["probing"]["digits"]["whole"]
    assert whole["low"] > 0.6  # tokens are in the residual stream of any model, trained or not
    said = " ".join(capsys.readouterr().out.split())
    assert "digits" in said
    assert f"Left out are {len(report['left_out'])} concepts" in said
    assert "none parses whole" in said  # text files: nothing says what is Python
    assert report["provenance"]["store"]["corpus"]
    require_provenance(report, run)
    page = (run / "evaluation/mechanisms/topk.concepts.html").read_text()
    assert with_interval(report["probing"]["digits"]["coder"]["k5"]) in page
    assert f"{whole['value']:.3f}" in page
    assert "0.5 is guessing" in page
    assert ">undecided</th>" in page


def require_provenance(report: dict[str, Any], run: Path) -> None:
    """Of the form that an evaluation has: what was measured, of what model, how."""
    said = report["provenance"]
    assert said["coder"]["hash"] == coder_hash(run / "coders" / "topk")
    coder = load_coder(run / "coders" / "topk")
    assert said["model"]["hash"] == coder.metadata["loupe"]["model"]["hash"]
    assert {"seed", "versions", "command", "created", "seconds"} <= set(said)


def test_reports_are_sealed_and_go_with_their_coder(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    sae(["mechanisms", "induction", str(copy), "--sequences", "8"])
    file = copy / "evaluation" / "mechanisms" / "topk.induction.json"
    page = file.with_suffix(".html")
    assert page.exists()
    for part in (copy, copy / "evaluation", file):
        assert verify(part) == []
    with Damage(file, "flip", 0.5):
        for part in (copy, copy / "evaluation", file):
            assert [problem for problem in verify(part) if file.name in problem]
    sae(["evaluate", str(copy)])
    assert file.exists()  # it is of this coder
    sae(["train", str(copy), "train.seed=9"])
    sae(["evaluate", str(copy)])
    assert not file.exists()
    assert not page.exists()
    assert verify(copy) == []


def test_progress_is_told_to_the_end(run: Path) -> None:
    of, told = Subject.open(run, "topk"), dict[str, tuple[int, int]]()

    def note(what: str, done: int, total: int) -> None:
        assert told.get(what, (0, 0))[0] <= done <= total
        told[what] = (done, total)

    concepts(of, 5000, 0, note)
    induction(of, 8, 0, note)
    assert {"concepts of the coder", "codes of the random_dictionary", "search"} <= set(told)
    assert all(done == total for done, total in told.values()), told


def test_a_random_model_has_no_induction_to_remove(run: Path) -> None:
    sae(["mechanisms", "induction", str(run), "--sequences", "8"])
    report = read_json(run / "evaluation/mechanisms/topk.induction.json")
    clean = report["clean"]
    assert clean["loss_first"]["value"] == pytest.approx(clean["loss_second"]["value"], abs=0.2)
    for row in report["ablations"]:
        assert abs(row["features"]["delta_second"]["value"]) < 0.2


def test_a_page_is_no_place_for_the_numbers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        sae(["mechanisms", "induction", str(run), "--out", str(tmp_path / "a.html")])
    assert stopped.value.code == 2
    assert "a JSON file" in capsys.readouterr().err


def test_a_coder_that_is_not_there_is_one_sentence(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        sae(["mechanisms", "induction", str(run), "--coder", "tpok"])
    assert stopped.value.code == 2
    assert "tpok" in capsys.readouterr().err
