"""What the weights alone say of each latent: logit effects, neighbours, norms (torch)."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from sae.base.errors import UserError
from sae.features.assemble import DecoderEffects, Progress
from sae.features.layout import BINS, TOP_TOKENS

if TYPE_CHECKING:
    from sae.coders import Coder
    from sae.lm import LanguageModel

ELEMENTS = 2**26
"""Elements of a chunk of logits or cosines (256 MB in float32)."""


@torch.no_grad()
def decoder_effects(
    coder: "Coder", lm: "LanguageModel", site: str, progress: Progress | None = None
) -> DecoderEffects:
    """Logit effects, neighbours by cosine, and norms of every latent of `coder`.

    `site` is where the decoder writes. Where encoder and decoder lie in spaces of two widths (a
    transcoder's can), there is no angle between them: `enc_dec_cosine` is NaN.
    """
    device = lm.device
    W_dec_FD = coder.W_dec_FD.detach().float().to(device)
    W_enc_FD = coder.W_enc_FD.detach().float().to(device)
    unembed_DV = unembedding(lm)
    residual_FD = to_residual(W_dec_FD, lm, site)
    size = max(1, ELEMENTS // unembed_DV.shape[1])
    parts: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, len(W_dec_FD), size):
        parts.append(_logit_chunk(logit_effect(residual_FD[start : start + size], unembed_DV)))
        if progress is not None:
            progress("logit effects", min(start + size, len(W_dec_FD)), len(W_dec_FD))
    high, high_ids, low, low_ids, edges, counts = (
        torch.cat([part[i] for part in parts]).cpu().numpy() for i in range(6)
    )
    decoder_ids, decoder_cos = nearest_by_cosine(W_dec_FD)
    encoder_ids, encoder_cos = nearest_by_cosine(W_enc_FD)
    cosine_F = torch.full((len(W_dec_FD),), torch.nan)
    if W_enc_FD.shape == W_dec_FD.shape:
        cosine_F = torch.nn.functional.cosine_similarity(W_enc_FD, W_dec_FD, dim=1)
    return DecoderEffects(
        promoted_ids=high_ids,
        promoted_logits=high,
        suppressed_ids=low_ids,
        suppressed_logits=low,
        decoder_norm=W_dec_FD.norm(dim=1).cpu().numpy(),
        enc_dec_cosine=cosine_F.cpu().numpy(),
        logit_edges=edges,
        logit_counts=counts,
        decoder_ids=decoder_ids,
        decoder_cos=decoder_cos,
        encoder_ids=encoder_ids,
        encoder_cos=encoder_cos,
    )


def unembedding(lm: "LanguageModel") -> torch.Tensor:
    """ln_f's scale folded into the tied unembedding: (D, V) float32.

    LayerNorm's bias adds the same logits whatever the latent, and its division by the standard
    deviation is a positive factor of the context; so neither belongs to the effect of one latent.
    """
    transformer = lm.model.transformer
    scale_D = transformer.ln_f.weight.detach().float()
    return (transformer.wte.weight.detach().float() * scale_D).T.to(lm.device)


def to_residual(W_dec_FD: torch.Tensor, lm: "LanguageModel", site: str) -> torch.Tensor:
    """Decoder rows as directions of the residual stream (F, d_model).

    They are that already at every site but inside an MLP, where the block's output projection
    leads there.
    """
    if W_dec_FD.shape[1] == lm.d_model:
        return W_dec_FD
    where = lm.site(site)
    if where.point != "mlp.hook_post" or W_dec_FD.shape[1] != lm.site_width(site):
        raise UserError(
            f"A coder of width {W_dec_FD.shape[1]} at {site} does not fit {lm.name}, whose width "
            f"is {lm.d_model}; give the model and site that the coder was trained on."
        )
    projection = lm.model.get_parameter(f"transformer.h.{where.layer}.mlp.c_proj.weight")
    return W_dec_FD @ projection.detach().float().to(W_dec_FD.device)


def logit_effect(residual_FD: torch.Tensor, unembed_DV: torch.Tensor) -> torch.Tensor:
    """Direct effect of a unit of each latent on the logits, (F, V): rows of the decoder centred
    over D, through `unembedding`, centred over V (a constant over V changes no probability)."""
    centred_FD = residual_FD - residual_FD.mean(dim=1, keepdim=True)
    logits_FV = centred_FD @ unembed_DV
    return logits_FV - logits_FV.mean(dim=1, keepdim=True)


def promoted_tokens(
    rows_ND: torch.Tensor, lm: "LanguageModel", site: str, unembed_DV: torch.Tensor
) -> np.ndarray:
    """Ids (N, `TOP_TOKENS`) of the largest logit effects of directions at `site`."""
    logits_NV = logit_effect(to_residual(rows_ND.to(unembed_DV.device), lm, site), unembed_DV)
    return logits_NV.topk(min(TOP_TOKENS, logits_NV.shape[1]), dim=1).indices.cpu().numpy()


def _logit_chunk(logits_FV: torch.Tensor) -> tuple[torch.Tensor, ...]:
    most = min(TOP_TOKENS, logits_FV.shape[1])
    high, low = logits_FV.topk(most, dim=1), logits_FV.topk(most, dim=1, largest=False)
    bottom, top = low.values[:, :1], high.values[:, :1]
    span = (top - bottom).clamp_min(1e-12)
    bins = ((logits_FV - bottom) / span * BINS).long().clamp_(0, BINS - 1)
    bins += torch.arange(len(bins), device=bins.device)[:, None] * BINS
    counts = torch.bincount(bins.reshape(-1), minlength=len(bins) * BINS).reshape(-1, BINS)
    edges = bottom + span * torch.linspace(0, 1, BINS + 1, device=bins.device)
    return high.values, high.indices, low.values, low.indices, edges, counts


def nearest_by_cosine(W_FD: torch.Tensor, n: int = TOP_TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """(ids, cosines): the `n` nearest other rows of each row, closest first, (F, n).

    Where there are fewer than `n` others, ids are -1 and cosines 0.
    """
    width = len(W_FD)
    unit_FD = torch.nn.functional.normalize(W_FD, dim=1)
    ids = np.full((width, n), -1, np.int64)
    cosines = np.zeros((width, n), np.float32)
    most, size = min(n, width - 1), max(1, ELEMENTS // width)
    for start in range(0, width, size):
        similar = unit_FD[start : start + size] @ unit_FD.T
        here = torch.arange(len(similar), device=similar.device)
        similar[here, start + here] = -torch.inf
        found = similar.topk(most, dim=1)
        stop = start + len(similar)
        ids[start:stop, :most] = found.indices.cpu().numpy()
        cosines[start:stop, :most] = found.values.cpu().numpy()
    return ids, cosines
