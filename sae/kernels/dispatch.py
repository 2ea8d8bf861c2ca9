"""Choosing a backend: by name, or the fastest one that is right for the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sae.base.errors import UserError, nearest
from sae.kernels import reference, sparse

Backend = Literal["auto", "reference", "sparse"]


@dataclass(frozen=True)
class Kernels:
    """One backend's functions; signatures are those of `kernels.reference`."""

    name: str
    encode_at: Callable[..., Tensor]
    decode: Callable[..., Tensor]


_BACKENDS = {
    "reference": Kernels("reference", reference.encode_at, reference.decode),
    "sparse": Kernels("sparse", sparse.encode_at, sparse.decode),
}


def get_kernels(backend: Backend = "auto") -> Kernels:
    """The named backend; `auto` is `sparse`, which serves CPU and CUDA."""
    if backend not in get_args(Backend):
        raise UserError(
            f"Unknown kernel backend `{backend}`; it must be one of {', '.join(get_args(Backend))}."
            + nearest(backend, get_args(Backend))
        )
    return _BACKENDS["sparse" if backend == "auto" else backend]
