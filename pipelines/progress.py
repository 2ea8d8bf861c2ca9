"""Progress for people: a bar with rate and time left on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
LINE_SECONDS = 10.0

Update = Callable[[float], None]  # the amount done so far, not the increment


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(f"{human_count(task.speed or 0)} {self.unit}/s", style="progress.data.speed")


@contextmanager
def progress(what: str, total: float, unit: str = "tokens") -> Iterator[Update]:
    """Yields `update(done)`. The rate shown is of this process, whatever a resume skipped."""
    if not console.is_terminal:
        yield _lines(what, total, unit)
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _Rate(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(what: str, total: float, unit: str) -> Update:
    began = printed = time.perf_counter()
    first: float | None = None

    def update(done: float) -> None:
        nonlocal printed, first
        first = done if first is None else first
        now = time.perf_counter()
        if now - printed < LINE_SECONDS:
            return
        printed = now
        rate = (done - first) / max(now - began, 1e-9)
        left = (total - done) / rate if rate > 0 else float("inf")
        left_text = f", {left:.0f} s left" if left < 1e7 else ""
        console.print(
            f"{what}: {done / max(total, 1):.0%}, {human_count(rate)} {unit}/s{left_text}"
        )
        sys.stdout.flush()

    return update


@contextmanager
def steps_progress(
    prefix: str, in_tokens: tuple[str, ...] = ()
) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `report(what, done, total)` for work that names its own steps, one bar for each.

    What begins with one of `in_tokens` counts tokens, not steps.
    """
    with ExitStack() as open_bars:
        updates: dict[str, Update] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in updates:
                unit = "tokens" if what.startswith(in_tokens) else "steps"
                bar = progress(f"{prefix}: {what}", total, unit)
                updates[what] = open_bars.enter_context(bar)
            updates[what](done)

        yield report


def listed(names: Sequence[str], most: int = 3, what: str = "coders") -> str:
    """`a, b`, or `24 coders` where the names would not be read."""
    return ", ".join(names) if len(names) <= most else f"{len(names)} {what}"


def human_count(value: float) -> str:
    """`12345` -> `"12.3 k"`."""
    for limit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f} {name}"
    return f"{value:.0f}"


def with_interval(entry: dict[str, Any] | None) -> str:
    """`0.812 [0.790, 0.834]` of a number with its interval; `-` where there is none."""
    if entry is None or entry["value"] is None:
        return "-"
    if entry["low"] is None or entry["high"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
