"""The report's figures: matplotlib, written as inline SVG whose colours are those of the page.

Figures are drawn in marker colours that are then replaced by CSS variables, so that one SVG
reads well on light and on dark pages. Imported by the report alone, when a report is written.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, FAINT = "#010101", "#020202"
SERIES = tuple(f"#03030{i}" for i in range(6))
VARIABLES = {
    INK: "currentColor",
    FAINT: "var(--line)",
    **{c: f"var(--series-{i})" for i, c in enumerate(SERIES)},
}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "loupe",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=SERIES),
}
MARKERS = "os^D"
NAMED = 8  # coders whose names all fit into a figure
LEGEND_LINE = 0.19  # inches of height
Entry = Mapping[str, Any]


def count(value: float) -> str:
    """`1_000_000` -> `"1 M"`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def as_svg(figure: Figure, title: str) -> str:
    """The SVG element, transparent, themed, and named for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    for marker, variable in VARIABLES.items():
        svg = svg.replace(marker, variable)
    svg = svg.replace("font: 10px 'sans-serif'", "font: 10px inherit")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_escape(title)}" ', 1)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def plain(text: str) -> str:
    """A name as it is: matplotlib would read what stands between two dollar signs as TeX."""
    return text.replace("$", r"\$")


def spread(entry: Entry) -> tuple[float, float]:
    """Lengths of the interval below and above the value; none where there is no interval."""
    value, low, high = entry["value"], entry.get("low"), entry.get("high")
    if low is None or high is None:
        return 0.0, 0.0
    return max(0.0, value - low), max(0.0, high - value)


def _log_if_positive(values: Sequence[float]) -> str:
    return "log" if min(values) > 0 else "linear"


def _decimal(axis: Any) -> None:
    """Ticks at 1, 2 and 5 of each decade, written 0.05 rather than as powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _counted(axis: Any) -> None:
    """Counts written 20 k rather than 20000."""
    axis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))


