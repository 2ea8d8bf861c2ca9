"""Stage compare: the report of all evaluated coders, their Pareto front, errors at equal L0, and
what coders of other seeds and widths have in common.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pipelines.config import CoderConfig, RunConfig
from pipelines.progress import progress
from pipelines.sweep import SIZES, family_name
from sae.base.files import sha256_json, write_json, write_text
from sae.base.foreign import reading
from sae.base.results import read_evaluation
from sae.base.sums import require_intact
from sae.coders import load_coder
from sae.metrics.compare import compare
from sae.metrics.report import write_comparison, write_report
from sae.metrics.stability import stability
from sae.metrics.table import core_table

DIFFER = {"seed": ("seed",), "width": SIZES}  # the keys in which the two coders of a pair differ


def run(config: RunConfig) -> dict[str, Any]:
    """Writes `report.html` into `evaluation/`, and `comparison.json`, `.html`, `core.csv` into
    `evaluation/compare/`.
    """
    folder = config.folder / "evaluation"
    coders = config.train.coders
    require_intact(folder, [f"{coder.name}.json" for coder in coders])
    evaluations = {coder.name: read_evaluation(folder / f"{coder.name}.json") for coder in coders}
    with reading(f"What lies in {folder}", "run `sae evaluate` again"):
        write_report(evaluations, folder / "report.html")
        found = compare(evaluations, {c.name: (family_name(c), c.seed) for c in coders})
    found["stability"] = _stability(config)
    write_json(folder / "compare" / "comparison.json", found)
    write_comparison(found, folder / "compare" / "comparison.html")
    write_text(folder / "compare" / "core.csv", core_table(evaluations, config.folder.name))
    return {"coders": len(coders), "groups": len(found["groups"])}


def pairs(coders: Sequence[CoderConfig]) -> list[tuple[str, str, str]]:
    """(a, b, what they differ in): neighbours among coders that are alike in all else."""
    found = []
    for what, keys in DIFFER.items():
        alike: dict[str, list[CoderConfig]] = {}
        for coder in coders:
            key = sha256_json(coder.model_dump(mode="json", exclude={"name", *keys}))
            alike.setdefault(key, []).append(coder)
        for group in alike.values():
            ordered = sorted(group, key=lambda c: [getattr(c, key) or 0 for key in keys])
            found += [(a.name, b.name, what) for a, b in pairwise(ordered)]
    return found


def _stability(config: RunConfig) -> list[dict[str, Any]]:
    wanted, found = pairs(config.train.coders), []
    if not wanted:
        return []
    with progress("compare: stability", len(wanted), unit="pairs") as update:
        for done, (a, b, what) in enumerate(wanted, 1):
            one, other = (load_coder(config.coder_folder(name)) for name in (a, b))
            found.append({"a": a, "b": b, "differ": what, **stability(one, other)})
            update(done)
    return found
