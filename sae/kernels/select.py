"""Choosing the active latents. No gradient flows through a choice.

In training, candidates may come from a bfloat16 product (4 times as fast where the CPU has it);
the `SLACK` runners-up are taken along and all of them are scored again in full precision, so
that the chosen set agrees with full-precision selection but for near-ties deep in the noise.
"""

import torch
from torch import Tensor

from sae.kernels.codes import Support
from sae.kernels.sparse import gathered_dots

SLACK = 8
CHUNK_VALUES = 1 << 26  # values of the dense (rows, F) scores that exist at a time


def select_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dtype: torch.dtype | None = None
) -> Support:
    """The k latents of largest x·W + b in each row. `dtype`: of the candidates' product."""
    slack = 0 if dtype in (None, W_FD.dtype) else min(SLACK, len(W_FD) - k)
    with torch.no_grad():
        candidates_BC = _row_candidates(x_BD, W_FD, b_F, k + slack, dtype)[0]
        if not slack:
            return Support.fixed(candidates_BC, len(W_FD))
        scores_BC = _rescore(x_BD, W_FD, b_F, candidates_BC)
        best_BK = scores_BC.topk(k, dim=1, sorted=False).indices
        return Support.fixed(candidates_BC.gather(1, best_BK), len(W_FD))


def select_batchtopk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dtype: torch.dtype | None = None
) -> tuple[Support, float]:
    """The B*k largest positive scores of the whole batch, and the smallest of them.

    Bussmann et al. 2024, "BatchTopK Sparse Autoencoders". Candidates are the 2k best of each
    row; rows that may hold more are searched whole, so the result is that of a global top-k.
    """
    rows, width = len(x_BD), len(W_FD)
    with torch.no_grad():
        each = min(width, 2 * k + SLACK)
        candidates_BC, _ = _row_candidates(x_BD, W_FD, b_F, each, dtype)
        scores_BC = _rescore(x_BD, W_FD, b_F, candidates_BC)
        wanted = min(rows * k, scores_BC.numel())
        cut = float(scores_BC.flatten().topk(wanted, sorted=False).values.min())
        saturated_B = (scores_BC.min(dim=1).values >= cut) & (each < width)
        full = saturated_B.nonzero()[:, 0]
        row_N, slot_N = ((scores_BC >= cut) & (scores_BC > 0)).nonzero(as_tuple=True)
        latent_N = candidates_BC[row_N, slot_N]
        score_N = scores_BC[row_N, slot_N]
        if len(full):  # these rows may have more than 2k winners
            others = ~torch.isin(row_N, full)
            whole = x_BD[full] @ W_FD.T + b_F
            extra_row, extra_latent = ((whole >= cut) & (whole > 0)).nonzero(as_tuple=True)
            row_N = torch.cat([row_N[others], full[extra_row]])
            latent_N = torch.cat([latent_N[others], extra_latent])
            score_N = torch.cat([score_N[others], whole[extra_row, extra_latent]])
        if len(score_N) > rows * k:
            best = score_N.topk(rows * k, sorted=False).indices
            row_N, latent_N, score_N = row_N[best], latent_N[best], score_N[best]
        threshold = float(score_N.min()) if len(score_N) else 0.0
        order = row_N.argsort(stable=True)
        offsets = torch.zeros(rows + 1, dtype=torch.int64, device=x_BD.device)
        torch.cumsum(torch.bincount(row_N, minlength=rows), 0, out=offsets[1:])
        return Support(latent_N[order], offsets, width), threshold


def select_positive(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, threshold_F: Tensor | float = 0.0
) -> Support:
    """All latents whose x·W + b exceeds both 0 and the threshold, latents ascending."""
    with torch.no_grad():
        floor = torch.clamp(torch.as_tensor(threshold_F, device=x_BD.device), min=0.0)
        parts = [
            Support.of_mask(x @ W_FD.T + b_F > floor) for x in x_BD.split(_chunk_rows(len(W_FD)))
        ]
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([part.offsets_B1.diff() for part in parts])
        offsets = torch.zeros(len(x_BD) + 1, dtype=torch.int64, device=x_BD.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return Support(torch.cat([part.indices_N for part in parts]), offsets, len(W_FD))


def _row_candidates(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, count: int, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """(indices, scores), each (B, count): the best of each row by a product in `dtype`."""
    dtype = dtype or W_FD.dtype
    W_low, b_low, x_low = W_FD.to(dtype), b_F.to(dtype), x_BD.to(dtype)
    found = [
        torch.addmm(b_low, x, W_low.T).topk(count, dim=1, sorted=False)
        for x in x_low.split(_chunk_rows(len(W_FD)))
    ]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def _rescore(x_BD: Tensor, W_FD: Tensor, b_F: Tensor, candidates_BC: Tensor) -> Tensor:
    support = Support.fixed(candidates_BC, len(W_FD))
    return gathered_dots(x_BD, W_FD, support).view_as(candidates_BC) + b_F[candidates_BC]


def _chunk_rows(width: int) -> int:
    return max(1, CHUNK_VALUES // width)
