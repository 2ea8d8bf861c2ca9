"""Numbers as people read them."""

import math


def share(value: float) -> str:
    """A fraction as a percentage with three digits: `0.00123` -> `"0.123 %"`."""
    if value == 0:
        return "0 %"
    percent = 100 * value
    if abs(percent) < 0.0001:
        return f"{percent:.1e} %"
    digits = max(0, min(6, 2 - math.floor(math.log10(abs(percent)))))
    return f"{percent:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits, thousands separated; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def score(value: float) -> str:
    """An F1 or a cosine: two decimals."""
    return f"{value:.2f}" if math.isfinite(value) else "–"


def count(value: float) -> str:
    """A count, short: `1234567` -> `"1.23 M"`."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            scale = 1e3 if unit == " k" else size
            return f"{number(value / scale)}{unit}"
    return f"{int(value):,}"


def percent(value: float) -> str:
    """A fraction as a percentage for a narrow column: `0.123` -> `"12 %"`."""
    if 0 < value < 0.001:
        return "<0.1 %"
    return f"{100 * value:.1f} %" if 0 < value < 0.1 else f"{100 * value:.0f} %"
