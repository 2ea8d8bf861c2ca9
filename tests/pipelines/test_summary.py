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
    assert f"{evaluation['ladder']['ev']['coder']:.3f}" in lines[at]
    assert "pca" in lines[at + 1]
    evaluation["controls"] = {}
    (copy / "evaluation" / "topk.json").write_text(json.dumps(evaluation))
    with pytest.raises(UserError, match=r"topk.json is damaged"):
        summary(copy)
    seal(copy / "evaluation", ["topk.json"])
    assert "tokens:" not in "\n".join(summary(copy))
