"""Which system finds a dictionary that is known: the same rows, batch, width and k for all.

    python -m benchmarks.recovery [--peers .venv-peers] [--samples 2e6] [--seeds 3]

Loupe's architectures with their default settings, SAELens, sparsify and dictionary_learning with
their own trainers and recipes (each in an environment of its own, `PEERS/<name>`), and
scikit-learn's online dictionary learning, which is stopped after a time. Every run is judged by
`sae.metrics.recovery` on rows that nobody was trained on. A run that fails is a row with its
reason. Called again, it goes on with the runs that are missing in its file of results.
Times are processor seconds of the training.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, occasion
from benchmarks.recovery_systems import (
    CASES,
    PEERS,
    SKLEARN,
    Data,
    Found,
    Size,
    draw,
    loupe,
    peer,
    sklearn,
)
from sae.base.files import read_json, write_json
from sae.coders.registry import TRAINABLE, TWO_SITES
from sae.metrics.recovery import recovery_of

HERE = Path(__file__).parent
COLUMNS = ("mcc", "mcc_encoder", "f1", "fvu", "l0", "dead_share", "absorption", "hedging")
SEEDED = ("topk", "batchtopk")  # measured with every seed; the others with the first
Row = dict[str, Any]
System = tuple[str, str]  # who, and which architecture


def systems(given: argparse.Namespace) -> dict[System, Callable[[Data], Found]]:
    runs: dict[System, Callable[[Data], Found]] = {
        ("loupe", name): lambda data, a=name: loupe(a, data)
        for name in TRAINABLE
        if name not in TWO_SITES
    }
    for system, architecture in PEERS:
        python = given.peers / system / "bin" / "python"
        runs[system, architecture] = lambda data, s=system, a=architecture, p=python: peer(
            s, a, p, data, given.limit
        )
    runs[SKLEARN] = lambda data: sklearn(data, given.sklearn_seconds)
    return {k: run for k, run in runs.items() if not given.only or k[0] in given.only.split(",")}


def measure(given: argparse.Namespace, size: Size) -> list[Row]:
    """All rows, old and new; the file is written after each."""
    settings = json.loads(json.dumps({**asdict(size), "cases": _recipes()}))
    kept = read_json(given.out) if given.out.exists() else {}
    rows = kept.get("rows", []) if kept.get("settings") == settings else []
    rows = [row for row in rows if "failed" not in row]
    head = {**occasion(), "machine": machine(), "versions": versions(given.peers)}
    began = time.perf_counter()
    for seed, case in ((s, c) for s in range(given.seeds) for c in CASES):
        done = {_system(r) for r in rows if (r["case"], r["seed"]) == (case, seed)}
        todo = {k: run for k, run in systems(given).items() if k not in done}
        todo = {k: run for k, run in todo.items() if seed == 0 or k[1] in SEEDED}
        if not todo or time.perf_counter() - began > given.budget:
            continue
        with tempfile.TemporaryDirectory() as folder:
            data = draw(case, seed, size, Path(folder))
            for (system, architecture), run in todo.items():
                if time.perf_counter() - began > given.budget:
                    break
                row = {"case": case, "seed": seed, "system": system, "architecture": architecture}
                rows.append({**row, **attempt(run, data)})
                print(line(rows[-1]), flush=True)
                write_json(given.out, {**head, "settings": settings, "rows": rows})
    return rows


def attempt(run: Callable[[Data], Found], data: Data) -> Row:
    """The scores, or why there are none: a peer that fails is a result, too."""
    try:
        return judged(run(data), data)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def judged(found: Found, data: Data) -> Row:
    x_BD = data.test.x_BD.astype(np.float64)
    error = x_BD - found.acts @ found.W_dec_FD.astype(np.float64) - found.b_dec_D
    fvu = float((error**2).sum() / ((x_BD - x_BD.mean(0)) ** 2).sum())
    score = recovery_of(found.acts, found.W_dec_FD, found.W_enc_FD, data.truth, data.test)
    return {"samples": found.samples, "seconds": found.seconds, "fvu": fvu, **score}


def versions(peers: Path) -> dict[str, str]:
    """Ours, and what the peers' environments hold."""
    own = {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
    for (system, _), package in PEERS.items():
        found = sorted((peers / system).glob(f"lib/*/site-packages/{package.replace('-', '_')}-*"))
        names = [folder.name.split("-")[1].removesuffix(".dist") for folder in found]
        own[package] = names[0] if names else "not there"
    return own


def line(row: Row) -> str:
    name = f"{row['case']:<12} {row['system']:<20} {row['architecture']:<28} seed {row['seed']}"
    if "failed" in row:
        return f"{name}  failed: {row['failed']}"
    numbers = "  ".join(f"{c} {_number(row[c])}" for c in COLUMNS)
    return f"{name}  {numbers}  {row['samples']:,} rows, {row['seconds']:.0f} s"


def table(rows: list[Row]) -> str:
    """Markdown: means over seeds, and the MCC of each seed."""
    head = ["case", "system", "architecture", *COLUMNS, "MCC of each seed", "seconds"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    keys = dict.fromkeys((r["case"], *_system(r)) for r in rows)
    for case, *system in sorted(keys, key=lambda key: key[0]):
        mine = [r for r in rows if r["case"] == case and _system(r) == tuple(system)]
        good = [r for r in mine if "failed" not in r]
        if not good:
            lines.append(" | ".join([case, *system, f"failed: {mine[0]['failed']}"]))
            continue
        means = [_number(_mean([r[c] for r in good])) for c in COLUMNS]
        each = ", ".join(_number(r["mcc"]) for r in good)
        seconds = f"{sum(r['seconds'] for r in good) / len(good):.0f}"
        lines.append(" | ".join([case, *system, *means, each, seconds]))
    return "\n".join(f"| {text} |" for text in lines)


def _recipes() -> dict[str, Any]:
    return {name: asdict(recipe) for name, recipe in CASES.items()}


def _system(row: Row) -> System:
    return row["system"], row["architecture"]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Recovery of a known dictionary.")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".venv-peers")
    parser.add_argument("--samples", type=float, default=2e6)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="systems, with commas between them")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of a peer's run")
    parser.add_argument("--sklearn-seconds", type=float, default=60.0)
    parser.add_argument("--budget", type=float, default=1500.0, help="seconds; no run starts after")
    parser.add_argument("--out", type=Path, default=HERE / "results_recovery.json")
    given = parser.parse_args()
    print(table(measure(given, Size(int(given.samples), given.batch))))


if __name__ == "__main__":
    main()
