"""Which latents two coders have in common: of two seeds, or of two widths.

A latent of the first is *shared* if one matching on decoder rows and one on encoder rows name the
same latent of the second, with both cosines above 0.7 (Paulo & Belrose 2025, "Sparse autoencoders
trained on the same data learn different features"). Matchings are one to one and maximise the
sum of cosines (Hungarian method); of dictionaries too wide for that, latents match that are each
other's nearest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders import Coder
from sae.metrics.bootstrap import Entry
from sae.metrics.estimate import estimate_ratio
from sae.metrics.geometry import UNITS
from sae.metrics.sample import Sample

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
SHARED = 0.7  # cosine above which two latents are taken for one
HUNGARIAN = 8192 * 8192  # entries of the largest table of cosines that is matched one to one
CHUNK = 4096  # rows of cosines at a time


@dataclass(frozen=True)
class Rows:
    """The latents of a coder that are compared: decoder (F, D_out) and encoder (F, D_in) rows."""

    decoder_FD: Tensor
    encoder_FD: Tensor

    @classmethod
    def of(cls, coder: Coder, alive_F: Bools | None = None) -> "Rows":
        kept = slice(None) if alive_F is None else torch.from_numpy(alive_F)
        return cls(coder.W_dec_FD.detach().cpu()[kept], coder.W_enc_FD.detach().cpu()[kept])

    @classmethod
    def random(cls, like: "Rows", seed: int) -> "Rows":
        """As many random directions, read where they are written if that is one space."""
        generator = torch.Generator().manual_seed(seed)
        decoder_FD = torch.randn(like.decoder_FD.shape, generator=generator)
        tied = like.decoder_FD.shape == like.encoder_FD.shape
        other_FD = torch.randn(like.encoder_FD.shape, generator=generator)
        return cls(decoder_FD, decoder_FD if tied else other_FD)

    def __len__(self) -> int:
        return len(self.decoder_FD)


@torch.inference_mode()
def firing(coder: Coder, sample: Sample) -> Bools:
    """(F,) whether a latent fires on a sample: dead ones match nothing but by chance."""
    device = coder.W_dec_FD.device
    fires_F = torch.zeros(coder.d_sae, dtype=torch.bool, device=device)
    for batch in sample.batches(str(coder.site), device):
        _, latents_N, _ = coder.encode(batch.x_BD[batch.scored_B.to(device)]).ragged()
        fires_F[latents_N] = True
    return fires_F.cpu().numpy()


@torch.inference_mode()
def stability(
    one: Coder, other: Coder, alive: tuple[Bools, Bools] | None = None, seed: int = 0
) -> dict[str, Any]:
    """{"shared", "decoder", "encoder", "mean_cosine", "control", "latents", "method"} of a pair.

    `shared` is the share of the narrower coder's latents; `decoder` and `encoder` the shares that
    either matching alone gives; `mean_cosine` is of matched decoder rows; each {"value", "low",
    "high"}, with latents resampled. `alive` (F,) says which latents of either count (default:
    all). `control` has the same numbers, without intervals, of random dictionaries as large.
    Raises `UserError` if the two do not read and write equal widths.
    """
    _require_one_site(one, other)
    both = [Rows.of(c, a) for c, a in zip((one, other), alive or (None, None), strict=True)]
    narrow, wide = sorted(both, key=len)
    control = _control(
        (len(narrow), len(wide)), narrow.decoder_FD.shape[1], narrow.encoder_FD.shape[1], seed
    )
    return {
        **_measured(narrow, wide, seed),
        "control": control,
        "latents": len(narrow),
        "method": "hungarian" if _small(narrow.decoder_FD, wide.decoder_FD) else "mutual_nearest",
    }


@torch.inference_mode()
def replication(coder: Coder, others: Sequence[Coder]) -> dict[str, npt.NDArray[np.float64]]:
    """Which latents of a coder other seeds have too: {"shared", "decoder", "encoder"}, (F,) each.

    `shared` is the share of the others that have the latent, as `stability` defines it; `decoder`
    and `encoder` the cosine with the latent that either matching gives it (0: none), averaged over
    the others. Raises `UserError` for a coder of another width.
    """
    found = []
    for other in others:
        if other.d_sae != coder.d_sae:
            raise UserError(
                f"A coder of {other.d_sae} latents is no other seed of one of {coder.d_sae}; "
                "compare coders that differ in their seed alone."
            )
        _require_one_site(coder, other)
        matches = _matches(Rows.of(coder), Rows.of(other))
        found.append([_shared(*matches), *(cosine_F for _, cosine_F in matches)])
    mean_3F = np.mean(np.asarray(found, np.float64), axis=0)
    return dict(zip(("shared", "decoder", "encoder"), mean_3F, strict=True))


Match = tuple[Ints, npt.NDArray[np.float64]]  # partner and cosine of each latent of the narrower


def _require_one_site(one: Coder, other: Coder) -> None:
    if one.W_enc_FD.shape[1] != other.W_enc_FD.shape[1] or one.d_out != other.d_out:
        raise UserError(
            f"Coders of widths {one.d_in} and {other.d_in} are not of one site; compare coders "
            "that read and write the same activations."
        )


def _matches(narrow: Rows, wide: Rows) -> tuple[Match, Match]:
    """By decoder and by encoder; one matching for both where they are one."""
    by_decoder = _matched(narrow.decoder_FD, wide.decoder_FD)
    tied = narrow.encoder_FD is narrow.decoder_FD
    return by_decoder, by_decoder if tied else _matched(narrow.encoder_FD, wide.encoder_FD)


def _shared(by_decoder: Match, by_encoder: Match) -> Bools:
    """Whether both matchings name the same partner, with both cosines above `SHARED`."""
    same_F = by_decoder[0] == by_encoder[0]
    return same_F & (by_decoder[1] > SHARED) & (by_encoder[1] > SHARED)


def _measured(narrow: Rows, wide: Rows, seed: int) -> dict[str, Entry]:
    by_decoder, by_encoder = _matches(narrow, wide)
    every_F = np.ones(len(narrow))
    shares = {
        "shared": (_shared(by_decoder, by_encoder), every_F),
        "decoder": (by_decoder[1] > SHARED, every_F),
        "encoder": (by_encoder[1] > SHARED, every_F),
        "mean_cosine": (by_decoder[1], by_decoder[0] >= 0),  # those that have no partner have 0
    }
    return {name: _over_latents(above, below, seed) for name, (above, below) in shares.items()}


@lru_cache(maxsize=64)
def _control(
    sizes: tuple[int, int], d_out: int, d_in: int, seed: int
) -> dict[str, float | int | None]:
    """The same of random directions: what is matched by chance in so many dimensions."""
    like = [Rows(torch.empty(size, d_out), torch.empty(size, d_in)) for size in sizes]
    narrow, wide = (Rows.random(rows, seed + i) for i, rows in enumerate(like))
    return {name: entry["value"] for name, entry in _measured(narrow, wide, seed).items()}


def _over_latents(above_F: npt.NDArray[Any], below_F: npt.NDArray[Any], seed: int) -> Entry:
    """Σ above / Σ below, with the interval of resampled latents (folded, to bound the table)."""
    if not len(above_F):
        return {"value": None, "low": None, "high": None}
    unit_F = np.arange(len(above_F)) % UNITS
    sums = [
        np.bincount(unit_F, values_F.astype(np.float64)).astype(np.float64)
        for values_F in (above_F, below_F)
    ]
    entry = estimate_ratio(sums[0], sums[1], len(above_F), seed)
    return {key: entry[key] for key in ("value", "low", "high")}


def _small(narrow_FD: Tensor, wide_FD: Tensor) -> bool:
    return len(narrow_FD) * len(wide_FD) <= HUNGARIAN


def _matched(narrow_FD: Tensor, wide_FD: Tensor) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Partner (-1: none) of each row of the narrower, and the cosine of the two (0: none)."""
    a_FD, b_FD = (F.normalize(W.float().cpu(), dim=1) for W in (narrow_FD, wide_FD))
    if _small(a_FD, b_FD):
        cosines_FF = (a_FD @ b_FD.T).numpy()
        partner_F = linear_sum_assignment(cosines_FF, maximize=True)[1]
        return partner_F, cosines_FF[np.arange(len(a_FD)), partner_F].astype(np.float64)
    best_F, forth_F = _nearest(a_FD, b_FD)
    back_F = _nearest(b_FD, a_FD)[1]
    mutual_F = back_F[forth_F] == torch.arange(len(a_FD))
    partner_F = torch.where(mutual_F, forth_F, -1).numpy()
    return partner_F, torch.where(mutual_F, best_F, 0.0).double().numpy()


def _nearest(a_FD: Tensor, b_FD: Tensor) -> tuple[Tensor, Tensor]:
    """The largest cosine of each row of a with a row of b, and which row that is."""
    found = [(part @ b_FD.T).max(1) for part in a_FD.split(CHUNK)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
