"""The yardstick: one encoder product x @ W.T, operands and output ready in memory."""

import torch
from spec import Spec
from torch import Tensor

ABOUT = "x (B, D) @ W.T (D, F) into a buffer that is there already"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class System:
    def __init__(self, spec: Spec, first_BD: Tensor, dtype: str) -> None:
        self.dtype = DTYPES[dtype]
        W_FD = torch.randn(spec.width, spec.d, device=spec.device)
        self.W_FD = (W_FD / spec.d**0.5).to(self.dtype)
        self.x_BD = first_BD.to(self.dtype)
        self.out_BF = torch.empty(spec.batch, spec.width, dtype=self.dtype, device=spec.device)

    def step(self, _x_BD: Tensor) -> None:
        torch.mm(self.x_BD, self.W_FD.T, out=self.out_BF)
