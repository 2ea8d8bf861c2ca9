"""Quality at equal tokens, and time to equal quality, against the peers (`make bench-quality`).

    python -m benchmarks.quality [--shape pocket|gpt2-small] [--tokens N] [--seeds 0,1,2]
                                 [--multiples 1,3,10] [--unit-multiples 3] [--own-multiples 1,2,4]
                                 [--folder runs/quality-pocket]

One activation store of the embedded corpus; every system trains a TopK coder of the same width
and k on the same rows in the same order, in its own environment, with AuxK on and the same dead
window. Settings are chosen for all by one procedure, with seed 0 and the full budget: a system's
own default learning rate times each of `--multiples`, on raw rows (Loupe's: `--own-multiples`), and
of `--unit-multiples`, on rows scaled to a mean square of 1; then the geometric mean of the best
rate that leaves at most 1 % of the latents dead and of the next one tried above it. Of those with
at most 1 % dead, the lowest FVU is taken; all that was tried is in the file. (sparsify's optimiser
is Adam, its default rate that for Adam.) All coders are converted to Loupe's format and scored by
`sae.metrics` on held-out documents.

1. Equal tokens, equal L0: FVU, ΔCE, dead share; mean over the seeds, and an interval that covers
   the bootstrap intervals of all of them.
2. Time to quality: Loupe trains with sixteenths of the budget (`--parts`), each with its own
   schedule; the fewest with which its held-out FVU is at most sparsify's after the whole budget are
   found by bisection, and the training times of the two are compared, seed by seed.

Every training is kept in the folder, so the command can be cut short and given again.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harvest import model_folder
from benchmarks.machine import ROOT, machine, occasion
from benchmarks.quality_runs import SYSTEMS, Bench, Sizes
from sae.base.files import read_json, write_json
from sae.metrics.known_answers import SelfTestFailure
from sae.training import Settings

SHAPES: dict[str, dict[str, Any]] = {
    # The weights of GPT-2 small's shape are random: its FVU compares speeds, its ΔCE says little.
    "pocket": {
        "site": "blocks.2.hook_resid_post",
        "tokens": 1_000_000,
        "width": 4096,
        "scored_tokens": 200_000,
        "loss_tokens": 32_768,
        "seeds": "0,1,2",
        "multiples": "1,3,10",
        "own_multiples": "1,1.5,2",
    },
    "gpt2-small": {
        "site": "blocks.8.hook_resid_pre",
        "tokens": 200_000,
        "width": 12_288,
        "scored_tokens": 20_000,
        "loss_tokens": 2_048,
        "seeds": "0,1",
        "multiples": "3,10",  # two hundred steps are too few for anybody's default rate
        "own_multiples": "1,2,4",
    },
}
RATES = {"sparsify": 2e-4, "dictionary_learning": 2e-4}  # at 2^14 latents, by the n^-1/2 rule
SAE_LENS_RATE = 3e-4
MOST_DEAD = 0.01  # of a coder whose learning rate may be chosen


def main() -> None:
    given = parse()
    console = Console()
    given.folder.mkdir(parents=True, exist_ok=True)
    bench = open_bench(given)
    bench.run("loupe", 0, 8 * bench.sizes.batch)  # compiles the kernels, once per installation
    found = {"schema": 1, "machine": machine(), **occasion(), "shape": given.shape}
    found |= {"sizes": vars(bench.sizes), "site": bench.site}
    found["tried"] = tried = try_settings(bench, given, console)
    found["settings"] = settings = {system: best(runs) for system, runs in tried.items()}
    runs: dict[str, list[dict[str, Any]]] = {s: [] for s in SYSTEMS}
    for seed in given.seeds:
        for system in SYSTEMS:
            runs[system].append(bench.run(system, seed, **settings.get(system, {})))
            console.log(one_line(runs[system][-1]))
    found["equal_tokens"] = [summary(system, runs[system]) for system in SYSTEMS]
    found["time_to_quality"] = [
        time_to_quality(bench, seed, target, settings["loupe"], given.parts, console)
        for seed, target in zip(given.seeds, runs["sparsify"], strict=True)
    ]
    kept = read_json(given.out) if given.out.exists() else {}
    write_json(given.out, {**kept, given.shape: found})
    show(found, console)
    console.print(f"Written to {given.out}.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quality of Loupe's coders and its peers'.")
    parser.add_argument("--shape", default="pocket", choices=SHAPES)
    parser.add_argument("--tokens", type=int, help="of every training, and of the store")
    parser.add_argument("--width", type=int)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--dead-after", type=int, help="tokens, for all; default: a tenth")
    parser.add_argument("--scored-tokens", type=int)
    parser.add_argument("--loss-tokens", type=int)
    parser.add_argument("--seeds", help="default: as the shape's")
    parser.add_argument(
        "--multiples", help="of the peers' default learning rates; default: the shape's"
    )
    parser.add_argument(
        "--unit-multiples", default="3", help="likewise, with rows of a mean square of 1"
    )
    parser.add_argument("--folder", type=Path, help="default: runs/quality-SHAPE")
    parser.add_argument("--python", default=str(ROOT / ".venv/bin/python"), help="Loupe's")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers", help="of `make peers`")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results_quality.json")
    parser.add_argument(
        "--parts", type=int, default=16, help="of the budget, in which time to quality is counted"
    )
    parser.add_argument("--own-multiples", help="of Loupe's learning rate; default: the shape's")
    given = parser.parse_args()
    for name, value in SHAPES[given.shape].items():
        if getattr(given, name, None) is None:
            setattr(given, name, value)
    given.dead_after = given.dead_after or given.tokens // 10
    given.folder = given.folder or ROOT / "runs" / f"quality-{given.shape}"
    given.seeds = [int(seed) for seed in given.seeds.split(",")]
    for name in ("multiples", "unit_multiples", "own_multiples"):
        setattr(given, name, [float(text) for text in getattr(given, name).split(",") if text])
    return given


def open_bench(given: argparse.Namespace) -> Bench:
    sizes = Sizes(
        width=given.width,
        k=given.k,
        batch=given.batch,
        tokens=given.tokens,
        dead_after=given.dead_after,
        scored_tokens=given.scored_tokens,
        loss_tokens=given.loss_tokens,
    )
    pythons = {s: str(given.peers / s / "bin/python") for s in SYSTEMS if s != "loupe"}
    pythons["loupe"] = given.python
    model = str(model_folder(given.shape, given.folder))
    return Bench(given.folder, model, given.site, sizes, pythons)


def try_settings(
    bench: Bench, given: argparse.Namespace, console: Console
) -> dict[str, list[dict[str, Any]]]:
    """For each system, FVU and living share at each of its settings, with seed 0."""
    width = bench.sizes.width
    defaults = {system: rate * (width / 2**14) ** -0.5 for system, rate in RATES.items()}
    defaults |= {"sae_lens": SAE_LENS_RATE, "loupe": Settings(1).peak_rate(width)}
    tried: dict[str, list[dict[str, Any]]] = {system: [] for system in defaults}
    for system, default in defaults.items():
        own = system == "loupe"
        raw, unit = (given.own_multiples, []) if own else (given.multiples, given.unit_multiples)
        settings = [{"rate": default * multiple} for multiple in raw]
        settings += [{"rate": default * multiple, "unit_rows": True} for multiple in unit]
        for setting in settings:
            tried[system].append(try_one(bench, system, setting, console))
        for unit_rows in (False, True):
            same = [t for t in tried[system] if t["setting"].get("unit_rows", False) == unit_rows]
            between = rate_between(same)
            if between is not None:
                setting = {"rate": between, **({"unit_rows": True} if unit_rows else {})}
                tried[system].append(try_one(bench, system, setting, console))
    return tried


def try_one(bench: Bench, system: str, setting: dict[str, Any], console: Console) -> dict[str, Any]:
    run = bench.run(system, 0, **setting)
    console.log(setting, one_line(run))
    scores = {name: run["metrics"][name]["value"] for name in ("fvu", "alive")}
    return {"setting": setting, **scores}


def rate_between(tried: list[dict[str, Any]]) -> float | None:
    """Between the best rate whose latents live and the next one above; None if there is none."""
    living = [run for run in tried if run["alive"] >= 1 - MOST_DEAD]
    if not living:
        return None
    rate = best(living)["rate"]
    above = [run["setting"]["rate"] for run in tried if run["setting"]["rate"] > rate]
    return (rate * min(above)) ** 0.5 if above else None


def best(tried: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting of the lowest FVU among coders whose latents live, or of all if none's do."""
    living = [run for run in tried if run["alive"] >= 1 - MOST_DEAD]
    return min(living or tried, key=lambda run: run["fvu"])["setting"]


