"""Which latents two coders have in common: of two seeds, or of two widths.

A latent of the first is *shared* if one matching on decoder rows and one on encoder rows name the
same latent of the second, with both cosines above 0.7 (Paulo & Belrose 2025, "Sparse autoencoders
trained on the same data learn different features"). Matchings are one to one and maximise the
sum of cosines (Hungarian method); of dictionaries too wide for that, latents match that are each
other's nearest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders import Coder

Ints = npt.NDArray[np.int64]
SHARED = 0.7  # cosine above which two latents are taken for one
HUNGARIAN = 8192 * 8192  # entries of the largest table of cosines that is matched one to one
CHUNK = 4096  # rows of cosines at a time


@torch.inference_mode()
def stability(one: Coder, other: Coder) -> dict[str, Any]:
    """{"shared", "decoder", "encoder", "mean_cosine", "latents", "method"} of two coders of a site.

    `shared` is the share of the narrower coder's latents; `decoder` and `encoder` the shares that
    either matching alone gives; `mean_cosine` is of matched decoder rows. Dead latents count, and
    match nothing but by chance. Raises `UserError` if the two do not read and write equal widths.
    """
    narrow, wide = sorted((one, other), key=lambda coder: coder.d_sae)
    found = _matches(narrow, wide)
    alike = {name: cosine_F > SHARED for name, (_, cosine_F) in found.items()}
    matched = found["decoder"][0] >= 0
    cosines = found["decoder"][1][matched]
    return {
        "shared": float(_shared(found).mean()),
        "decoder": float(alike["decoder"].mean()),
        "encoder": float(alike["encoder"].mean()),
        "mean_cosine": float(cosines.mean()) if len(cosines) else 0.0,
        "latents": narrow.d_sae,
        "method": "hungarian" if _small(narrow.W_dec_FD, wide.W_dec_FD) else "mutual_nearest",
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
        matches = _matches(coder, other)
        found.append([_shared(matches), *(cosine_F for _, cosine_F in matches.values())])
    mean_3F = np.mean(np.asarray(found, np.float64), axis=0)
    return dict(zip(("shared", "decoder", "encoder"), mean_3F, strict=True))


def _matches(narrow: Coder, wide: Coder) -> dict[str, tuple[Ints, npt.NDArray[np.float64]]]:
    """{"decoder", "encoder"}: partner and cosine of each latent of the narrower."""
    if narrow.W_enc_FD.shape[1] != wide.W_enc_FD.shape[1] or narrow.d_out != wide.d_out:
        raise UserError(
            f"Coders of widths {narrow.d_in} and {wide.d_in} are not of one site; compare coders "
            "that read and write the same activations."
        )
    return {
        "decoder": _matched(narrow.W_dec_FD, wide.W_dec_FD),
        "encoder": _matched(narrow.W_enc_FD, wide.W_enc_FD),
    }


def _shared(matches: dict[str, tuple[Ints, npt.NDArray[np.float64]]]) -> npt.NDArray[np.bool_]:
    """Whether both matchings name the same partner, with both cosines above `SHARED`."""
    (by_decoder_F, decoder_F), (by_encoder_F, encoder_F) = matches["decoder"], matches["encoder"]
    return (by_decoder_F == by_encoder_F) & (decoder_F > SHARED) & (encoder_F > SHARED)


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
