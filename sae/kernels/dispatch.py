"""Choosing a backend: by name, or the fastest one that is right for the device."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sae.base.errors import UserError, nearest
from sae.kernels import adam, reference, sparse
from sae.kernels.adam import AdamStep, RowGradient
from sae.kernels.autograd import Decode, DecodeError, EncodeAt
from sae.kernels.codes import Support

Backend = Literal["auto", "reference", "sparse", "cpu", "triton"]


@dataclass(frozen=True)
class Kernels:
    """One backend: the sums it provides, and encoding and decoding with gradients over them."""

    name: str
    row_topk: Callable[..., tuple[Tensor, Tensor]]
    gathered_dots: Callable[[Tensor, Tensor, Support], Tensor]
    rows_sum: Callable[[Tensor, Tensor, Support], Tensor]
    latents_sum: Callable[[Tensor, Tensor, Support], Tensor]
    adam_rows: Callable[[Tensor, RowGradient, Tensor, Tensor, AdamStep], None] = adam.adam_rows
    tangent_square: Callable[[RowGradient, Tensor], float] = adam.tangent_square
    fused_residual: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None

    def encode_at(
        self,
        x_BD: Tensor,
        b_dec_D: Tensor,
        W_enc_FD: Tensor,
        b_enc_F: Tensor,
        support: Support,
        pre_N: Tensor | None = None,
    ) -> Tensor:
        """As `reference.encode_at`, with gradients; `pre_N` saves computing what is known."""
        return EncodeAt.apply(x_BD, b_dec_D, W_enc_FD, b_enc_F, support, self, pre_N)  # pyright: ignore

    def decode(self, acts_N: Tensor, W_dec_FD: Tensor, support: Support) -> Tensor:
        """As `reference.decode`, with gradients of acts and W_dec."""
        return Decode.apply(acts_N, W_dec_FD, support, self)  # pyright: ignore[reportReturnType]

    def decode_error(
        self, acts_N: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor, y_BD: Tensor, support: Support
    ) -> tuple[Tensor, Tensor]:
        """(Σ ‖y − x̂‖² with gradients of acts, W_dec, b_dec and y; y − x̂ (B, D) without)."""
        return DecodeError.apply(acts_N, W_dec_FD, b_dec_D, y_BD, support, self)  # pyright: ignore

    def decode_residual(
        self, acts_N: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor, y_BD: Tensor, support: Support
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(y − x̂, its product with each entry's row of W_dec (N,), its square's sum)."""
        given = acts_N, W_dec_FD, b_dec_D, y_BD, support
        if self.fused_residual is not None:
            return self.fused_residual(*given)
        residual_BD = y_BD - b_dec_D - self.rows_sum(acts_N, W_dec_FD, support)
        dots_N = self.gathered_dots(residual_BD, W_dec_FD, support)
        return residual_BD, dots_N, residual_BD.square().sum()


class ReferenceKernels(Kernels):
    """The truth: dense products, differentiated by torch itself."""

    def encode_at(
        self,
        x_BD: Tensor,
        b_dec_D: Tensor,
        W_enc_FD: Tensor,
        b_enc_F: Tensor,
        support: Support,
        pre_N: Tensor | None = None,
    ) -> Tensor:
        return reference.encode_at(x_BD, b_dec_D, W_enc_FD, b_enc_F, support)

    def decode(self, acts_N: Tensor, W_dec_FD: Tensor, support: Support) -> Tensor:
        return reference.decode(acts_N, W_dec_FD, support)

    def decode_error(
        self, acts_N: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor, y_BD: Tensor, support: Support
    ) -> tuple[Tensor, Tensor]:
        residual_BD = y_BD - reference.decode(acts_N, W_dec_FD, support) - b_dec_D
        return residual_BD.square().sum(), residual_BD.detach()


def get_kernels(backend: Backend = "auto", device: torch.device | str = "cpu") -> Kernels:
    """The named backend; `auto` is `cpu` on a CPU, `triton` on CUDA, `sparse` elsewhere.

    Where Triton cannot build its kernels, `auto` says so once and takes `sparse`.
    """
    if backend not in get_args(Backend):
        raise UserError(
            f"Unknown kernel backend `{backend}`; it must be one of {', '.join(get_args(Backend))}."
            + nearest(backend, get_args(Backend))
        )
    kind = torch.device(device).type
    needed = {"cpu": "cpu", "triton": "cuda"}.get(backend, kind)
    if kind != needed and not (backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise UserError(f"The kernel backend `{backend}` cannot work on `{device}`; choose `auto`.")
    if backend == "auto":
        backend = "cpu" if kind == "cpu" else "sparse"
        if kind == "cuda" and _triton_works(str(device)):
            backend = "triton"
    return _MAKERS[backend]()


def _triton_works(device: str) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    from sae.kernels.triton import can_launch

    return can_launch(device)


def _triton() -> Kernels:
    from sae.kernels import triton

    return Kernels(
        "triton",
        triton.row_topk,
        triton.gathered_dots,
        triton.rows_sum,
        triton.latents_sum,
        triton.adam_rows,
    )


def _cpu() -> Kernels:
    from sae.kernels import cpu  # imports Numba: only where it is used

    return Kernels(
        "cpu",
        cpu.row_topk,
        cpu.gathered_dots,
        cpu.rows_sum,
        cpu.latents_sum,
        cpu.adam_rows,
        cpu.tangent_square,
        cpu.decode_residual,
    )


def _sparse() -> Kernels:
    return Kernels(
        "sparse", sparse.row_topk, sparse.gathered_dots, sparse.rows_sum, sparse.latents_sum
    )


def _reference() -> Kernels:
    return ReferenceKernels(
        "reference",
        reference.row_topk,
        sparse.gathered_dots,
        sparse.rows_sum,
        sparse.latents_sum,
    )


_MAKERS: dict[str, Callable[[], Kernels]] = {
    "reference": _reference,
    "sparse": _sparse,
    "cpu": _cpu,
    "triton": _triton,
}
