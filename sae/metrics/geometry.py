"""The dictionary's geometry: encoder against decoder, decoder rows against each other.

All are means over *alive* latents (those that fired in the N tokens of the evaluation), and
their intervals resample latents, because no document enters them but through who is alive.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.metrics.registry import metric
from sae.metrics.sums import DocumentSums, Sums

ROWS = 4096  # latents whose nearest neighbour is looked up (a seeded draw if more are alive)
CHUNK = 512  # of them at a time against all alive ones
UNITS = 2048  # groups of latents that the bootstrap resamples


@torch.inference_mode()
def geometry_sums(
    W_enc_FD: Tensor, W_dec_FD: Tensor, alive_F: np.ndarray, tokens: int, seed: int = 0
) -> tuple[DocumentSums, dict[str, np.ndarray]]:
    """Sums over groups of latents, and the values per looked-up latent for the plots.

    `W_enc_FD` and `W_dec_FD` have one row per latent, of any scale. With fewer than two alive
    latents there is no neighbour and no geometry: the sums are empty. Those of encoder against
    decoder are left out where the two differ in width (a transcoder between two such sites).
    """
    alive = torch.from_numpy(np.flatnonzero(alive_F))
    sums = DocumentSums(UNITS)
    if len(alive) < 2:
        return sums, {}
    directions = F.normalize(W_dec_FD.detach().float()[alive.to(W_dec_FD.device)], dim=-1)
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(np.sort(rng.permutation(len(alive))[:ROWS]))
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(directions.shape, generator=generator).to(directions)
    largest, mean = neighbours(directions, rows)
    random_largest, _ = neighbours(F.normalize(random, dim=-1), rows)
    unit = torch.arange(len(alive)) % UNITS
    sums.add(unit, count=torch.ones(len(alive)))
    sums.add(
        unit[rows],
        looked_up=torch.ones(len(rows)),
        largest=largest,
        random_largest=random_largest,
        mean_absolute=mean,
    )
    sums.table["tokens"] = sums.table["count"] * (tokens / len(alive))
    plots = {"max_decoder_cosine": largest, "random": random_largest}
    if W_enc_FD.shape == W_dec_FD.shape:  # else they lie in two spaces: no angle between them
        encoders = F.normalize(W_enc_FD.detach().float()[alive.to(W_enc_FD.device)], dim=-1)
        plots["encoder_decoder"] = (encoders * directions).sum(-1).cpu()
        sums.add(unit, encoder_decoder=plots["encoder_decoder"])
    return sums, {name: value.numpy() for name, value in plots.items()}


def neighbours(directions_FD: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """For some unit rows: the largest cosine with another row, and the mean |cosine|."""
    largest, mean = [], []
    for part in rows.split(CHUNK):
        cosines = directions_FD[part.to(directions_FD.device)] @ directions_FD.T
        itself = part.to(cosines.device)[:, None]
        cosines.scatter_(1, itself, 0.0)
        mean.append(cosines.abs().sum(1) / (len(directions_FD) - 1))
        cosines.scatter_(1, itself, -torch.inf)
        largest.append(cosines.amax(1))
    return torch.cat(largest).cpu(), torch.cat(mean).cpu()


def histogram(values: np.ndarray, low: float, high: float, bins: int = 50) -> dict[str, Any]:
    counts, edges = np.histogram(np.clip(values, low, high), bins=bins, range=(low, high))
    return {"edges": edges.tolist(), "latents": counts.tolist()}


@metric("geometry", "cosine", count="tokens")
def encoder_decoder_cosine(s: Sums) -> np.ndarray:
    """Mean over alive latents i of cos(encoder row i, decoder row i).

    1: a latent is read in the direction in which it is written.
    """
    return s["encoder_decoder"] / s["count"]


@metric("geometry", "cosine", count="tokens")
def max_decoder_cosine(s: Sums) -> np.ndarray:
    """Mean over alive latents i of max_{j ≠ i, alive} cos(d_i, d_j).

    High: many latents have a near twin.
    """
    return s["largest"] / s["looked_up"]


@metric("geometry", "cosine", count="tokens")
def max_decoder_cosine_excess(s: Sums) -> np.ndarray:
    """`max_decoder_cosine` minus the same of as many random directions in D dimensions."""
    return (s["largest"] - s["random_largest"]) / s["looked_up"]


@metric("geometry", "cosine", count="tokens")
def mean_abs_decoder_cosine(s: Sums) -> np.ndarray:
    """Mean over alive latents i ≠ j of |cos(d_i, d_j)|."""
    return s["mean_absolute"] / s["looked_up"]
