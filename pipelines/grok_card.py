"""Measures a trained modular adder on every pair and writes it, with its card, as an asset."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from sae.base.files import atomic_write, sha256_file, write_json, write_text
from sae.lm.load import weights_hash
from sae.lm.modular_addition import ModularAddition, load_modular_addition, pair_losses, split_pairs
from sae.metrics import fourier


def export(out: Path, net: ModularAddition, recipe: dict[str, Any], epoch: int) -> dict[str, Any]:
    """Writes config, float32 weights and card; returns the card's numbers, of what was written."""
    model = {"p": net.p, "d_model": net.d_model, "heads": net.heads, "d_mlp": net.d_mlp}
    tensors = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    atomic_write(out / "model.safetensors", lambda file: file.write(save(tensors)))
    write_json(out / "config.json", {"model": model, "recipe": recipe, "epoch": epoch})
    numbers = measure(load_modular_addition(out), recipe)
    write_text(out / "README.md", card(out, numbers, recipe, epoch))
    return numbers


def measure(net: ModularAddition, recipe: dict[str, Any]) -> dict[str, Any]:
    """Losses (nats) and accuracy on both splits, and the frequencies by which it adds."""
    p, grid = net.p, net.grid
    logits_Gp = net.logits(grid)
    targets_G = grid.sum(1) % p
    losses_G = pair_losses(logits_Gp, targets_G)
    right_G = (logits_Gp.argmax(1) == targets_G).double()
    found: dict[str, Any] = {}
    splits = split_pairs(p, recipe["share"], recipe["seed"])
    for name, rows in zip(("train", "test"), splits, strict=True):
        found |= {f"{name}_loss": float(losses_G[rows].mean())}
        found |= {f"{name}_accuracy": float(right_G[rows].mean()), f"{name}_pairs": len(rows)}
    logits = logits_Gp.numpy()
    key = fourier.key_frequencies(logits, p)
    shares = fourier.logit_shares(logits, p)
    return {
        **found,
        "key_frequencies": key.tolist(),
        "key_shares": shares[key - 1].tolist(),
        "other_share": float(np.delete(shares, key - 1).sum()),
        "progress": fourier.progress_losses(logits, p, key),
        "hash": weights_hash(net),
    }


def card(out: Path, numbers: dict[str, Any], recipe: dict[str, Any], epoch: int) -> str:
    p, progress = recipe["p"], numbers["progress"]
    weights = out / "model.safetensors"
    table = "\n".join(
        f"| {k} | {share:.3f} |"
        for k, share in zip(numbers["key_frequencies"], numbers["key_shares"], strict=True)
    )
    return f"""# modular-addition

A one-layer transformer that reads `a b =` and says (a + b) mod {p}, trained past grokking \
(Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability"). \
What it computes is known, so it tells whether a coder finds what is there.
{recipe["d_model"]} wide, {recipe["heads"]} heads, {recipe["d_mlp"]} ReLU neurons, no layer norm, \
embedding and unembedding of their own; float32 ({weights.stat().st_size / 1e6:.1f} MB).

## Recipe

    python -m pipelines.grok --epochs {epoch} --seed {recipe["seed"]} \
--out sae/assets/modular-addition

{numbers["train_pairs"]:,} of the {p * p:,} pairs ({recipe["share"]:.0%}, drawn by the seed), all \
of them in every step; {epoch:,} steps of AdamW (learning rate {recipe["lr"]}, betas 0.9 and 0.98, \
weight decay {recipe["weight_decay"]}, {recipe["warmup_epochs"]} steps of warm-up), cross-entropy \
of the last token in float64. Seed {recipe["seed"]}.

## Numbers

| | train | test |
|---|---|---|
| pairs | {numbers["train_pairs"]:,} | {numbers["test_pairs"]:,} |
| loss (nats) | {numbers["train_loss"]:.2e} | {numbers["test_loss"]:.2e} |
| accuracy | {numbers["train_accuracy"]:.4f} | {numbers["test_accuracy"]:.4f} |

Frequencies k that carry at least 2 % of the variance of the logits, as cos 2πk(a + b − c)/{p}:

| k | share of the logits' variance |
|---|---|
{table}
| all others | {numbers["other_share"]:.3f} |

Loss over all pairs (nats): {progress["loss"]:.2e}; restricted to these frequencies \
{progress["restricted"]:.2e}; with them excluded {progress["excluded"]:.2f} \
(guessing: {np.log(p):.2f}).

Hash of the weights (float32): `{numbers["hash"]}`
SHA-256 of `model.safetensors`: `{sha256_file(weights)}`
"""
