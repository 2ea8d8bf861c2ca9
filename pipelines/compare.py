"""Stage compare: the page that leads to those of the coders, their Pareto front, errors at equal
L0, and what coders of other seeds and widths have in common.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

from pipelines.alike import SEED, alike
from pipelines.begin import Begin, nothing
from pipelines.config import CoderConfig, RunConfig
from pipelines.progress import progress
from pipelines.results import folder_of, require_current
from pipelines.sweep import SIZES, family_name
from sae.base.files import write_json, write_text
from sae.base.foreign import reading
from sae.base.results import read_evaluation
from sae.coders import load_coder
from sae.metrics.compare import compare
from sae.metrics.report import write_comparison, write_report_index
from sae.metrics.sample import draw
from sae.metrics.stability import firing, stability
from sae.metrics.table import core_table
from sae.store import ActivationStore

DIFFER = {"seed": SEED, "width": SIZES}  # the keys in which the two coders of a pair differ
ALIVE_TOKENS = 131_072  # held-out tokens on which a latent must fire to be matched


def run(config: RunConfig, begin: Begin = nothing) -> dict[str, Any]:
    """Writes `report.html`, which leads to the coders' pages, into `evaluation/`, and
    `comparison.json`, `.html`, `core.csv` into `evaluation/compare/`.
    """
    folder, coders = folder_of(config), config.train.coders
    require_current(config, [coder.name for coder in coders])
    begin()
    evaluations = {coder.name: read_evaluation(folder / f"{coder.name}.json") for coder in coders}
    with reading(f"What lies in {folder}", "run `sae evaluate` again"):
        write_report_index(evaluations, folder / "report.html", "compare/comparison.html")
        found = compare(evaluations, {c.name: (family_name(c), c.seed) for c in coders})
    found["stability"] = _stability(config, evaluations)
    write_json(folder / "compare" / "comparison.json", found)
    write_comparison(found, folder / "compare" / "comparison.html")
    write_text(folder / "compare" / "core.csv", core_table(evaluations, config.folder.name))
    return {"coders": len(coders), "groups": len(found["groups"])}


def pairs(coders: Sequence[CoderConfig]) -> list[tuple[str, str, str]]:
    """(a, b, what they differ in) of coders that are alike in all else: all pairs of seeds,
    neighbours among widths.
    """
    found = []
    for what, keys in DIFFER.items():
        for group in alike(coders, keys):
            ordered = sorted(group, key=lambda c: [getattr(c, key) or 0 for key in keys])
            chosen = combinations(ordered, 2) if what == "seed" else pairwise(ordered)
            found += [(a.name, b.name, what) for a, b in chosen]
    return found


def never_scored(evaluations: Mapping[str, Mapping[str, Any]]) -> set[int]:
    """Ids of BOS, EOS and PAD, as the evaluations name them: here no model is loaded."""
    with reading("The list of tokens that are never scored", "run `sae evaluate` again"):
        return {int(i) for e in evaluations.values() for i in e["provenance"]["special"]}


def _stability(
    config: RunConfig, evaluations: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    wanted, found = pairs(config.train.coders), []
    if not wanted:
        return []
    store = ActivationStore.open(config.store)
    sample = draw(store, "heldout", ALIVE_TOKENS, never_scored(evaluations))
    alive: dict[str, Any] = {}
    with progress("compare: stability", len(wanted), unit="pairs") as update:
        for done, (a, b, what) in enumerate(wanted, 1):
            one, other = (load_coder(config.coder_folder(name)) for name in (a, b))
            for name, coder in ((a, one), (b, other)):
                if name not in alive:
                    alive[name] = firing(coder, sample)
            measured = stability(one, other, (alive[a], alive[b]))
            counts = {"tokens": sample.tokens, "a": int(alive[a].sum()), "b": int(alive[b].sum())}
            found.append({"a": a, "b": b, "differ": what, **measured, "alive": counts})
            update(done)
    return found
