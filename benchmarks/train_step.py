"""A TopK training step of Loupe against its peers, side by side in one run (`make bench`).

    python -m benchmarks.train_step [--quick] [--widths 16384,32768,131072] [--minutes 28]
                                    [--missing] [--device cuda] [--out benchmarks/results.json]

A step is forward, backward, projection of the decoder's gradient, Adam and renormalisation, as
each system's own trainer does it; d = 768, K = 32, B = 4096, float32 master weights. Every case
runs twice: without AuxK, and (`auxk`) with it and 5 % of the latents dead. Each system lives in a
process and an environment of its own (`make peers`). A round asks every system in turn for two
steps and times the second, so that no one pays for the pause before its turn; medians over the
rounds are reported. `gemm_bf16` and `gemm_fp32` are one encoder product.
A system over a cap is a row with a note and no numbers. Each case is written as soon as it is
done, in the place of its older rows, so a run can be cut short and continued with `--missing`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.machine import ROOT, machine, occasion
from benchmarks.peers.spec import Spec
from benchmarks.table import step_table
from benchmarks.workers import Caps, OverCap, Pool
from sae.base.files import read_json, write_json

SYSTEMS = ("loupe", "sparsify", "dictionary_learning", "sae_lens", "gemm_bf16", "gemm_fp32")
PEERS = ("sparsify", "dictionary_learning", "sae_lens")
WIDTHS = {16384: 0.15, 32768: 0.20, 131072: 0.65}  # and their share of the time
DEAD_SHARE = 0.05
WARM_UP, LEAST_ROUNDS, MOST_ROUNDS = 1, 3, 15
FAR_STEPS = 100_000  # so that no schedule moves far in the few steps that are measured
PEAKS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12)}


def main() -> None:
    given = parse()
    console = Console()
    cases = [(width, auxk) for auxk in given.auxk for width in given.widths]
    found = read_json(given.out) if given.out.exists() else {"rows": [], "runs": {}}
    shares = sum(WIDTHS.get(width, 0.3) for width, _ in cases)
    for width, auxk in cases:
        spec = Spec(768, width, 32, 4096, FAR_STEPS, auxk, device=given.device)
        name, here = case_name(spec), (case_name(spec), given.device)
        done = {(row["case"], row.get("device", "cpu")) for row in found["rows"]}
        if given.missing and here in done:
            continue
        budget = 60 * given.minutes * WIDTHS.get(width, 0.3) / shares
        rows, run = measure(spec, given, budget, console)
        kept = [row for row in found["rows"] if (row["case"], row.get("device", "cpu")) != here]
        found = {
            "schema": 1,
            "machine": machine(),
            "units": {"seconds": "per step", "peak_bytes": "over what was held before building"},
            "runs": {**found["runs"], run_name(name, given.device): run},
            "rows": kept + rows,
        }
        write_json(given.out, found)
    console.print(step_table(found["rows"]))
    console.print(f"Written to {given.out}.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Training steps of Loupe and its peers.")
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)))
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--auxk", default="off,on", help="off, on, or both")
    parser.add_argument("--minutes", type=float, default=28.0, help="for all cases together")
    parser.add_argument("--rounds", type=int, help="exactly so many; default: what the time allows")
    parser.add_argument("--quick", action="store_true", help="F=16384 only, 3 rounds")
    parser.add_argument("--missing", action="store_true", help="only cases that --out has not")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-gib", type=float, default=20.0, help="cap of one system")
    parser.add_argument("--step-seconds", type=float, default=120.0, help="cap of one step")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="Loupe's")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="of `make peers`")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    given = parser.parse_args()
    given.widths = [16384] if given.quick else [int(w) for w in given.widths.split(",")]
    given.rounds = 3 if given.quick and not given.rounds else given.rounds
    given.auxk = [word == "on" for word in given.auxk.split(",")]
    given.systems = given.systems.split(",")
    return given


def case_name(spec: Spec) -> str:
    name = f"train_step d={spec.d} F={spec.width} K={spec.k} B={spec.batch}"
    return name + " auxk" if spec.auxk else name


def run_name(case: str, device: str) -> str:
    """On a CPU, as it always was: the case alone."""
    return case if device == "cpu" else f"{case} on {device}"


def measure(
    spec: Spec, given: argparse.Namespace, budget: float, console: Console
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one case, and what to know about the run."""
    began = time.monotonic()
    seconds: dict[str, list[float]] = {system: [] for system in given.systems}
    notes: dict[str, str] = {}
    own, peers = given.python, given.peers
    pythons = {s: str(peers / s / "bin/python") if s in PEERS else own for s in given.systems}
    caps = Caps(int(given.memory_gib * 2**30), given.step_seconds)
    rounds = 0
    with tempfile.TemporaryDirectory() as folder:
        dead_share = DEAD_SHARE if spec.auxk else 0.0
        pool = Pool(pythons, spec, dead_share, caps, Path(folder))
        try:
            while wants_round(rounds, given.rounds, time.monotonic() - began, budget):
                for system in [s for s in given.systems if s not in notes]:
                    try:
                        seconds[system].append(pool.step(system, WARM_UP)["seconds"])
                    except OverCap as outcome:
                        notes[system] = str(outcome)
                        pool.forget(system)
                rounds += 1
                console.log(case_name(spec), f"round {rounds}", progress(seconds, notes))
        finally:
            pool.close()
    rows = [row(spec, s, seconds, pool, notes.get(s)) for s in given.systems]
    run = {
        **occasion(),
        "machine": machine(),
        "rounds": rounds,
        "wall_seconds": round(time.monotonic() - began, 1),
        "systems": {name: pool.facts[name] for name in given.systems if name in pool.facts},
        "samples": seconds,
    }
    return rows, run