def ladder(rows: Sequence[tuple[str, Entry]], label: str) -> str:
    """One dot with its interval per row; the first row is the coder, in its own colour."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.4, 0.75 + 0.36 * len(rows))
        values = [entry["value"] for _, entry in rows]
        for y, (_, entry) in enumerate(rows):
            colour = SERIES[0] if y == 0 else SERIES[2]
            around = np.array(spread(entry))[:, None]
            axes.errorbar(
                [entry["value"]], [y], xerr=around, fmt="o", color=colour, ms=7, capsize=3, lw=2
            )
            axes.annotate(
                f"{entry['value']:.3g}",
                (entry["value"], y),
                textcoords="offset points",
                xytext=(0, 7),
                ha="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(rows)), [plain(name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.75)
        scale = _log_if_positive(values)
        axes.set_xscale(scale)
        if scale == "log":
            axes.set_xlim(min(values) / 1.6, max(values) * 1.6)
            _decimal(axes.xaxis)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        return as_svg(figure, label)


def _share(exponent: float, _: int) -> str:
    """`-5` -> `"0.00001"`; half decades stay unnamed."""
    whole = round(exponent)
    return f"{10.0**whole:.{max(0, -whole)}f}" if abs(exponent - whole) < 1e-6 else ""


def density(histogram: Mapping[str, Any]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.4, 2.9)
        edges, counts = histogram["log10_density_edges"], histogram["latents"]
        axes.stairs(counts, edges, fill=True, color=SERIES[0], alpha=0.85)
        for share in (0.01, 0.1):
            axes.axvline(np.log10(share), color=SERIES[1], lw=1.2, ls="--")
        axes.xaxis.set_major_formatter(FuncFormatter(_share))
        axes.set_xlabel("density: share of tokens on which a latent fires (log scale)")
        axes.set_ylabel("latents")
        return as_svg(figure, "Histogram of log density")


def alive(curves: Mapping[str, Mapping[str, Any]]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.4, 2.9)
        for name, curve in curves.items():
            axes.plot(curve["tokens"], curve["alive"], lw=2, label=plain(name))
        axes.set_xscale("log")
        axes.set_ylim(0, 1.03)
        _counted(axes.xaxis)
        axes.set_xlabel("tokens drawn at random, n (log scale)")
        axes.set_ylabel("alive(n)")
        if len(curves) > 1:
            axes.legend()
        return as_svg(figure, "Share of latents that fire within n tokens")


def active(histogram: Mapping[str, Any]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.4, 2.9)
        edges = np.asarray(histogram["l0_edges"], dtype=float) - 0.5
        axes.stairs(histogram["tokens"], edges, fill=True, color=SERIES[0], alpha=0.85)
        if len(edges) < 8:  # a fixed L0: leave air around its one bar
            axes.set_xlim(max(-0.5, edges[0] - 8), edges[-1] + 8)
        _counted(axes.yaxis)
        axes.set_xlabel("active latents on a token, L0")
        axes.set_ylabel("tokens")
        return as_svg(figure, "Histogram of the number of active latents")


def angles(own: Mapping[str, Any], random: Mapping[str, Any]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.4, 2.9)
        for histogram, name, colour in (
            (random, "as many random directions", SERIES[2]),
            (own, "this dictionary", SERIES[0]),
        ):
            counts, edges = histogram["latents"], histogram["edges"]
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.55, label=name)
        axes.set_xlim(0, 1)
        axes.set_xlabel("largest cosine with another decoder row")
        axes.set_ylabel("latents")
        axes.legend()
        return as_svg(figure, "Histogram of nearest-neighbour cosines")


def alignment(histogram: Mapping[str, Any]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.4, 2.9)
        axes.stairs(
            histogram["latents"], histogram["edges"], fill=True, color=SERIES[0], alpha=0.85
        )
        axes.set_xlim(-1, 1)
        axes.set_xlabel("cosine of a latent's encoder and decoder row")
        axes.set_ylabel("latents")
        return as_svg(figure, "Histogram of encoder-decoder cosines")


def front(
    points: Sequence[tuple[str, Entry, Entry]],
    label: str,
    kept: Sequence[str] = (),
    families: Mapping[str, str] | None = None,
) -> str:
    """Coders by L0 (x) and an error (y), with their intervals and the Pareto front (`kept`).

    One colour and marker for each family; of many coders only those on the front are named.
    """
    family = {name: (families or {}).get(name, name) for name, _, _ in points}
    number = {name: i for i, name in enumerate(dict.fromkeys(family.values()))}
    with matplotlib.rc_context(STYLE):
        height = 3.4 if len(points) <= NAMED else 4.4
        if families is not None:  # the legend stands below, however many it names
            height += LEGEND_LINE * len(number)
        figure, axes = canvas(5.4, height)
        at = {name: (x["value"], y["value"]) for name, x, y in points}
        if len(kept) > 1:
            axes.plot(*zip(*(at[n] for n in kept), strict=True), color=SERIES[2], lw=1, ls="--")
        for name, x, y in points:
            i = number[family[name]]
            axes.errorbar(
                *at[name],
                xerr=np.array(spread(x))[:, None],
                yerr=np.array(spread(y))[:, None],
                fmt=MARKERS[i // len(SERIES) % len(MARKERS)],
                ms=7,
                lw=1.6,
                capsize=3,
                color=SERIES[i % len(SERIES)],
                label=plain(family[name]),
            )
            if len(points) <= NAMED or name in kept:
                axes.annotate(
                    plain(name), at[name], textcoords="offset points", xytext=(8, 6), fontsize=9
                )
        _log_where_positive(axes, list(at.values()))
        axes.set_xlabel("L0: active latents per token")
        axes.set_ylabel(label)
        if families is not None:
            handles, labels = axes.get_legend_handles_labels()
            once = dict(zip(labels, handles, strict=True))
            figure.legend(once.values(), once.keys(), fontsize=9, loc="outside lower center")
        return as_svg(figure, f"{label} against L0")


def _log_where_positive(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    for i, which in enumerate(("x", "y")):
        values = [point[i] for point in points]
        if min(values) > 0:
            getattr(axes, f"set_{which}scale")("log")
            getattr(axes, f"set_{which}lim")(min(values) / 1.7, max(values) * 2.2)
            _decimal(getattr(axes, f"{which}axis"))
