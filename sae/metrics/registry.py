"""Every number that Loupe reports: its name, formula, unit and which way is better, in one list.

A metric is a function of sums over tokens; its formula is the first line of its docstring.
The same list fills the `"formulas"` key of an evaluation, `docs/metrics.md` and the report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sae.metrics.sums import Sums

Group = Literal[
    "reconstruction", "codes", "sparsity", "fidelity", "error", "geometry", "comparison"
]
Better = Literal["higher", "lower", "neither"]
Compute = Callable[[Sums], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """One number. `compute` maps sums (R resamples) to values (R,).

    `count` names the sum that says how many tokens the number rests on. `recentred`: the
    bootstrap of a count of distinct things is biased downwards (a resample holds only 63 % of
    the documents), so its interval is moved to have the value as its mean.
    """

    name: str
    group: Group
    formula: str
    meaning: str
    unit: str
    better: Better
    compute: Compute
    count: str = "count"
    recentred: bool = False


REGISTRY: dict[str, Metric] = {}


def metric(
    group: Group,
    unit: str,
    better: Better = "neither",
    count: str = "count",
    recentred: bool = False,
) -> Callable[[Compute], Compute]:
    """Registers a function under its own name; its docstring is the formula, then the meaning."""

    def register(compute: Compute) -> Compute:
        name = compute.__name__  # pyright: ignore[reportFunctionMemberAccess]
        formula, _, rest = (compute.__doc__ or "").strip().partition("\n")
        REGISTRY[name] = Metric(
            name=name,
            group=group,
            formula=formula.strip().rstrip("."),
            meaning=" ".join(rest.split()),
            unit=unit,
            better=better,
            compute=compute,
            count=count,
            recentred=recentred,
        )
        return compute

    return register


def metrics_of(*groups: Group) -> list[Metric]:
    """The metrics of some groups, or of all; in one order, whatever was imported first."""
    wanted = groups or get_args(Group)
    ordered = sorted(REGISTRY.values(), key=lambda m: get_args(Group).index(m.group))
    return [m for m in ordered if m.group in wanted]


def formulas() -> dict[str, dict[str, str]]:
    """The `"formulas"` key of an evaluation: name -> formula, meaning, unit, better."""
    return {
        m.name: {"formula": m.formula, "meaning": m.meaning, "unit": m.unit, "better": m.better}
        for m in metrics_of()
    }


def markdown_table() -> str:
    """The table of `docs/metrics.md`."""
    lines = ["| name | formula | unit | better | meaning |", "|---|---|---|---|---|"]
    for m in metrics_of():
        cells = (f"`{m.name}`", m.formula, m.unit, m.better, m.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
