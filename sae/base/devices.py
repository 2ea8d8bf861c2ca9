"""Which device to compute on, and in which precision, when the user did not say."""

import torch
from torch import Tensor

from sae.base.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_device() -> str:
    """CUDA, or else the CPU. MPS is for those who name it: nothing was ever run on it."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where it is native: Ampere and later, or a CPU with AVX512-BF16 or AMX."""
    kind = torch.device(device).type
    if kind == "cuda":
        with torch.cuda.device(device):  # cards of one machine may differ
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if kind == "cpu" and _cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def in_float64(tensor: Tensor) -> Tensor:
    """The same numbers in float64, where they are; on the CPU where that is MPS, which has none."""
    return tensor.to(float64_device(tensor.device)).double()


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def parse_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, None being `default_device()`. Raises `UserError` if it is not."""
    try:
        chosen = torch.device(device or default_device())
    except RuntimeError:
        raise UserError(
            f"Unknown device `{device}`; it must be cpu, cuda, cuda:N or mps."
        ) from None
    there = {
        "cpu": True,
        "cuda": (chosen.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(chosen.type, False):
        raise UserError(
            f"The device `{device}` is not there; give another, or none for the best there is, "
            f"`{default_device()}`."
        )
    return chosen


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"Unknown dtype `{dtype}`; it must be one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _cpu_has_bf16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)
