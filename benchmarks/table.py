"""Tables of results for a person to read."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from sae.base.files import human_bytes


def step_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line per case and system; `x loupe` is how many times slower than Loupe it is."""
    table = Table(title="Training step, medians of interleaved repetitions")
    table.add_column("system")
    roof = any("roofline_share" in row for row in rows)
    names = ["s / step", "tokens / s", "x bf16 GEMM", "x loupe", "peak memory"]
    for name in [*names, *(["of roofline"] if roof else [])]:
        table.add_column(name, justify="right")
    ours = {row["case"]: row["seconds"] for row in rows if row["system"] == "loupe"}
    last = None
    for row in rows:
        if last != row["case"]:
            table.add_section()
            table.add_row(f"[bold]{row['case'].removeprefix('train_step ')}")
        last = row["case"]
        if row["seconds"] is None:
            table.add_row(row["system"], row["note"])
            continue
        own = ours.get(row["case"])
        cells = [
            f"{row['seconds']:.4f}",
            f"{row['tokens_per_s']:,.0f}",
            "" if row["gemm_ratio"] is None else f"{row['gemm_ratio']:.2f}",
            f"{row['seconds'] / own:.2f}" if own else "",
            human_bytes(row["peak_bytes"]),
            f"{row['roofline_share']:.0%}" if "roofline_share" in row else "",
        ]
        table.add_row(row["system"], *cells[: 6 if roof else 5])
    return table
