"""Figures of where a coder's error comes from; style and colours are those of `plots`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from sae.metrics.plots import FAINT, INK, SERIES, STYLE, as_svg, canvas, plain, spread


def budget(
    parts: Mapping[str, float | None],
    intervals: Mapping[str, Sequence[float | None]],
    names: Mapping[str, str],
) -> str:
    """One bar per part of FVU, in shares of it, with its interval; those below 0 point left."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.4, 0.7 + 0.36 * len(parts))
        for y, (part, value) in enumerate(parts.items()):
            share = value or 0.0
            colour = SERIES[2] if part == "rest" else SERIES[0]
            low, high = intervals[part]
            axes.barh([y], [share], color=colour, height=0.62)
            around = np.array(spread({"value": share, "low": low, "high": high}))[:, None]
            axes.errorbar([share], [y], xerr=around, color=INK, capsize=3, lw=1.2, fmt="none")
            axes.annotate(
                f"{share:.1%}" if value is not None else "no value",
                (max(0.0, share, high or 0.0), y),
                textcoords="offset points",
                xytext=(5, 0),
                va="center",
                fontsize=9,
            )
        axes.axvline(0, color=FAINT, lw=1)
        axes.set_yticks(range(len(parts)), [plain(names.get(part, part)) for part in parts])
        axes.set_ylim(len(parts) - 0.5, -0.5)
        axes.margins(x=0.14)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of FVU")
        return as_svg(figure, "Parts of the unexplained variance")


def groups(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """ΔCE of each group of predictions with its interval; the dot's area is the group's share."""
    rows = [row for row in rows if row["delta_ce"]["value"] is not None]
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.4, 0.7 + 0.34 * max(1, len(rows)))
        for y, row in enumerate(rows):
            entry = row["delta_ce"]
            around = np.array(spread(entry))[:, None]
            axes.errorbar([entry["value"]], [y], xerr=around, color=SERIES[0], capsize=3, lw=2)
            axes.scatter([entry["value"]], [y], s=20 + 380 * row["share"], color=SERIES[0])
        axes.axvline(0, color=FAINT, lw=1)
        names = [f"{row['group']}  ({row['share']:.0%})" for row in rows]
        axes.set_yticks(range(len(rows)), [plain(name) for name in names])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ΔCE: nats lost per token")
        return as_svg(figure, label)
