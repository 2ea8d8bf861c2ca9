"""Reports of explaining runs, read back."""

import json
from pathlib import Path

import pytest

from sae.base.errors import UserError
from sae.base.sums import seal
from sae.explain.report import read_explanations, records_before, report_path


def test_a_changed_report_is_not_gone_on_with(tmp_path: Path) -> None:
    side = {test: {"balanced_accuracy": 0.5} for test in ("detection", "fuzzing")}
    record = {"explanation": "verbs", "unscored": False, **side, "shuffled": side}
    settings = {"coder_hash": "c", "model": "m"}
    path = report_path(tmp_path, "topk")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"settings": settings, "features": {"3": record}}))
    seal(tmp_path / "evaluation", [f"mechanisms/{path.name}"])
    assert records_before(path, settings) == {3: record}
    assert set(read_explanations(path, "c")) == {3}
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(UserError, match="not what was written; delete it"):
        records_before(path, settings)
    assert read_explanations(path, "c") == {}