def wants_round(done: int, wanted: int | None, passed: float, budget: float) -> bool:
    """Rounds while there is time for one more; up to `LEAST_ROUNDS` a quarter over the budget.

    The first round also builds and warms up: it counts as two.
    """
    if wanted or not done:
        return done < (wanted or 1)
    allowed = 1.25 * budget if done < LEAST_ROUNDS else budget
    return done < MOST_ROUNDS and passed + passed / (done + 1) < allowed


def row(
    spec: Spec, system: str, seconds: dict[str, list[float]], pool: Pool, note: str | None
) -> dict[str, Any]:
    """A failed system keeps its row: with a note, without numbers."""
    case = {"case": case_name(spec), "system": system, "device": spec.device}
    if note is not None or not seconds[system]:
        empty = dict.fromkeys(("seconds", "tokens_per_s", "peak_bytes", "gemm_ratio"))
        return {**case, **empty, "note": note or "not measured"}
    median = statistics.median(seconds[system])
    gemm = seconds.get("gemm_bf16")
    found = {
        **case,
        "seconds": median,
        "tokens_per_s": spec.batch / median,
        "peak_bytes": pool.peaks[system],
        "gemm_ratio": median / statistics.median(gemm) if gemm else None,
        "fastest": min(seconds[system]),
        "slowest": max(seconds[system]),
    }
    roof = roofline_seconds(spec, pool.facts[system]["device"])
    return found if roof is None else {**found, "roofline_share": roof / median}


def roofline_seconds(spec: Spec, device: str) -> float | None:
    """The longer of: the encoder product at the bf16 peak; reading and writing the weights and
    both of Adam's moments in float32, once each, at the memory's peak. None: unknown device."""
    for name, (flops, bandwidth) in PEAKS.items():
        if name in device:
            products = 2 * spec.batch * spec.d * spec.width
            traffic = 2 * spec.width * spec.d * 4 * 6
            return max(products / flops, traffic / bandwidth)
    return None


def progress(seconds: dict[str, list[float]], notes: dict[str, str]) -> str:
    times = [f"{s} {values[-1]:.2f} s" for s, values in seconds.items() if values]
    return ", ".join([*times, *(f"{s}: {note}" for s, note in notes.items())])


if __name__ == "__main__":
    main()
