"""The table at the end of a run: no number without what it rests on."""

import json
from pathlib import Path

import pytest

from pipelines.config import RunConfig
from pipelines.progress import console, human_count
from pipelines.summary import print_summary
from sae.base.config import load_config
from sae.base.errors import UserError
from sae.base.sums import seal


def summary(run: Path) -> list[str]:
    config = load_config(RunConfig, run / "run.yaml", [f"folder={run}"])
    with console.capture() as captured:
        print_summary(config)
    return captured.get().splitlines()


@pytest.fixture
def evaluation(copy: Path) -> dict:
    return json.loads((copy / "evaluation" / "topk.json").read_text())


def test_alive_is_printed_with_its_tokens(copy: Path, evaluation: dict) -> None:
    table = [line.replace("┃", "│").split("│") for line in summary(copy)]
    heading = next([c.strip() for c in line] for line in table if "alive(N)" in "".join(line))
    tokens = human_count(evaluation["metrics"]["alive"]["tokens"])
    row = next(line for line in table if len(line) > 2 and line[1].strip() == "topk")
    assert row[heading.index("N")].strip() == tokens


def test_controls_stand_under_the_coder_on_their_own_tokens(copy: Path, evaluation: dict) -> None:
    """They are scored on fewer tokens than the coder's row above them is of."""
    lines = summary(copy)
    pca = evaluation["controls"]["pca"]
    tokens, losses = (human_count(pca[name]["tokens"]) for name in ("ev", "delta_ce"))
    said = f"on {tokens}, losses {losses} tokens:"
    at = next(i for i, line in enumerate(lines) if said in line)
    own = evaluation["coder_beside_controls"]
    shown = [cell.strip(" !") for cell in lines[at].split("│")[2:-1]]
    assert shown[:2] == [f"{own['ev']['value']:.3f}", f"{own['l0']['value']:.1f}"]
    assert "pca" in lines[at + 1]
    evaluation["controls"] = {}
    (copy / "evaluation" / "topk.json").write_text(json.dumps(evaluation))
    with pytest.raises(UserError, match=r"topk.json is damaged"):
        summary(copy)
    seal(copy / "evaluation", ["topk.json"])
    assert "tokens:" not in "\n".join(summary(copy))


def test_a_number_that_a_control_wins_is_marked_with_its_name(copy: Path, evaluation: dict) -> None:
    for rung in evaluation["ladder"].values():
        rung["won_by"] = []
    evaluation["metrics"]["fvu"].update(low=0.1, high=None)  # an end that does not exist
    path = copy / "evaluation" / "topk.json"

    def written() -> list[str]:
        path.write_text(json.dumps(evaluation))
        seal(copy / "evaluation", ["topk.json"])
        return summary(copy)

    assert "!" not in "\n".join(written())
    evaluation["ladder"]["ev"]["won_by"] = ["pca"]
    evaluation["ladder"]["kl"]["won_by"] = ["raw_neurons"]  # which the table does not show
    lines = written()
    marked = [line.split("│")[1].strip() for line in lines if "│" in line and "!" in line]
    assert [name for name in marked if "tokens" not in name] == ["topk", "pca"]
    assert "! A control is as good as topk or better: EV (pca)" in lines
