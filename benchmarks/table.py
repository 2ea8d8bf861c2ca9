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
    cases = [(row["case"], row.get("device", "cpu")) for row in rows]
    own = {
        case: row["seconds"]
        for case, row in zip(cases, rows, strict=True)
        if row["system"] == "loupe"
    }
    last = None
    for case, row in zip(cases, rows, strict=True):
        if last != case:
            table.add_section()
            where = "" if case[1] == "cpu" else f" on {case[1]}"
            table.add_row(f"[bold]{row['case'].removeprefix('train_step ')}{where}")
        last = case
        if row["seconds"] is None:
            table.add_row(row["system"], row["note"])
            continue
        ours = own.get(case)
        cells = [
            f"{row['seconds']:.4f}",
            f"{row['tokens_per_s']:,.0f}",
            "" if row["gemm_ratio"] is None else f"{row['gemm_ratio']:.2f}",
            f"{row['seconds'] / ours:.2f}" if ours else "",
            human_bytes(row["peak_bytes"]),
            f"{row['roofline_share']:.0%}" if "roofline_share" in row else "",
        ]
        table.add_row(row["system"], *cells[: 6 if roof else 5])
    return table
