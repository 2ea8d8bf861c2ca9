"""Which system finds a dictionary that is known: the same rows, batch, width and k for all.

    python -m benchmarks.recovery [--peers .venv-peers] [--samples 2e6] [--seeds 3]
                                  [--multiples 0.3,1,3,10]

Loupe's architectures at their default learning rates (`recovery_systems.OPTIONS` sets the sparsity
of those that have no default for data like this), SAELens, sparsify and dictionary_learning with
their own trainers and recipes (each in an environment of its own, `PEERS/<name>`) but Loupe's dead
window and auxiliary loss, since theirs are made for trainings a thousand times longer, and
scikit-learn's online dictionary learning, which is stopped after a time. Peers, and of Loupe the
architectures that they have too, are given the best learning rate: with the first seed of a case
each tries `--multiples` of its own default, and the one of the highest MCC is its result and goes
on to the other seeds. Loupe's other architectures keep their default.
Transcoders are trained on a case of their own, with two sites. Every run is judged by
`sae.metrics.recovery` on rows that nobody was trained on. A run that fails is a row with its
reason. Called again, it goes on with the runs that are missing in its file of results.
Times are processor seconds of the training.
"""

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine, occasion
from benchmarks.recovery_systems import (
    AUXK,
    CASES,
    D_OUT,
    PEERS,
    SKLEARN,
    WIDTH,
    Data,
    Found,
    Size,
    draw,
    fits,
    loupe,
    peer,
    sklearn,
    truth_of,
)
from sae.base.files import read_json, write_json
from sae.coders.registry import TRAINABLE
from sae.metrics.recovery import chance_mcc, recovery_of
from sae.synthetic_sites import TwoSiteTruth

HERE = Path(__file__).parent
COLUMNS = ("mcc", "mcc_encoder", "f1", "fvu", "l0", "dead_share", "absorption", "hedging")
SEEDED = ("topk", "batchtopk")  # measured with every seed; the others with the first
Row = dict[str, Any]
System = tuple[str, str]  # who, and which architecture
Trial = tuple[str, str, float | None]  # the same at a multiple of its learning rate, if tuned
TUNED: tuple[System, ...] = (*(("loupe", name) for name in SEEDED), *PEERS)


def run(trial: Trial, data: Data, given: argparse.Namespace) -> Found:
    system, architecture, multiple = trial
    if (system, architecture) in PEERS and multiple is not None:
        python = given.peers / system / "bin" / "python"
        return peer(system, architecture, python, data, given.limit, multiple)
    if (system, architecture) == SKLEARN:
        return sklearn(data, given.sklearn_seconds)
    return loupe(architecture, data, multiple or 1.0)


def missing(given: argparse.Namespace, rows: list[Row], case: str, seed: int) -> list[Trial]:
    """What is still to be run: the tuned at every rate with the first seed, then at their best."""
    wanted = list[Trial]()
    for system in [*(("loupe", name) for name in TRAINABLE), *PEERS, SKLEARN]:
        chosen = not given.only or system[0] in given.only.split(",")
        if not (chosen and fits(system[1], case) and (seed == 0 or system[1] in SEEDED)):
            continue
        rates: list[float | None] = [None]
        if system in TUNED:
            rates = list(given.multiples) if seed == 0 else [best_multiple(rows, case, system)]
        wanted += [(*system, rate) for rate in rates]
    done = {(*_system(r), r["multiple"]) for r in rows if (r["case"], r["seed"]) == (case, seed)}
    return [trial for trial in wanted if trial not in done]


def best_multiple(rows: list[Row], case: str, system: System) -> float | None:
    """The multiple of a system's default rate that gave the highest MCC with the first seed."""
    tried = [r for r in rows if (r["case"], r["seed"], *_system(r)) == (case, 0, *system)]
    good = [r for r in tried if "failed" not in r]
    return max(good, key=lambda r: r["mcc"])["multiple"] if good else 1.0


def measure(given: argparse.Namespace, size: Size) -> list[Row]:
    """All rows, old and new; the file is written after each."""
    settings = {**asdict(size), "auxk_alpha": AUXK, "cases": _recipes()}
    settings = json.loads(json.dumps(settings))  # as a file has them
    kept = read_json(given.out) if given.out.exists() else {}
    rows = kept.get("rows", []) if kept.get("settings") == settings else []
    rows = [row for row in rows if "failed" not in row]
    head = {**occasion(), "machine": machine(), "versions": versions(given.peers)}
    began = time.perf_counter()
    for seed, case in ((s, c) for s in range(given.seeds) for c in CASES):
        todo = missing(given, rows, case, seed)
        if not todo or time.perf_counter() - began > given.budget:
            continue
        with tempfile.TemporaryDirectory() as folder:
            data = draw(case, seed, size, Path(folder))
            for trial in todo:
                if time.perf_counter() - began > given.budget:
                    break
                named = dict(zip(("system", "architecture", "multiple"), trial, strict=True))
                rows.append({"case": case, "seed": seed, **named, **attempt(trial, data, given)})
                print(line(rows[-1]), flush=True)
                write_json(given.out, {**head, "settings": settings, "rows": rows})
    return rows


