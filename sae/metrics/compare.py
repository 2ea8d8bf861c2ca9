"""The comparison of several evaluated coders: `comparison.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.base.errors import UserError
from sae.metrics.front import Point, behind, front, levels, matched, mean_entry

SCHEMA = 1
ERRORS = ("fvu", "delta_ce")  # of each, lower is better
SHOWN = ("l0", "fvu", "delta_ce", "ev", "kl", "alive")

Evaluation = Mapping[str, Any]
Curve = tuple[str, int]  # family, seed


def compare(
    evaluations: Mapping[str, Evaluation], curves: Mapping[str, Curve] | None = None
) -> dict[str, Any]:
    """Pareto fronts and matched errors of coders (name -> evaluation, as `evaluate` returns it).

    `curves` (name -> (family, seed)) says which coders differ in sparsity alone, and so lie on
    one curve, and which curves differ in their seed alone, and so make a family; without it each
    coder stands for itself. Coders that read or predict different sites, or were scored on
    different text, are never ranked against each other: each such group is an element of
    `groups`. The JSON is described in docs/metrics.md. Raises `UserError` if there is nothing to
    compare.
    """
    if not evaluations:
        raise UserError("There is no evaluation to compare; run `sae evaluate` first.")
    groups: dict[tuple[Any, ...], dict[str, Evaluation]] = {}
    for name, evaluation in evaluations.items():
        groups.setdefault(_scored_on(evaluation), {})[name] = evaluation
    own = {name: (curves or {}).get(name, (name, 0)) for name in evaluations}
    return {"schema": SCHEMA, "groups": [_group(found, own) for found in groups.values()]}


def _scored_on(evaluation: Evaluation) -> tuple[Any, ...]:
    """What two evaluations must share so that their errors can be ranked."""
    p = evaluation["provenance"]
    corpus = p["store"].get("corpus", {}).get("hash")
    sites = p["coder"]["site"], p["coder"]["target_site"]
    return *sites, p["model"]["hash"], corpus, p["store"]["split"], p["tokens"], p["loss_tokens"]


def _group(evaluations: Mapping[str, Evaluation], curves: Mapping[str, Curve]) -> dict[str, Any]:
    first = next(iter(evaluations.values()))["provenance"]
    points = {error: _points(evaluations, error) for error in ERRORS}
    return {
        "site": first["coder"]["site"],
        "target_site": first["coder"]["target_site"],
        "model": first["model"]["name"],
        "tokens": first["tokens"],
        "loss_tokens": first["loss_tokens"],
        "coders": {
            name: {
                "family": curves[name][0],
                "seed": curves[name][1],
                "architecture": found["provenance"]["coder"]["architecture"],
                "d_sae": found["provenance"]["coder"]["d_sae"],
                **{key: found["metrics"][key] for key in SHOWN},
            }
            for name, found in evaluations.items()
        },
        "fronts": {error: front(points[error]) for error in ERRORS},
        "behind": {error: behind(points[error]) for error in ERRORS},
        "matched": {error: _matched(points[error], curves) for error in ERRORS},
    }


def _points(evaluations: Mapping[str, Evaluation], error: str) -> dict[str, Point]:
    """Coders whose L0 and error exist (a ratio with an empty denominator does not)."""
    found = {name: (e["metrics"]["l0"], e["metrics"][error]) for name, e in evaluations.items()}
    return {name: point for name, point in found.items() if None not in (p["value"] for p in point)}


def _matched(points: Mapping[str, Point], curves: Mapping[str, Curve]) -> dict[str, Any]:
    """Each family's error at common L0s; one element of a family's list per L0, null outside."""
    families: dict[str, dict[int, list[Point]]] = {}
    for name, point in points.items():
        family, seed = curves[name]
        families.setdefault(family, {}).setdefault(seed, []).append(point)
    common = levels([curve for seeds in families.values() for curve in seeds.values()])
    return {
        "l0": common,
        "families": {
            family: [_over_seeds([matched(curve, l0) for curve in seeds.values()]) for l0 in common]
            for family, seeds in families.items()
        },
    }


def _over_seeds(found: Sequence[Mapping[str, float | None] | None]) -> dict[str, Any] | None:
    """Means over the seeds whose curves reach the L0; the values themselves in `seeds`, and how
    many of how many seeds that are.
    """
    reached = [entry for entry in found if entry is not None]
    if not reached:
        return None
    seeds = [entry["value"] for entry in reached]
    return {**mean_entry(reached), "seeds": seeds, "reached": len(reached), "of": len(found)}
