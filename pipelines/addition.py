"""Trains a coder on the grokked adder and says which of its known frequencies the latents are of.

    python -m pipelines.addition --out runs/addition
    python -m pipelines.addition --site blocks.0.hook_resid_post --seed 1

Writes `addition.json` (docs/metrics.md, "Grokked addition") and the coder, and prints the table.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sae.base.files import sha256_file, write_json
from sae.base.sums import seal
from sae.coders import Coder, coder_hash, make_coder, save_coder
from sae.coders.registry import hyperparameters_of
from sae.lm.modular_addition import (
    SITES,
    WEIGHTS,
    ModularAddition,
    addition_folder,
    load_modular_addition,
)
from sae.metrics.addition import addition_report
from sae.metrics.provenance import describe_coder, describe_run
from sae.store import SiteStats
from sae.store.stats import SiteSums
from sae.training import CoderTrainer, Settings


@dataclass(frozen=True)
class Recipe:
    site: str = "blocks.0.mlp.hook_post"
    architecture: str = "topk"
    latents: int = 24  # a handful for each frequency: circles need few, answers would need 113
    k: int = 8
    steps: int = 1500
    batch: int = 1024
    learning_rate: float = 2e-3
    seed: int = 0


def train_coder(net: ModularAddition, recipe: Recipe) -> Coder:
    """A coder of the network's activations on all pairs, in a new random order each epoch."""
    x_GD = net.capture(net.grid, recipe.site)
    options = {"k": recipe.k} if "k" in hyperparameters_of(recipe.architecture) else {}
    coder = make_coder(recipe.architecture, x_GD.shape[1], recipe.latents, **options)
    settings = Settings(
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        dead_after=4 * len(x_GD),
        seed=recipe.seed,
    )
    stats = SiteStats.from_sums(SiteSums.of(x_GD.numpy()))
    trainer = CoderTrainer("addition", coder, recipe.site, stats, settings)
    generator = torch.Generator().manual_seed(recipe.seed)
    while trainer.done < recipe.steps:
        for rows in torch.randperm(len(x_GD), generator=generator).split(recipe.batch):
            if len(rows) == recipe.batch and trainer.done < recipe.steps:
                trainer.step(x_GD[rows])
    finished = trainer.finished_coder()
    finished.metadata = {"hook_name": recipe.site, "model_name": "modular-addition"}
    return finished


def table(report: dict[str, Any]) -> Table:
    """A line per key frequency."""
    shown = Table(title=f"Key frequencies and latents at {report['site']}")
    for column in (
        "k",
        "logit share",
        f"pre >= {report['threshold']}",
        f"act >= {report['threshold']}",
        "best pre",
        "best act",
        "mean act",
        "largest gap",
        "power spliced",
        "power ablated",
        "loss ablated",
    ):
        shown.add_column(column, justify="right")
    for row in report["key_frequencies"]:
        shown.add_row(
            str(row["frequency"]),
            f"{row['logit_share']:.3f}",
            str(row["latents"]),
            str(row["latents_by_activation"]),
            f"{row['best_preactivation_share']:.3f}",
            f"{row['best_activation_share']:.3f}",
            f"{row['mean_activation_share']:.3f}",
            f"{row['largest_phase_gap']:.2f}",
            f"{row['logit_power_spliced']:.3f}",
            f"{row['logit_power_ablated']:.3f}",
            f"{row['loss_ablated']:.3f}",
        )
    return shown


def print_report(report: dict[str, Any], console: Console) -> None:
    console.print(table(report))
    sets = {"coder": report["summary"], **report["controls"]}
    for name, found in sets.items():
        shares = {key: found[key]["value"] for key in ("preactivation", "activation")}
        console.print(
            f"{name}: {found['coverage']:.0%} of key frequencies covered by pre-activations, "
            f"{found['coverage_by_activation']:.0%} by activations, {found['alive']} alive; "
            f"mean share on one frequency of pre-activations {shares['preactivation']:.3f}, of "
            f"activations {shares['activation']:.3f}; at least {report['threshold']} in "
            f"{found['above_threshold']['value']:.0%}"
        )
    for name, losses in report["losses"].items():
        console.print(f"{name}: " + ", ".join(f"{k} {v:.3g}" for k, v in losses.items()) + " nats")
    console.print(", ".join(f"{k} {v:.4f}" for k, v in report["reconstruction"].items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Recipe()
    parser.add_argument("--site", default=default.site, choices=SITES)
    parser.add_argument("--architecture", default=default.architecture)
    for name in ("latents", "k", "steps", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--model", default=None, help="folder of the network; default: embedded")
    parser.add_argument("--out", default="runs/addition", help="folder of coder and report")
    arguments = vars(parser.parse_args())
    out, model = Path(arguments.pop("out")), arguments.pop("model")
    net = load_modular_addition(model)
    began = time.monotonic()
    coder = train_coder(net, Recipe(**arguments))
    report = addition_report(coder, net, seed=arguments["seed"])
    save_coder(coder, out / "coder")
    weights = {"hash": sha256_file((Path(model) if model else addition_folder()) / WEIGHTS)}
    said = {
        "coder": describe_coder(coder, coder_hash(out / "coder")),
        "model": {"name": coder.metadata["model_name"], **weights},
        "seed": arguments["seed"],
        **describe_run(coder.W_dec_FD.device, began),
    }
    write_json(out / "addition.json", {**report, "recipe": arguments, "provenance": said})
    seal(out, ["addition.json"])
    print_report(report, Console(width=140))


if __name__ == "__main__":
    main()