def attempt(trial: Trial, data: Data, given: argparse.Namespace) -> Row:
    """The scores, or why there are none: a peer that fails is a result, too."""
    try:
        return judged(run(trial, data, given), data)
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def judged(found: Found, data: Data) -> Row:
    y_BD = data.wanted().astype(np.float64)
    decoded = found.acts @ found.W_dec_FD.astype(np.float64) + found.b_dec_D
    truth = data.truth
    if found.W_skip_OD is not None and isinstance(truth, TwoSiteTruth):
        decoded += data.test.x_BD @ found.W_skip_OD.T
        truth = truth.beside(found.W_skip_OD)
    error = y_BD - decoded
    fvu = float((error**2).sum() / ((y_BD - y_BD.mean(0)) ** 2).sum())
    score = recovery_of(found.acts, found.W_dec_FD, found.W_enc_FD, truth, data.test)
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
    if row["multiple"] is not None:
        name += f"  {row['multiple']:g} x its rate"
    if "failed" in row:
        return f"{name}  failed: {row['failed']}"
    numbers = "  ".join(f"{c} {_number(row[c])}" for c in COLUMNS)
    return f"{name}  {numbers}  {row['samples']:,} rows, {row['seconds']:.0f} s"


def table(rows: list[Row]) -> str:
    """Markdown: means over seeds, the MCC of each seed, and that of each rate that was tried;
    first of each case, what a random dictionary of the same shape has.
    """
    last = ("MCC of each seed", "seconds", "rate", "MCC of each rate, first seed")
    head = ["case", "system", "architecture", *COLUMNS, *last]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    keys = dict.fromkeys((r["case"], *_system(r)) for r in rows)
    said = set[str]()
    for case, *system in sorted(keys, key=lambda key: key[0]):
        if case not in said:
            lines.append(_chance(case, sorted({r["seed"] for r in rows if r["case"] == case})))
            said.add(case)
        mine = [r for r in rows if r["case"] == case and _system(r) == tuple(system)]
        rate, tried = None, ""
        if tuple(system) in TUNED:
            rate = best_multiple(rows, case, (system[0], system[1]))
            tried = ", ".join(f"{r['multiple']:g}: {_mcc(r)}" for r in mine if r["seed"] == 0)
        good = [r for r in mine if "failed" not in r and r["multiple"] == rate]
        if not good:
            lines.append(" | ".join([case, *system, f"failed: {mine[0]['failed']}"]))
            continue
        means = [_number(_mean([r[c] for r in good])) for c in COLUMNS]
        each = ", ".join(_number(r["mcc"]) for r in good)
        seconds = f"{sum(r['seconds'] for r in good) / len(good):.0f}"
        shown = "" if rate is None else f"{rate:g} x"
        lines.append(" | ".join([case, *system, *means, each, seconds, shown, tried]))
    return "\n".join(f"| {text} |" for text in lines)


def _chance(case: str, seeds: list[int]) -> str:
    """A line of the table: the MCC of random directions, which nothing has learned."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        truth = truth_of(case, seed)
        for column, true_nD in (("mcc", truth.target_nD), ("mcc_encoder", truth.dictionary_nD)):
            found.setdefault(column, []).append(chance_mcc(true_nD, WIDTH, seed))
    means = [_number(_mean([*found.get(column, [])])) for column in COLUMNS]
    each = ", ".join(map(_number, found["mcc"]))
    return " | ".join([case, "random dictionary", "-", *means, each, "-", "", ""])


def _recipes() -> dict[str, Any]:
    return {name: {**asdict(recipe), "d_out": D_OUT.get(name)} for name, recipe in CASES.items()}


def _system(row: Row) -> System:
    return row["system"], row["architecture"]


def _mcc(row: Row) -> str:
    return "failed" if "failed" in row else _number(row["mcc"])


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
    parser.add_argument(
        "--multiples", default="0.3,1,3,10", help="of the tuned systems' default learning rates"
    )
    parser.add_argument("--budget", type=float, default=2400.0, help="seconds; no run starts after")
    parser.add_argument("--out", type=Path, default=HERE / "results_recovery.json")
    given = parser.parse_args()
    given.multiples = [float(text) for text in given.multiples.split(",")]
    print(table(measure(given, Size(int(given.samples), given.batch))))


if __name__ == "__main__":
    main()
