"""Trains the embedded modular adder past grokking: a model whose features are known beforehand.

    nice -n 19 python -m pipelines.grok --out sae/assets/modular-addition

Nanda et al. 2023, "Progress measures for grokking": full-batch AdamW with a weight decay of 1 on
30 % of all pairs. Killed at any point, the same command goes on from the last checkpoint, and a
larger `--epochs` prolongs a run that has ended.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pipelines.grok_card import export
from sae.base.errors import UserError
from sae.base.files import atomic_write, read_json_object, write_json
from sae.base.tensors import read_state, write_state
from sae.lm.modular_addition import ModularAddition, answers, pair_losses, split_pairs


@dataclass(frozen=True)
class Recipe:
    work: str = "work/grok"
    epochs: int = 20_000
    p: int = 113
    share: float = 0.3  # of the pairs, to train on
    d_model: int = 128
    heads: int = 4
    d_mlp: int = 512
    lr: float = 1e-3
    weight_decay: float = 1.0
    warmup_epochs: int = 10
    seed: int = 0
    threads: int = 1
    checkpoint_every: int = 200


def build_model(recipe: Recipe) -> ModularAddition:
    net = ModularAddition(recipe.p, recipe.d_model, recipe.heads, recipe.d_mlp)
    net.initialise(recipe.seed)
    return net


def build_optimizer(net: ModularAddition, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        net.parameters(),
        lr=recipe.lr,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def train(recipe: Recipe, net: ModularAddition) -> int:
    """Trains to `recipe.epochs`, from the last checkpoint if there is one; returns the epoch."""
    work = Path(recipe.work)
    work.mkdir(parents=True, exist_ok=True)
    _require_same(recipe, work / "recipe.json")
    write_json(work / "recipe.json", asdict(recipe))
    seen, unseen = split_pairs(recipe.p, recipe.share, recipe.seed)
    pairs_B2 = net.grid[seen]
    targets_B = answers(pairs_B2, recipe.p)
    optimizer = build_optimizer(net, recipe)
    epoch = load_checkpoint(work, net, optimizer)
    began, first = time.perf_counter(), epoch
    with (work / "training.jsonl").open("a") as log:
        while epoch < recipe.epochs:
            warm = min(1.0, (epoch + 1) / recipe.warmup_epochs)
            optimizer.param_groups[0]["lr"] = recipe.lr * warm
            loss = pair_losses(net(pairs_B2), targets_B).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            epoch += 1
            if epoch % recipe.checkpoint_every == 0 or epoch == recipe.epochs:
                test = scores(net, net.grid[unseen])
                speed = (epoch - first) / (time.perf_counter() - began)
                record = {"epoch": epoch, "train_loss": loss.item(), **test, "epochs_per_s": speed}
                log.write(json.dumps(record) + "\n")
                log.flush()
                print(json.dumps(record), flush=True)
                save_checkpoint(work, net, optimizer, epoch)
    return epoch


def _require_same(recipe: Recipe, path: Path) -> None:
    """Raises `UserError` where a checkpoint of another recipe would be gone on with."""
    if not (path.parent / "checkpoint.pt").exists() or not path.exists():
        return
    before, now = read_json_object(path), asdict(recipe)
    free = {"epochs", "threads", "work", "checkpoint_every"}
    if differ := sorted(k for k in now.keys() - free if before.get(k) != now[k]):
        raise UserError(
            f"{path.parent} holds a training of another recipe (its {', '.join(differ)} differ); "
            "give another --work, or remove it."
        )


def scores(net: ModularAddition, pairs_B2: torch.Tensor) -> dict[str, float]:
    """Mean loss (nats) and share of right answers on pairs."""
    logits_Bp, targets_B = net.logits(pairs_B2), answers(pairs_B2, net.p)
    right = (logits_Bp.argmax(1) == targets_B).double().mean()
    return {
        "test_loss": float(pair_losses(logits_Bp, targets_B).mean()),
        "test_accuracy": float(right),
    }


def save_checkpoint(
    work: Path, net: ModularAddition, optimizer: torch.optim.Optimizer, epoch: int
) -> None:
    state = {"epoch": epoch, "model": net.state_dict(), "optimizer": optimizer.state_dict()}
    atomic_write(work / "checkpoint.pt", lambda file: write_state(state, file))


def load_checkpoint(work: Path, net: ModularAddition, optimizer: torch.optim.Optimizer) -> int:
    path = work / "checkpoint.pt"
    if not path.exists():
        return 0
    state = read_state(path)
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["epoch"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the modular adder past grokking.")
    for name in ("epochs", "seed", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    parser.add_argument("--work", default=Recipe.work, help="folder of checkpoints")
    parser.add_argument("--out", default="", help="where the finished model goes")
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    recipe = Recipe(**arguments)
    torch.set_num_threads(recipe.threads)
    net = build_model(recipe)
    epoch = train(recipe, net)
    if out:
        numbers = export(Path(out), net.eval(), asdict(recipe), epoch)
        print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
