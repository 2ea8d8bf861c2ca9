"""Stage compare: the report of all evaluated coders, their Pareto front, errors at equal L0."""

from typing import Any

from pipelines.config import RunConfig
from pipelines.sweep import family_name
from sae.base.files import read_json, write_json
from sae.base.sums import require_intact
from sae.metrics.compare import compare
from sae.metrics.report import write_comparison, write_report


def run(config: RunConfig) -> dict[str, Any]:
    """Writes `evaluation/report.html`, and `comparison.json` and `.html` in `compare/` there."""
    folder = config.folder / "evaluation"
    coders = config.train.coders
    require_intact(folder, [f"{coder.name}.json" for coder in coders])
    evaluations = {coder.name: read_json(folder / f"{coder.name}.json") for coder in coders}
    write_report(evaluations, folder / "report.html")
    found = compare(evaluations, {c.name: (family_name(c), c.seed) for c in coders})
    write_json(folder / "compare" / "comparison.json", found)
    write_comparison(found, folder / "compare" / "comparison.html")
    return {"coders": len(coders), "groups": len(found["groups"])}
