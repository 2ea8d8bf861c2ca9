"""Choosing a backend: by name, or the fastest one that is right for the device."""

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from sae.base.errors import UserError, nearest
from sae.kernels import adam, gather, reference, sparse
from sae.kernels.adam import AdamStep, RowGradient
from sae.kernels.autograd import Decode, DecodeError, EncodeAt, OfLatents
from sae.kernels.codes import Support

Backend = Literal["auto", "reference", "sparse", "cpu", "triton", "gather"]
FULL = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Kernels:
    """One backend: the sums it provides, and encoding and decoding with gradients over them."""

    name: str
    row_topk: Callable[..., tuple[Tensor, Tensor]]
    gathered_dots: Callable[[Tensor, Tensor, Support], Tensor]
    rows_sum: Callable[[Tensor, Tensor, Support], Tensor]
    latents_sum: Callable[[Tensor, Tensor, Support], Tensor]
    adam_rows: Callable[[Tensor, RowGradient, Tensor, Tensor, AdamStep], None] = adam.adam_rows
    tangent_square: Callable[[RowGradient, Tensor], Tensor | float] = adam.tangent_square
    fused_residual: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    own_totals: Callable[[Tensor, Support], Tensor] | None = None
    dtypes: tuple[torch.dtype, ...] = FULL

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
        self._check(W_enc_FD)
        return EncodeAt.apply(x_BD, b_dec_D, W_enc_FD, b_enc_F, support, self, pre_N)  # pyright: ignore

    def decode(self, acts_N: Tensor, W_dec_FD: Tensor, support: Support) -> Tensor:
        """As `reference.decode`, with gradients of acts and W_dec."""
        self._check(W_dec_FD)
        return Decode.apply(acts_N, W_dec_FD, support, self)  # pyright: ignore[reportReturnType]

    def decode_error(
        self, acts_N: Tensor, W_dec_FD: Tensor, b_dec_D: Tensor, y_BD: Tensor, support: Support
    ) -> tuple[Tensor, Tensor]:
        """(Σ ‖y − x̂‖² with gradients of acts, W_dec, b_dec and y; y − x̂ (B, D) without)."""
        self._check(W_dec_FD)
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

    def of_latents(self, values_F: Tensor, support: Support) -> Tensor:
        """(N,): the value of each entry's latent, with gradients."""
        return OfLatents.apply(values_F, support, self)  # pyright: ignore[reportReturnType]

    def latent_totals(self, values_N: Tensor, support: Support) -> Tensor:
        """(F,): for each latent, the sum of its entries' values, in the order of `latents_sum`.

        torch's `index_add_` would do, but on CUDA it adds in whatever order threads arrive.
        """
        if self.own_totals is not None:
            return self.own_totals(values_N, support)
        ones_B1 = values_N.new_ones(support.rows, 1)
        if not support.touches_few:
            return self.latents_sum(values_N, ones_B1, support)[:, 0]
        latents_U, own = support.touched
        totals_F = values_N.new_zeros(support.width)
        totals_F[latents_U] = self.latents_sum(values_N, ones_B1, own)[:, 0]
        return totals_F

    def _check(self, weight: Tensor) -> None:
        if weight.dtype not in self.dtypes:
            known = " and ".join(str(d).removeprefix("torch.") for d in self.dtypes)
            raise UserError(
                f"The kernel backend `{self.name}` works in {known}; the coder is in "
                f"{str(weight.dtype).removeprefix('torch.')}. Choose the backend `gather`, or "
                "convert the coder with `.float()`."
            )


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

    def of_latents(self, values_F: Tensor, support: Support) -> Tensor:
        return values_F[support.indices_N]


def get_kernels(
    backend: Backend = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Kernels:
    """The named backend, or by `auto` the best one for weights of that dtype on that device:

    `cpu` on a CPU and `triton` on CUDA; `sparse` on CUDA where Triton cannot work, which is said
    once; `gather` for half precision where the former have none, and on other devices.
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
    if backend == "triton" and (fault := _fault_of_triton(str(device))):
        raise UserError(f"{fault}; choose `auto`, which does without.")
    if backend == "auto":
        backend = _best(kind, str(device), dtype)
    return _MAKERS[backend]()


def kernels_for(weight: Tensor) -> Kernels:
    """The best backend for weights such as this one."""
    return get_kernels("auto", weight.device, weight.dtype)


def _best(kind: str, device: str, dtype: torch.dtype) -> Backend:
    if kind == "cpu" and dtype in FULL:
        return "cpu"
    if kind != "cuda":
        return "gather"
    fault = _fault_of_triton(device)
    if fault is None:
        return "triton"
    _say(f"{fault}; Loupe works with torch's own routines, which are slower.")
    return "sparse" if dtype in FULL else "gather"


@cache
def _fault_of_triton(device: str) -> str | None:
    """What keeps Triton from building and running a kernel on the device; None: nothing does.

    Whatever goes wrong is a reason to do without: Triton raises what its compiler or the C
    compiler raises, and its import what the loader raises.
    """
    try:
        importlib.import_module("sae.kernels.triton_launch").probe(device)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return "Triton is not installed (`pip install 'loupe-sae[triton]'`)"
        return (
            f"Triton cannot run on this machine ({type(error).__name__}: {error}); a C compiler is "
            "what is most often missing"
        )
    return None


@cache
def _say(sentence: str) -> None:
    """Warns, once in a process."""
    warnings.warn(sentence, stacklevel=4)


def _triton() -> Kernels:
    from sae.kernels import triton_adam, triton_sums

    return Kernels(
        "triton",
        triton_sums.row_topk,
        triton_sums.gathered_dots,
        triton_sums.rows_sum,
        triton_sums.latents_sum,
        triton_adam.adam_rows,
        triton_adam.tangent_square,
        triton_sums.decode_residual,
        dtypes=FULL + HALF,
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
        cpu.latent_totals,
    )


def _sparse() -> Kernels:
    return Kernels(
        "sparse", sparse.row_topk, sparse.gathered_dots, sparse.rows_sum, sparse.latents_sum
    )


def _gather() -> Kernels:
    return Kernels(
        "gather",
        gather.row_topk,
        gather.gathered_dots,
        gather.rows_sum,
        gather.latents_sum,
        dtypes=FULL + HALF,
    )


def _reference() -> Kernels:
    return ReferenceKernels(
        "reference",
        reference.row_topk,
        sparse.gathered_dots,
        sparse.rows_sum,
        sparse.latents_sum,
        dtypes=FULL + HALF,
    )


_MAKERS: dict[str, Callable[[], Kernels]] = {
    "reference": _reference,
    "sparse": _sparse,
    "cpu": _cpu,
    "triton": _triton,
    "gather": _gather,
}
