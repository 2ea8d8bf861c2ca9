"""Sparse backend on torch's own routines, for CPU and GPU: work grows with N, not with B * F.

Decoding is a weighted sum of decoder rows per token, which is an embedding bag; both weight
gradients are the same thing seen from the latents: for each latent a weighted sum of token
rows, over the latent-major order that `Support` sorts once. Gathered dot products are a
sampled matrix product. No (N, D) and no (B, F) tensor is built.
"""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.kernels.codes import Support

with warnings.catch_warnings():
    # torch says once per process that CSR tensors are in beta; say it here, unheard.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), (1, 1))


def encode_at(
    x_BD: Tensor, b_dec_D: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor, support: Support
) -> Tensor:
    """As `reference.encode_at`. Gradients: W_enc, b_enc, b_dec, and x if it wants one."""
    return _EncodeAt.apply(x_BD, b_dec_D, W_enc_FD, b_enc_F, support)  # pyright: ignore


def decode(acts_N: Tensor, W_dec_FD: Tensor, support: Support) -> Tensor:
    """As `reference.decode`. Gradients: acts, W_dec."""
    return _Decode.apply(acts_N, W_dec_FD, support)  # pyright: ignore[reportReturnType]


def rows_sum(acts_N: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(B, D): for each row, the sum of its latents' W rows times their activations."""
    return _bag(support.indices_N, W_FD, support.offsets_B1, acts_N)


def latents_sum(values_N: Tensor, x_BD: Tensor, support: Support) -> Tensor:
    """(F, D): for each latent, the sum of its tokens' x rows times their values."""
    order, rows, offsets = support.latent_major
    return _bag(rows, x_BD, offsets, values_N[order])


def gathered_dots(x_BD: Tensor, W_FD: Tensor, support: Support) -> Tensor:
    """(N,): x_b · W[i] for each entry (b, i) of the support."""
    pattern = torch.sparse_csr_tensor(
        support.offsets_B1,
        support.indices_N,
        x_BD.new_zeros(len(support.indices_N)),
        (support.rows, support.width),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, x_BD, W_FD.T, beta=0.0).values()


def _bag(indices: Tensor, table: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        indices, table, offsets, per_sample_weights=weights, mode="sum", include_last_offset=True
    )


class _EncodeAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, b_dec_D: Tensor, W_enc_FD: Tensor, b_enc_F: Tensor, support: Support
    ) -> Tensor:
        centred_BD = x_BD - b_dec_D
        ctx.save_for_backward(centred_BD, W_enc_FD)
        ctx.support = support
        return gathered_dots(centred_BD, W_enc_FD, support) + b_enc_F[support.indices_N]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_N,) = grads
        centred_BD, W_enc_FD = ctx.saved_tensors
        support: Support = ctx.support
        grad_W = latents_sum(grad_N, centred_BD, support)
        grad_b = grad_N.new_zeros(support.width).index_add_(0, support.indices_N, grad_N)
        grad_x = rows_sum(grad_N, W_enc_FD, support) if ctx.needs_input_grad[0] else None
        # Σ_b ∂/∂x_b needs no row of its own: the per-latent sums are already there.
        return grad_x, -(grad_b @ W_enc_FD), grad_W, grad_b, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, acts_N: Tensor, W_dec_FD: Tensor, support: Support) -> Tensor:
        ctx.save_for_backward(acts_N, W_dec_FD)
        ctx.support = support
        return rows_sum(acts_N, W_dec_FD, support)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_BD = grads[0].contiguous()
        acts_N, W_dec_FD = ctx.saved_tensors
        support: Support = ctx.support
        grad_acts = gathered_dots(grad_BD, W_dec_FD, support)
        grad_W = latents_sum(acts_N, grad_BD, support)
        return grad_acts, grad_W, None
