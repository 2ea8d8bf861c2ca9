"""Choosing the active latents. No gradient flows through a choice.

In training, candidates may come from a bfloat16 product (4 times as fast where the CPU has it);
some runners-up are taken along and all of them are scored again in full precision, so that the
chosen set agrees with full-precision selection but for near-ties deep in the noise.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sae.kernels import chunks
from sae.kernels.codes import Support
from sae.kernels.dispatch import Kernels, kernels_for

ROUNDING = 1e-5  # relative: what two float32 products of the same rows may differ by


def select_topk(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dtype: torch.dtype | None = None,
    kernels: Kernels | None = None,
) -> Support:
    """The k latents of largest x·W + b in each row.

    `dtype` is the precision of the product in which candidates are looked for.
    """
    kernels = kernels or kernels_for(W_FD)
    with torch.no_grad():
        index_BK, pre_BK = kernels.row_topk(x_BD, W_FD, b_F, k, dtype)
    return Support.fixed(index_BK, len(W_FD), pre_BK)


def select_batchtopk(
    x_BD: Tensor,
    W_FD: Tensor,
    b_F: Tensor,
    k: int,
    dtype: torch.dtype | None = None,
    kernels: Kernels | None = None,
) -> tuple[Support, float]:
    """The B*k largest positive x·W + b of the whole batch, and the smallest of them.

    Bussmann et al. 2024, "BatchTopK Sparse Autoencoders". Candidates are the 2k best of each
    row; rows that may hold more are searched whole, so the result is that of a global top-k.
    """
    kernels = kernels or kernels_for(W_FD)
    rows, width = len(x_BD), len(W_FD)
    if not rows:
        return Support.of_mask(torch.zeros(0, width, dtype=torch.bool, device=x_BD.device)), 0.0
    with torch.no_grad():
        each = min(width, 2 * k)
        index_BC, pre_BC = kernels.row_topk(x_BD, W_FD, b_F, each, dtype)
        wanted = min(rows * k, pre_BC.numel())
        cut = float(pre_BC.flatten().topk(wanted, sorted=False).values.min())
        saturated_B = (pre_BC.min(dim=1).values >= cut) & (each < width)
        full_R = saturated_B.nonzero()[:, 0]  # these rows may have more than 2k winners
        # Negated, so that a NaN is chosen, and shows in the loss.
        row_N, slot_N = (~((pre_BC < cut) | (pre_BC <= 0))).nonzero(as_tuple=True)
        latent_N, pre_N = index_BC[row_N, slot_N], pre_BC[row_N, slot_N]
        if len(full_R):
            others = ~torch.isin(row_N, full_R)
            known = row_N[others], latent_N[others], pre_N[others]
            more = _above_cut(x_BD, W_FD, b_F, full_R, cut)
            row_N, latent_N, pre_N = map(torch.cat, zip(known, more, strict=True))
        if len(pre_N) > rows * k:
            best = pre_N.topk(rows * k, sorted=False).indices
            row_N, latent_N, pre_N = row_N[best], latent_N[best], pre_N[best]
        order = row_N.argsort(stable=True)
        counts = torch.bincount(row_N, minlength=rows)
        smallest = float(pre_N.min()) if len(pre_N) else 0.0
        return Support.of_counts(latent_N[order], counts, width, pre_N[order]), smallest


def _above_cut(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, rows_R: Tensor, cut: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(row, latent, x·W + b), (N,) each, of all that is positive and not below a cut in some rows.

    A little below it, since this product rounds otherwise than the one that the cut is of.
    """
    near = cut - ROUNDING * abs(cut)
    found = []
    for some in rows_R.split(chunks.score_rows(len(W_FD))):
        pre = x_BD[some] @ W_FD.T
        pre += b_F
        row_N, latent_N = ((pre >= near) & (pre > 0)).nonzero(as_tuple=True)
        found.append((some[row_N], latent_N, pre[row_N, latent_N]))
        del pre  # before the next product is there
    row_N, latent_N, pre_N = map(torch.cat, zip(*found, strict=True))
    return row_N, latent_N, pre_N


def select_positive(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, threshold_F: Tensor | float = 0.0
) -> Support:
    """All latents whose x·W + b exceeds both 0 and the threshold, latents ascending."""
    floor = torch.clamp(torch.as_tensor(threshold_F, device=x_BD.device), min=0.0)
    return Support.concatenated(list(_above(x_BD, W_FD, b_F, floor)))


def select_above(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, floor_F: Tensor | float, share: float
) -> Support | None:
    """All latents whose x·W + b exceeds a floor, latents ascending.

    None where they are more than `share` of the first rows' latents: few rows tell that, since
    those of a training batch are in random order, and the rest need not be looked at.
    """
    found = list[Support]()
    for support in _above(x_BD, W_FD, b_F, floor_F, parts=16):
        found.append(support)
        if len(found) == 1 and len(support.indices_N) > share * support.rows * support.width:
            return None
    return Support.concatenated(found)


def _above(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, floor_F: Tensor | float, parts: int = 1
) -> Iterator[Support]:
    """The support of some rows after others: scores of a chunk exist at a time."""
    rows = min(chunks.score_rows(len(W_FD)), -(-len(x_BD) // parts))
    for x in x_BD.split(max(1, rows)):
        yield _chunk_above(x, W_FD, b_F, floor_F)


@torch.no_grad()
def _chunk_above(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, floor_F: Tensor | float) -> Support:
    pre = torch.addmm(b_F, x_BD, W_FD.T)
    mask = pre > floor_F
    return replace(Support.of_mask(mask), pre_N=pre[mask])
