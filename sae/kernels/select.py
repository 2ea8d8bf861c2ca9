"""Choosing the active latents. No gradient flows through a choice.

In training, candidates may come from a bfloat16 product (4 times as fast where the CPU has it);
some runners-up are taken along and all of them are scored again in full precision, so that the
chosen set agrees with full-precision selection but for near-ties deep in the noise.
"""

import torch
from torch import Tensor

from sae.kernels.codes import Support
from sae.kernels.dispatch import Kernels, get_kernels

CHUNK_VALUES = 1 << 26  # values of the dense (rows, F) scores that exist at a time


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
    kernels = kernels or get_kernels("auto", x_BD.device)
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
    kernels = kernels or get_kernels("auto", x_BD.device)
    rows, width = len(x_BD), len(W_FD)
    with torch.no_grad():
        each = min(width, 2 * k)
        index_BC, pre_BC = kernels.row_topk(x_BD, W_FD, b_F, each, dtype)
        wanted = min(rows * k, pre_BC.numel())
        cut = float(pre_BC.flatten().topk(wanted, sorted=False).values.min())
        saturated_B = (pre_BC.min(dim=1).values >= cut) & (each < width)
        full = saturated_B.nonzero()[:, 0]
        row_N, slot_N = ((pre_BC >= cut) & (pre_BC > 0)).nonzero(as_tuple=True)
        latent_N, pre_N = index_BC[row_N, slot_N], pre_BC[row_N, slot_N]
        if len(full):  # these rows may have more than 2k winners
            others = ~torch.isin(row_N, full)
            row_parts, latent_parts, pre_parts = (
                [row_N[others]],
                [latent_N[others]],
                [pre_N[others]],
            )
            for some in full.split(max(1, CHUNK_VALUES // width)):
                whole = x_BD[some] @ W_FD.T + b_F
                extra_row, extra_latent = ((whole >= cut) & (whole > 0)).nonzero(as_tuple=True)
                row_parts.append(some[extra_row])
                latent_parts.append(extra_latent)
                pre_parts.append(whole[extra_row, extra_latent])
            row_N, latent_N, pre_N = (torch.cat(p) for p in (row_parts, latent_parts, pre_parts))
        if len(pre_N) > rows * k:
            best = pre_N.topk(rows * k, sorted=False).indices
            row_N, latent_N, pre_N = row_N[best], latent_N[best], pre_N[best]
        order = row_N.argsort(stable=True)
        offsets = torch.zeros(rows + 1, dtype=torch.int64, device=x_BD.device)
        torch.cumsum(torch.bincount(row_N, minlength=rows), 0, out=offsets[1:])
        smallest = float(pre_N.min()) if len(pre_N) else 0.0
        return Support(latent_N[order], offsets, width, pre_N=pre_N[order]), smallest


def select_positive(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, threshold_F: Tensor | float = 0.0
) -> Support:
    """All latents whose x·W + b exceeds both 0 and the threshold, latents ascending."""
    with torch.no_grad():
        floor = torch.clamp(torch.as_tensor(threshold_F, device=x_BD.device), min=0.0)
        rows = max(1, CHUNK_VALUES // len(W_FD))
        parts = [Support.of_mask(x @ W_FD.T + b_F > floor) for x in x_BD.split(rows)]
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([part.offsets_B1.diff() for part in parts])
        offsets = torch.zeros(len(x_BD) + 1, dtype=torch.int64, device=x_BD.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return Support(torch.cat([part.indices_N for part in parts]), offsets, len(W_FD))
