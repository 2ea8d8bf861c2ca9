"""Compiles every kernel, as its wrapper launches it, to machine code of GPUs that need not be here.

    python -m tests.kernels.compile_kernels

Run by `test_compiled.py` in a process of its own, in which Triton's interpreter is off.
"""

from itertools import product
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae.kernels import Support, triton_adam, triton_sums
from sae.kernels.adam import AdamStep, RowGradient
from sae.kernels.triton_launch import WARPS

CAPABILITIES = (80, 90)  # of an A100; of an H100 or H200
NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
}
Launch = tuple[Any, tuple[Any, ...], dict[str, Any], int]


def make_launches() -> list[Launch]:
    """Every wrapper is called in every form; launches are noted down instead of made."""
    launches: list[Launch] = []

    def launch(
        kernel: Any, grid: Any, *arguments: Any, warps: int = WARPS, **constants: Any
    ) -> None:
        launches.append((kernel, arguments, constants, warps))

    triton_sums.launch = triton_adam.launch = launch
    D, F = 768, 64
    support = Support.fixed(torch.arange(12).view(6, 2), F)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x, W, acts = (torch.zeros(s, dtype=dtype) for s in ((6, D), (F, D), (12,)))
        triton_sums.gathered_dots(x, W, support)
        triton_sums.rows_sum(acts, W, support)
        triton_sums.latents_sum(acts, x[:, :1], support)  # as sums per latent ask for it
        triton_sums.decode_residual(acts, W, W[0], x, support)
    W, b = torch.zeros(F, D), torch.zeros(F)
    rows, slept = torch.arange(3), torch.ones(3, dtype=torch.int32)
    forms = product((None, rows), (None, slept), (True, False), (torch.float32, torch.bfloat16))
    for some, sleep, unit, moments in forms:
        gradient = RowGradient(torch.zeros(3, D), some, sleep)
        m, v = (torch.zeros(F, D, dtype=moments) for _ in range(2))
        step = AdamStep(1.0, 0.1, 1.0, 1e-8, unit, seed=1)
        triton_adam.adam_rows(W, gradient, m, v, step)
        triton_adam.tangent_square(gradient, W)
    triton_adam.adam_rows(b, RowGradient(b), b, b, AdamStep(1.0, 0.1, 1.0, 1e-8, False))
    wide = torch.zeros(2, 1 << 14)
    step = AdamStep(1.0, 0.1, 1.0, 1e-8, True)
    triton_adam.adam_rows(wide, RowGradient(wide), wide, wide, step)
    return launches


def compile_for(launch: Launch, capability: int) -> None:
    kernel, arguments, constants, warps = launch
    signature = dict.fromkeys(constants, "constexpr")
    given = iter(arguments)
    for name in kernel.arg_names:
        if name not in constants:
            signature[name] = _type(next(given))
    ordered = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, ordered, constants)
    target = GPUTarget("cuda", capability, 32)
    options = {"enable_fp_fusion": True, "num_warps": warps}
    compiled = triton.compile(source, target=target, options=options)
    if not compiled.asm["cubin"]:
        raise RuntimeError(f"{kernel.__name__} came to nothing")


def _type(argument: Any) -> str:
    if isinstance(argument, torch.Tensor):
        return "*" + NAMES[argument.dtype]
    return "fp32" if isinstance(argument, float) else "i32"


if __name__ == "__main__":
    found = make_launches()
    for one, capability in product(found, CAPABILITIES):
        compile_for(one, capability)
    names = sorted({one[0].__name__ for one in found})
    print(len(found), "forms of", *names)
