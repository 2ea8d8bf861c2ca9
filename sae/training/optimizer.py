"""Adam, on unit-norm decoder rows unless the coder leaves them free."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.base.large_pages import zeros_on_large_pages
from sae.coders import Coder
from sae.kernels import Kernels
from sae.kernels.adam import BETA1, BETA2, AdamStep, RowGradient
from sae.training.settings import Moments

EPS = 1e-8  # docs/training.md holds it against the 6.25e-10 of Gao et al. 2024
WAKE_EVERY = 8  # steps after which rows that slept are brought up to date
WAKE_VALUES = 2**24  # of gradients of zero that exist at a time, in doing so
LARGE = 2**28  # weights of a matrix above which its moments are kept in bfloat16 by default


class CoderOptimizer:
    """Clips the gradient's norm (at `grad_clip`, unless that is 0), projects it, steps,
    renormalises; moments are kept per weight.

    Where the coder holds its decoder rows at unit norm, the clipped norm is that of the
    gradient without the rows' radial parts: what Adam will see. Of a gradient that holds only
    the rows which a batch touched, only these are updated (`sae.kernels.adam` says how), and the
    others every few steps: momentum moves a row on for about ten steps, and a batch should find
    it where dense Adam would have it.
    """

    def __init__(
        self, coder: Coder, grad_clip: float, kernels: Kernels, moments: Moments = "auto"
    ) -> None:
        self.coder, self.kernels = coder, kernels
        self.grad_clip = grad_clip or math.inf
        self.steps = 0
        weights = {n: w for n, w in coder.named_parameters() if w.requires_grad}
        self.moments = {
            name: [zeros_on_large_pages(w, moment_dtype(name, w, moments)) for _ in range(2)]
            for name, w in weights.items()
        }
        # the step that last updated each row
        self.updated = {
            name: torch.zeros(len(w), dtype=torch.int32, device=w.device)
            for name, w in weights.items()
            if w.ndim == 2
        }
        self.may_sleep: set[str] = set()  # matrices of which rows may have been left out

    def step(self, rate: float, *, last: bool = False) -> None:
        """One update from the gradients that are there, which it clears.

        After the `last` one of a training no row sleeps: the weights are what is saved.
        """
        self.steps += 1
        wake = last or self.steps % WAKE_EVERY == 0
        gradients = {
            name: (weight, self._rows(name, weight.grad))
            for name, weight in self.coder.named_parameters()
            if weight.grad is not None and name in self.moments
        }
        norm = self._norm(gradients) if self.grad_clip < math.inf else 0.0
        for number, (name, (weight, gradient)) in enumerate(gradients.items()):
            step = AdamStep(
                scale=min(1.0, self.grad_clip / norm) if norm > 0 else 1.0,
                step_size=rate / (1 - BETA1**self.steps),
                root_correction=1 / math.sqrt(1 - BETA2**self.steps),
                eps=EPS,
                unit=self._unit(name),
                seed=len(self.moments) * self.steps + number,
            )
            m, v = self.moments[name]
            self.kernels.adam_rows(weight.data, gradient, m, v, step)
            if name in self.updated:
                self._note(name, gradient)
                if wake and gradient.rows_U is not None:
                    self._wake(name, weight, step)
            weight.grad = None
        self.may_sleep |= self.updated.keys() - gradients.keys()

    def _note(self, name: str, gradient: RowGradient) -> None:
        """Keeps in mind which rows this step updated."""
        if gradient.rows_U is None:
            self.updated[name].fill_(self.steps)
            self.may_sleep.discard(name)
        else:
            self.updated[name][gradient.rows_U] = self.steps
            self.may_sleep.add(name)

    def _wake(self, name: str, weight: Tensor, step: AdamStep) -> None:
        """Updates the rows that this step left out: their gradient is zero."""
        updated, (m, v) = self.updated[name], self.moments[name]
        asleep = (updated < self.steps).nonzero()[:, 0]
        zeros = weight.new_zeros(
            min(len(asleep), WAKE_VALUES // weight.shape[1] + 1), *weight.shape[1:]
        )
        for rows in asleep.split(max(1, len(zeros))):
            gradient = RowGradient(zeros[: len(rows)], rows, self.steps - 1 - updated[rows])
            self.kernels.adam_rows(weight.data, gradient, m, v, step)
            updated[rows] = self.steps
        self.may_sleep.discard(name)

    def forget(self, latents: Tensor) -> None:
        """Sets the moments of these latents to 0, in every weight that has a row per latent."""
        for name, pair in self.moments.items():
            if has_latents(name):
                for moment in pair:
                    moment[latents] = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "moments": self.moments,
            "updated": self.updated,
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
        for name, own in self.updated.items():
            own.copy_(state["updated"][name])
        self.may_sleep = set(self.updated)  # whether they do, the first step will see

    def _rows(self, name: str, grad: Tensor) -> RowGradient:
        rows_U = None
        values = grad
        if grad.is_sparse:
            rows_U, values = _rows_and_values(grad)
        slept_U = None
        if name in self.may_sleep:  # else there is nothing to wait for, on a GPU
            updated = self.updated[name]
            slept = self.steps - 1 - (updated if rows_U is None else updated[rows_U])
            slept_U = slept if bool(slept.any()) else None
        return RowGradient(values.contiguous(), rows_U, slept_U)

    def _unit(self, name: str) -> bool:
        return self.coder.unit_decoder and name == "W_dec_FD"

    def _norm(self, gradients: Mapping[str, tuple[Tensor, RowGradient]]) -> float:
        """Of all gradients as Adam will see them."""
        found = [
            self.kernels.tangent_square(gradient, weight)
            if self._unit(name)
            else torch.linalg.vector_norm(gradient.values)
            for name, (weight, gradient) in gradients.items()
        ]
        numbers = zip(gradients, _on_host(found), strict=True)
        return math.sqrt(sum(n if self._unit(name) else n**2 for name, n in numbers))


def _on_host(values: list[Tensor | float]) -> list[float]:
    """As Python's numbers, with one wait for all that lie on a device."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    numbers = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(numbers) if isinstance(value, Tensor) else value for value in values]


def _rows_and_values(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of a sparse gradient, rows ascending. Autograd forgets that they are; sorting would copy."""
    rows = grad._indices()[0]
    if bool((rows[1:] <= rows[:-1]).any()):
        grad = grad.coalesce()
        rows = grad.indices()[0]
    return rows, grad._values()


def has_latents(name: str) -> bool:
    """Whether a weight has a row (or a number) per latent: W_enc_FD, b_enc_F, not W_router_ED."""
    return name.rpartition("_")[2].startswith("F")


def moment_dtype(name: str, weight: Tensor, moments: Moments) -> torch.dtype:
    """bfloat16 for matrices of latents if so told or, left to choose, if they are very large."""
    matrix = has_latents(name) and weight.ndim == 2 and weight.dtype is torch.float32
    if matrix and moment_bytes(weight.numel(), moments) == 2:
        return torch.bfloat16
    return weight.dtype


def moment_bytes(weights: int, moments: Moments) -> int:
    """Bytes of one moment of one weight in a matrix of so many."""
    return 2 if moments == "bfloat16" or (moments == "auto" and weights > LARGE) else 4
