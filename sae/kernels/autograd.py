"""Gradients of sparse encoding and decoding, over the three sums that a backend provides."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae.kernels.codes import Support

SEGMENTS = 64  # of a sum over touched rows: those that threads, or programs, add up at once

if TYPE_CHECKING:
    from sae.kernels.dispatch import Kernels


class EncodeAt(torch.autograd.Function):
    """pre[b, i] = (x_b − b_dec) · W[i] + b_enc[i] on a support; `pre_N` where it is known."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BD: Tensor,
        b_dec_D: Tensor,
        W_FD: Tensor,
        b_F: Tensor,
        support: Support,
        kernels: "Kernels",
        pre_N: Tensor | None,
    ) -> Tensor:
        centred_BD = x_BD - b_dec_D
        ctx.save_for_backward(centred_BD, W_FD)
        ctx.support, ctx.kernels = support, kernels
        if pre_N is not None:
            return pre_N
        return kernels.gathered_dots(centred_BD, W_FD, support) + b_F[support.indices_N]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N = grads[0].contiguous()
        centred_BD, W_FD = ctx.saved_tensors
        support, kernels = ctx.support, ctx.kernels
        wants_x, wants_b_dec, wants_W, wants_b = ctx.needs_input_grad[:4]
        grad_x = kernels.rows_sum(grad_N, W_FD, support) if wants_x else None
        grad_W = rows_gradient(grad_N, centred_BD, support, kernels) if wants_W else None
        grad_b = grad_b_dec = None
        if wants_b or wants_b_dec:
            totals_F = kernels.latent_totals(grad_N, support)
            grad_b = totals_F if wants_b else None
            if wants_b_dec:
                # −Σ_b ∂/∂x_b needs no row of its own: the per-latent sums are already there.
                grad_b_dec = -touched_product(totals_F, W_FD, support, kernels)
        return grad_x, grad_b_dec, grad_W, grad_b, None, None, None


class OfLatents(torch.autograd.Function):
    """values[i] for each entry (b, i) of a support."""

    @staticmethod
    def forward(ctx: Any, values_F: Tensor, support: Support, kernels: "Kernels") -> Tensor:
        ctx.support, ctx.kernels = support, kernels
        return values_F.index_select(0, support.indices_N)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.kernels.latent_totals(grads[0].contiguous(), ctx.support), None, None


class Decode(torch.autograd.Function):
    """x̂_b = Σ_i acts[b, i] · W[i] on a support."""

    @staticmethod
    def forward(
        ctx: Any, acts_N: Tensor, W_FD: Tensor, support: Support, kernels: "Kernels"
    ) -> Tensor:
        ctx.save_for_backward(acts_N, W_FD)
        ctx.support, ctx.kernels = support, kernels
        return kernels.rows_sum(acts_N, W_FD, support)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_BD = grads[0].contiguous()
        acts_N, W_FD = ctx.saved_tensors
        support, kernels = ctx.support, ctx.kernels
        wants_acts, wants_W = ctx.needs_input_grad[:2]
        grad_acts = kernels.gathered_dots(grad_BD, W_FD, support) if wants_acts else None
        grad_W = rows_gradient(acts_N, grad_BD, support, kernels) if wants_W else None
        return grad_acts, grad_W, None, None


class DecodeError(torch.autograd.Function):
    """Σ_b ‖y_b − b_dec − Σ_i acts[b, i] · W[i]‖², and what is within the norm (no gradient)."""

    @staticmethod
    def forward(
        ctx: Any,
        acts_N: Tensor,
        W_FD: Tensor,
        b_D: Tensor,
        y_BD: Tensor,
        support: Support,
        kernels: "Kernels",
    ) -> tuple[Tensor, Tensor]:
        residual_BD, dots_N, square = kernels.decode_residual(acts_N, W_FD, b_D, y_BD, support)
        ctx.save_for_backward(acts_N, residual_BD, dots_N)
        ctx.support, ctx.kernels = support, kernels
        ctx.mark_non_differentiable(residual_BD)
        return square, residual_BD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        acts_N, residual_BD, dots_N = ctx.saved_tensors
        factor = -2 * grads[0]  # of d/dx̂ ‖y − x̂‖²
        wants_acts, wants_W, wants_b, wants_y = ctx.needs_input_grad[:4]
        grad_acts = factor * dots_N if wants_acts else None
        grad_W = grad_b = grad_y = None
        if wants_W:
            grad_W = rows_gradient(factor * acts_N, residual_BD, ctx.support, ctx.kernels)
        if wants_b:
            grad_b = factor * residual_BD.sum(dim=0)
        if wants_y:
            grad_y = -factor * residual_BD
        return grad_acts, grad_W, grad_b, grad_y, None, None


def rows_gradient(values_N: Tensor, x_BD: Tensor, support: Support, kernels: "Kernels") -> Tensor:
    """(F, D): for each latent, the sum of its tokens' x rows times their values.

    Where a batch touches few latents, a sparse tensor of their rows: a wide dictionary's dense
    gradient would be as large as the dictionary.
    """
    if not support.touches_few:
        return kernels.latents_sum(values_N, x_BD, support)
    latents_U, own = support.touched
    return torch.sparse_coo_tensor(
        latents_U[None],
        kernels.latents_sum(values_N, x_BD, own),
        (support.width, x_BD.shape[1]),
        is_coalesced=True,
        check_invariants=False,
    )


def touched_product(totals_F: Tensor, W_FD: Tensor, support: Support, kernels: "Kernels") -> Tensor:
    """(D,): totals @ W, where the totals of latents without an entry are 0.

    Where a batch touches few latents, only their rows are read, and none is copied.
    """
    if not support.touches_few:
        return totals_F @ W_FD
    latents_U, _ = support.touched
    cuts = torch.arange(SEGMENTS + 1, device=latents_U.device) * len(latents_U) // SEGMENTS
    parts = Support(latents_U, cuts, support.width)
    return kernels.rows_sum(totals_F[latents_U], W_FD, parts).sum(dim=0)
