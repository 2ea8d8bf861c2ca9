"""CPU backend: Numba loops over the active entries, float32 and float64.

Decoding is a weighted sum of decoder rows per token; both weight gradients are the same thing
seen from the latents, over one latent-major order that is sorted once. No (N, D) tensor and no
(B, F) tensor is built, and every value that goes on is computed in the weights' own precision.
"""

import numpy as np
import torch
from torch import Tensor

from sae.kernels import adam_loops, chunks, loops, sparse
from sae.kernels.adam import AdamStep, RowGradient
from sae.kernels.codes import Support
from sae.kernels.parallel import even_cuts, for_ranges, sum_over_ranges


def row_topk(
    x_BD: Tensor, W_FD: Tensor, b_F: Tensor, k: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.row_topk`; candidates come from a product in `dtype`."""
    dtype = dtype or W_FD.dtype
    if W_FD.dtype is not torch.float32 or dtype not in (torch.float32, torch.bfloat16):
        return sparse.row_topk(x_BD, W_FD, b_F, k, dtype)  # the loops read bits of these two alone
    candidates = k
    if dtype is not W_FD.dtype:
        candidates = min(k + sparse.slack(k), len(W_FD))
        x_BD, b_F = sparse.centred(x_BD, W_FD, b_F)
    W_low, x_low = W_FD.to(dtype), x_BD.to(dtype)
    index_BK = torch.empty(len(x_BD), k, dtype=torch.int64)
    pre_BK = torch.empty(len(x_BD), k)
    x, W, b = _numpy(x_BD), _numpy(W_FD), _numpy(b_F)
    rows = chunks.cpu_score_rows(len(W_FD))
    scores_RF = x_low.new_empty(min(rows, len(x_BD)), len(W_FD))
    for first in range(0, len(x_BD), rows):
        part = slice(first, first + rows)
        scores = scores_RF[: len(x_low[part])]
        torch.mm(x_low[part], W_low.T, out=scores)  # the bias comes in the loop: cheaper there
        bits = _numpy(scores.view(torch.int16 if scores.itemsize == 2 else torch.int32))
        x_part, index, pre = x[part], _numpy(index_BK[part]), _numpy(pre_BK[part])
        for_ranges(
            len(bits),
            lambda start, stop, bits=bits, x_part=x_part, index=index, pre=pre: loops.select_rows(
                bits, x_part, W, b, candidates, start, stop, index, pre
            ),
        )
    return index_BK, pre_BK


def gathered_dots(x_BD: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(N,): x_b · W[i] for each entry (b, i) of the support."""
    out_N = x_BD.new_empty(len(support.indices_N))
    x, W, offsets = _numpy(x_BD), _numpy(W_FD), _numpy(support.offsets_B1)
    indices, out = _numpy(support.indices_N), _numpy(out_N)
    for_ranges(
        support.rows,
        lambda start, stop: loops.gathered_dots(x, W, offsets, indices, start, stop, out),
        even_cuts(offsets),
    )
    return out_N


def rows_sum(acts_N: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(B, D): for each row, the sum of its latents' W rows times their activations."""
    order = np.arange(len(support.indices_N))
    return _weighted_sums(acts_N, order, support.indices_N, W_FD, support.offsets_B1)


def decode_residual(
    acts_N: Tensor, W_FD: Tensor, b_D: Tensor, y_BD: Tensor, support: Support
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Kernels.decode_residual`, in one pass over the rows."""
    y_BD, acts_N = y_BD.contiguous(), acts_N.contiguous()  # what is like them is written in place
    residual_BD, dots_N = torch.empty_like(y_BD), torch.empty_like(acts_N)
    acts, W, b, y = (_numpy(t) for t in (acts_N, W_FD, b_D, y_BD))
    offsets, indices = _numpy(support.offsets_B1), _numpy(support.indices_N)
    residual, dots = _numpy(residual_BD), _numpy(dots_N)
    square = sum_over_ranges(
        support.rows,
        lambda start, stop: loops.decode_residual(
            acts, W, b, y, offsets, indices, start, stop, residual, dots
        ),
        even_cuts(offsets),
    )
    return residual_BD, dots_N, y_BD.new_tensor(square)


def latents_sum(values_N: Tensor, x_BD: Tensor, support: Support) -> Tensor:
    """(F, D): for each latent, the sum of its tokens' x rows times their values."""
    order_N, row_N, offsets_F1 = _latent_major(support)
    return _weighted_sums(values_N, _numpy(order_N), row_N, x_BD, offsets_F1)


def latent_totals(values_N: Tensor, support: Support) -> Tensor:
    """(F,): for each latent, the sum of its entries' values; on a CPU torch adds one by one."""
    return values_N.new_zeros(support.width).index_add_(0, support.indices_N, values_N)


def adam_rows(W: Tensor, gradient: RowGradient, m: Tensor, v: Tensor, step: AdamStep) -> None:
    """As `adam.adam_rows`, in one pass over memory."""
    values, rows, slept = _rows_of(gradient)
    w = W.detach().view(-1, W.shape[-1]).numpy()
    half = m.dtype is torch.bfloat16
    moments = (t.detach().view(-1, W.shape[-1]) for t in (m, v))
    m_rows, v_rows = (t.view(torch.uint16).numpy() if half else t.numpy() for t in moments)
    loop = adam_loops.adam_rows_bfloat16 if half else adam_loops.adam_rows
    numbers = (step.scale, step.step_size, step.root_correction, step.eps, step.unit, step.seed)
    for_ranges(
        len(rows),
        lambda start, stop: loop(w, values, m_rows, v_rows, rows, slept, *numbers, start, stop),
    )


def tangent_square(gradient: RowGradient, W_FD: Tensor) -> float:
    """As `adam.tangent_square`."""
    values, rows, _ = _rows_of(gradient)
    W = _numpy(W_FD)
    return sum_over_ranges(
        len(rows),
        lambda start, stop: adam_loops.tangent_square(values, W, rows, start, stop),
    )


def _rows_of(gradient: RowGradient) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values (U, D), their rows, and how long each slept. A vector is one row."""
    values = _numpy(gradient.values)
    values = values.reshape(-1, values.shape[-1])
    rows_U, slept_U = gradient.rows_U, gradient.slept_U
    rows = np.arange(len(values)) if rows_U is None else _numpy(rows_U)
    slept = np.zeros(len(values), np.int32) if slept_U is None else _numpy(slept_U)
    return values, rows, slept


def _weighted_sums(
    values_N: Tensor, order: np.ndarray, rows_N: Tensor, table: Tensor, offsets: Tensor
) -> Tensor:
    out = table.new_empty(len(offsets) - 1, table.shape[1])
    values, rows, bounds = _numpy(values_N), _numpy(rows_N), _numpy(offsets)
    source, target = _numpy(table), _numpy(out)
    for_ranges(
        len(out),
        lambda start, stop: loops.weighted_sums(
            values, order, rows, source, bounds, start, stop, target
        ),
        even_cuts(bounds),
    )
    return out


def _latent_major(support: Support) -> tuple[Tensor, Tensor, Tensor]:
    """`Support.latent_major`, by a counting sort; kept where the property keeps its own."""
    kept = vars(support)
    if "latent_major" not in kept:
        order_N, row_N = torch.empty_like(support.indices_N), torch.empty_like(support.indices_N)
        offsets_F1 = torch.empty(support.width + 1, dtype=torch.int64)
        loops.sort_by_latent(
            *(
                _numpy(t)
                for t in (support.indices_N, support.offsets_B1, order_N, row_N, offsets_F1)
            )
        )
        kept["latent_major"] = order_N, row_N, offsets_F1
    return kept["latent_major"]


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()