def summary(system: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds; `low` and `high` enclose the bootstrap intervals of all seeds."""
    found: dict[str, Any] = {"system": system, "seeds": len(runs)}
    for name in runs[0]["metrics"]:
        entries = [run["metrics"][name] for run in runs]
        found[name] = {
            "value": sum(e["value"] for e in entries) / len(entries),
            "low": min(e["low"] for e in entries),
            "high": max(e["high"] for e in entries),
            "tokens": entries[0]["tokens"],
            "each": [e["value"] for e in entries],
        }
    found["seconds"] = [run["seconds"] for run in runs]
    return found


def time_to_quality(
    bench: Bench,
    seed: int,
    target: dict[str, Any],
    setting: dict[str, Any],
    of: int,
    console: Console,
) -> dict[str, Any]:
    """The shortest of Loupe's trainings, in parts of the budget, that is as good as `target`."""
    wanted = target["metrics"]["fvu"]["value"]
    tried = []

    def seconds(parts: int) -> float | None:
        """Of a training on so many parts of the budget, if it is good enough."""
        tokens = None if parts == of else bench.sizes.tokens * parts // of
        try:
            run = bench.run("loupe", seed, tokens, **setting)
        except SelfTestFailure as failure:  # so short a training is not fit to be measured
            console.log(f"{parts}/{of} of the tokens: {failure}")
            return None
        fvu = run["metrics"]["fvu"]["value"]
        tried.append({"fraction": parts / of, "fvu": fvu, "seconds": run["seconds"]})
        console.log(f"{parts}/{of} of the tokens", one_line(run))
        return run["seconds"] if fvu <= wanted else None

    low, high, reached = 0, of, seconds(of)
    while reached is not None and high - low > 1:
        middle = (low + high) // 2
        found = seconds(middle)
        low, high, reached = (low, middle, found) if found else (middle, high, reached)
    return {
        "seed": seed,
        "target_fvu": wanted,
        "sparsify_seconds": target["seconds"],
        "loupe_seconds": reached,
        "ratio": None if reached is None else reached / target["seconds"],
        "tried": tried,
    }


def one_line(run: dict[str, Any]) -> str:
    scores = ", ".join(f"{name} {entry['value']:.4g}" for name, entry in run["metrics"].items())
    return f"{run['system']} seed {run['spec']['seed']}: {run['seconds']:.0f} s, {scores}"


def show(found: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{found['shape']}: equal tokens, equal L0 (means over seeds, intervals)")
    for name in ("system", "FVU", "ΔCE", "L0", "dead", "seconds"):
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in found["equal_tokens"]:
        fvu, loss, alive = row["fvu"], row["delta_ce"], row["alive"]
        table.add_row(
            row["system"],
            f"{fvu['value']:.4f} [{fvu['low']:.4f}, {fvu['high']:.4f}]",
            f"{loss['value']:.4f} [{loss['low']:.4f}, {loss['high']:.4f}]",
            f"{row['l0']['value']:.1f}",
            f"{1 - alive['value']:.2%} of {alive['tokens']:,}",
            f"{sum(row['seconds']) / len(row['seconds']):.0f}",
        )
    console.print(table)
    table = Table(title="Time until Loupe is as good as sparsify after the whole budget")
    for name in ("seed", "FVU to reach", "sparsify", "Loupe", "ratio"):
        table.add_column(name, justify="right")
    for row in found["time_to_quality"]:
        ours = "not reached" if row["ratio"] is None else f"{row['loupe_seconds']:.1f} s"
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        theirs = f"{row['sparsify_seconds']:.1f} s"
        table.add_row(str(row["seed"]), f"{row['target_fvu']:.4f}", theirs, ours, ratio)
    console.print(table)


if __name__ == "__main__":
    main()
