"""Adam, on unit-norm decoder rows unless the coder leaves them free."""

import math
from typing import Any

import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.coders import Coder
from sae.kernels import Kernels
from sae.kernels.reference import BETA1, BETA2

EPS = 1e-8


class CoderOptimizer:
    """Clips the gradient's norm, projects it, steps, renormalises; moments are kept per weight.

    Where the coder holds its decoder rows at unit norm, the clipped norm is that of the
    gradient without the rows' radial parts: what Adam will see.
    """

    def __init__(self, coder: Coder, grad_clip: float, kernels: Kernels) -> None:
        self.coder, self.grad_clip, self.kernels = coder, grad_clip, kernels
        self.steps = 0
        self.moments = {
            name: (torch.zeros_like(weight), torch.zeros_like(weight))
            for name, weight in coder.named_parameters()
            if weight.requires_grad
        }

    def step(self, rate: float) -> None:
        """One update from the gradients that are there, which it clears."""
        self.steps += 1
        gradients = {
            name: (weight, weight.grad.contiguous())
            for name, weight in self.coder.named_parameters()
            if weight.grad is not None and name in self.moments
        }
        norm = math.sqrt(sum(self._square(n, w, g) for n, (w, g) in gradients.items()))
        for name, (weight, grad) in gradients.items():
            self.kernels.adam_rows(
                weight.data,
                grad,
                *self.moments[name],
                scale=min(1.0, self.grad_clip / norm) if norm > 0 else 1.0,
                step_size=rate / (1 - BETA1**self.steps),
                root_correction=1 / math.sqrt(1 - BETA2**self.steps),
                eps=EPS,
                unit=self._unit(name),
            )
            weight.grad = None

    def forget(self, latents: Tensor) -> None:
        """Sets the moments of these latents to 0, in every weight that has a row per latent."""
        for name, pair in self.moments.items():
            if name.rpartition("_")[2].startswith("F"):  # W_enc_FD, b_enc_F, not b_dec_D
                for moment in pair:
                    moment[latents] = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "moments": {name: list(pair) for name, pair in self.moments.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state["moments"]) != set(self.moments):
            raise UserError(
                f"The checkpoint holds moments of {sorted(state['moments'])}; this coder has "
                f"{sorted(self.moments)}. Train it from the start."
            )
        self.steps = int(state["steps"])
        for name, pair in self.moments.items():
            for own, saved in zip(pair, state["moments"][name], strict=True):
                own.copy_(saved)

    def _unit(self, name: str) -> bool:
        return self.coder.unit_decoder and name == "W_dec_FD"

    def _square(self, name: str, weight: Tensor, grad: Tensor) -> float:
        if self._unit(name):
            return self.kernels.tangent_square(grad, weight)
        return float(torch.linalg.vector_norm(grad)) ** 2
