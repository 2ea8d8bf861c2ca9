"""JumpReLU: a latent is active where its pre-activation exceeds its own, learned threshold.

Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU
Sparse Autoencoders". It is also what BatchTopK and Matryoshka become when saved.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders.contract import Coder, Forward
from sae.coders.entries import entries_above
from sae.coders.relu import check_share, check_weight, warmed_up
from sae.kernels import Kernels, Support, select_positive

L0_PENALTY, L0_WARMUP = 1e-3, 0.05
INITIAL_THRESHOLD = 1.0  # docs/training.md has the comparison
TARGET_WEIGHT = 10.0  # with 1, L0 settled at 2.43 for a target of 2 (tests/coders)


class JumpReLU(Coder):
    """codes = pre · 1[pre > θ], for thresholds θ ≥ 0; loss = ‖x − x̂‖² / D + sparsity, with

        sparsity = l0_penalty · L0                               or, given `target_l0`,
        sparsity = 10 · h(L0 / target_l0 − 1)

    where L0 is the batch's mean. `l0_penalty` (default: 1e-3) rises over the first `l0_warmup` of
    the training (default: 0.05); with a target there is neither. h(u) = u² is the paper's (appendix
    on target sparsity); above u = 1 it goes on as 2u − 1, so that a fresh coder, whose L0 is many
    times the target, leaves other weights their share of a clipped gradient. L0 settles where the
    slope of that term is what a further latent is worth, a little off the target: the less, the
    greater its weight.

    θ is trained itself, not its logarithm, so that Adam's steps do not shrink or grow with it.
    Both gradients to θ are straight-through estimates with a rectangle of width `bandwidth`
    around it (eq. 11, 12). In units in which x has a variance of D; the paper's have one of 1:
    `l0_penalty` is its λ, `bandwidth` √D times its ε.
    """

    architecture = "jumprelu"
    uses_auxk = True
    dense_tensors = 8

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        l0_penalty: float | None = None,
        target_l0: float | None = None,
        bandwidth: float = 1.0,
        l0_warmup: float | None = None,
    ) -> None:
        if target_l0 is None:
            l0_penalty = L0_PENALTY if l0_penalty is None else l0_penalty
            l0_warmup = L0_WARMUP if l0_warmup is None else l0_warmup
            check_weight("l0_penalty", l0_penalty)
            check_share("l0_warmup", l0_warmup)
        elif l0_penalty is not None or l0_warmup is not None:
            raise UserError(
                f"target_l0 is {target_l0}, which leaves no penalty to weigh or to warm up; leave "
                "out l0_penalty and l0_warmup, or target_l0."
            )
        if target_l0 is not None and not 0 < target_l0 <= d_sae:
            raise UserError(
                f"target_l0 is {target_l0}; it must lie above 0 and not exceed the dictionary's "
                f"width, {d_sae}."
            )
        if bandwidth <= 0:
            raise UserError(f"bandwidth is {bandwidth}; it must be positive.")
        super().__init__(d_in, d_sae)
        self.l0_penalty, self.target_l0 = l0_penalty, target_l0
        self.bandwidth, self.l0_warmup = bandwidth, l0_warmup
        self.threshold_F = nn.Parameter(torch.zeros(d_sae))

    def initialise(self, mean_D: Tensor, generator: torch.Generator) -> None:
        super().initialise(mean_D, generator)
        with torch.no_grad():
            self.threshold_F.fill_(INITIAL_THRESHOLD)

    def select(self, centred_BD: Tensor) -> Support:
        return select_positive(centred_BD, self.W_enc_FD, self.b_enc_F, self.threshold_F)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        # Entries just under their threshold do not fire, but move it.
        floor_F = self.threshold_F.detach() - self.bandwidth / 2
        entries = entries_above(self, x_BD, floor_F, kernels)
        threshold = entries.of_latents(self.threshold_F)
        acts = jump(entries.pre, threshold, self.bandwidth)
        x_hat_BD = entries.decode(acts, self.W_dec_FD) + self.b_dec_D
        l0 = step(entries.pre, threshold, self.bandwidth).sum() / len(x_BD)
        return Forward(x_hat_BD, entries.codes(acts), self._sparsity(l0))

    def _sparsity(self, l0: Tensor) -> Tensor:
        if self.target_l0 is None:
            penalty, warmup = self.l0_penalty or 0.0, self.l0_warmup or 0.0
            return penalty * warmed_up(self.progress, warmup) * l0
        excess = l0 / self.target_l0 - 1
        h = 2 * F.huber_loss(excess, torch.zeros_like(excess), delta=1.0)
        return TARGET_WEIGHT * h

    def constrain(self) -> None:
        with torch.no_grad():
            self.threshold_F.clamp_(min=0)

    def scale_units(self, factor: float) -> None:
        with torch.no_grad():
            self.threshold_F *= factor

    def saved_tensors(self) -> dict[str, Tensor]:
        return {**super().saved_tensors(), "threshold": self.threshold_F.detach().contiguous()}

    def load_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        super().load_saved(tensors)
        with torch.no_grad():
            self.threshold_F.copy_(tensors["threshold"])
        return self


def jump(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """pre · 1[pre > θ]; ∂/∂θ = −θ/ε where |pre − θ| < ε/2, and 0 elsewhere (eq. 11)."""
    return _Jump.apply(pre, threshold, bandwidth)  # pyright: ignore[reportReturnType]


def step(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1[pre > θ]; ∂/∂θ = −1/ε where |pre − θ| < ε/2, and 0 elsewhere; ∂/∂pre = 0 (eq. 12)."""
    return _Step.apply(pre, threshold, bandwidth)  # pyright: ignore[reportReturnType]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        grad_threshold = (grads[0] * near).sum_to_size(threshold.shape)
        return grads[0] * (pre > threshold), grad_threshold * (-threshold / ctx.bandwidth), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return None, -(grads[0] * near).sum_to_size(threshold.shape) / ctx.bandwidth, None
