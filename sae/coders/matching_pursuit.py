"""Matching pursuit: the encoder is the decoder's rows, applied to the residual again and again.

    r = x − b_dec;  repeat:  i = argmax_j r·d_j,  v = ReLU(r·d_i),  f_i += v,  r −= v d_i

Mallat & Zhang 1993, "Matching Pursuits with Time-Frequency Dictionaries"; as a sparse autoencoder
trained through its own steps: Costa et al. 2025, "From Flat to Hierarchical: Extracting Sparse
Representations with Matching Pursuit". Semantics and folder are SAELens's `matching_pursuit`.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.coders.contract import Coder, Forward, SparseForward
from sae.kernels import Codes, Kernels, Support, chunks

LONGEST = 2**16
"""Iterations of a token, for each of which there is a place in memory."""


class MatchingPursuit(Coder):
    """One latent per step, the one that best explains what is left; no encoder of its own.

    A token's steps end after `max_iterations`, when ‖r‖ < `residual_threshold` (in units of the
    activations that the coder reads, so that `folded` changes it; 0: never), or, with
    `stop_on_duplicate_support`, after a step that chose a latent which was active already.
    """

    architecture = "matching_pursuit"
    hyperparameters = ("max_iterations", "residual_threshold", "stop_on_duplicate_support")
    uses_auxk = True

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        max_iterations: int | None = 32,
        residual_threshold: float = 1e-2,
        stop_on_duplicate_support: bool = True,
    ) -> None:
        if max_iterations is not None and max_iterations < 1:
            raise UserError(f"`max_iterations` is {max_iterations}; at least one is needed.")
        if max_iterations is not None and max_iterations > LONGEST:
            raise UserError(
                f"`max_iterations` is {max_iterations:,}; at most {LONGEST:,} are made."
            )
        if residual_threshold < 0:
            raise UserError(f"`residual_threshold` is {residual_threshold}; it must not be < 0.")
        super().__init__(d_in, d_sae)
        self.max_iterations = max_iterations or d_in  # SAELens's meaning of None
        self.residual_threshold = residual_threshold
        self.stop_on_duplicate_support = stop_on_duplicate_support
        del self.W_enc_FD
        self.W_enc_FD = self.W_dec_FD  # tied: one parameter under two names
        self.b_enc_F.requires_grad_(False)

    def dense_values(self, rows: int) -> int:
        """Scores of a chunk, at one step of its pursuit."""
        return min(rows, chunks.score_rows(self.d_sae)) * self.d_sae

    def select(self, centred_BD: Tensor) -> Support:
        return self._pursue(centred_BD).support

    def infer(self, x_BD: Tensor) -> Codes:
        return self._pursue(x_BD - self.b_dec_D)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        codes = self._pursue(x_BD - self.b_dec_D)
        return SparseForward(self, codes, kernels)

    def scale_units(self, factor: float) -> None:
        self.residual_threshold *= factor

    def saved_tensors(self) -> dict[str, Tensor]:
        own = super().saved_tensors()
        return {name: own[name] for name in ("W_dec", "b_dec")}

    def load_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        with torch.no_grad():
            self.W_dec_FD.copy_(tensors["W_dec"])
            self.b_dec_D.copy_(tensors["b_dec"])
        return self

    def _pursue(self, centred_BD: Tensor) -> Codes:
        values_BT, indices_BT = _Pursuit.apply(  # pyright: ignore[reportGeneralTypeIssues]
            centred_BD,
            self.W_dec_FD,
            self.max_iterations,
            self.residual_threshold,
            self.stop_on_duplicate_support,
        )
        return _merged(values_BT, indices_BT, self.d_sae)


def _merged(values_BT: Tensor, indices_BT: Tensor, width: int) -> Codes:
    """Codes of the steps; those of a row that chose the same latent add up in the first of them.

    (Without `stop_on_duplicate_support`, three of them may add up in any order on CUDA.)
    """
    slots_BT = torch.arange(values_BT.shape[1], device=values_BT.device).expand_as(indices_BT)
    sorted_BT, order_BT = indices_BT.sort(dim=1, stable=True)
    begins_BT = torch.ones_like(sorted_BT, dtype=torch.bool)
    begins_BT[:, 1:] = sorted_BT[:, 1:] != sorted_BT[:, :-1]
    begin_BT = torch.where(begins_BT, slots_BT, 0).cummax(dim=1).values
    first_BT = torch.empty_like(order_BT).scatter_(1, order_BT, order_BT.gather(1, begin_BT))
    acts_BT = torch.zeros_like(values_BT).scatter_add(1, first_BT, values_BT)
    kept_BT = (first_BT == slots_BT) & (acts_BT.detach() > 0)
    support = Support.of_counts(indices_BT[kept_BT], kept_BT.sum(1), width)
    return Codes(acts_BT[kept_BT], support)


class _Pursuit(torch.autograd.Function):
    """(amounts, latents), both (B, steps), of all steps; choices have no gradient.

    The backward pass goes through the steps from the last to the first and gets each residual
    back as r + v d, so that no residual but the last one is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, W_FD: Tensor, steps: int, threshold: float, stop: bool
    ) -> tuple[Tensor, Tensor]:
        size = chunks.score_rows(len(W_FD))
        parts = [_run(x, W_FD, steps, threshold, stop) for x in x_BD.split(size)]
        longest = max(part[0].shape[1] for part in parts)
        values_BT, indices_BT = (
            torch.cat([_widened(part[i], longest) for part in parts]) for i in range(2)
        )
        residual_BD = torch.cat([part[2] for part in parts])
        ctx.save_for_backward(values_BT, indices_BT, residual_BD, W_FD)
        ctx.mark_non_differentiable(indices_BT)
        return values_BT, indices_BT

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values_BT, indices_BT, residual_BD, W_FD = ctx.saved_tensors
        grad_BT = grads[0]
        grad_W_FD = torch.zeros_like(W_FD)
        grad_r_BD = torch.zeros_like(residual_BD)
        for step in reversed(range(values_BT.shape[1])):
            value_B1, index_B = values_BT[:, step, None], indices_BT[:, step]
            row_BD = W_FD[index_B]
            residual_BD = torch.addcmul(residual_BD, value_B1, row_BD)
            into_B1 = grad_BT[:, step, None] - torch.linalg.vecdot(grad_r_BD, row_BD)[:, None]
            into_B1 = into_B1 * (value_B1 > 0)
            _add_rows(grad_W_FD, index_B, into_B1 * residual_BD - value_B1 * grad_r_BD)
            grad_r_BD = torch.addcmul(grad_r_BD, into_B1, row_BD)
        return grad_r_BD, grad_W_FD, None, None, None


def _run(
    x_BD: Tensor, W_FD: Tensor, steps: int, threshold: float, stop: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(amounts, latents, what is left) of a chunk; rows that have ended go on with amounts of 0."""
    residual_BD = x_BD.clone()
    going_B = torch.ones(len(x_BD), dtype=torch.bool, device=x_BD.device)
    values_BT = x_BD.new_zeros(len(x_BD), steps)
    indices_BT = torch.zeros(len(x_BD), steps, dtype=torch.int64, device=x_BD.device)
    step = 0
    for step in range(steps):
        index_B = (residual_BD @ W_FD.T).argmax(dim=1)
        row_BD = W_FD[index_B]
        value_B = torch.relu(torch.linalg.vecdot(residual_BD, row_BD)) * going_B
        residual_BD = torch.addcmul(residual_BD, value_B[:, None], row_BD, value=-1)
        if stop:
            active_BT = (indices_BT[:, :step] == index_B[:, None]) & (values_BT[:, :step] > 0)
            going_B = going_B & (value_B > 0) & ~active_BT.any(1)
        values_BT[:, step], indices_BT[:, step] = value_B, index_B
        if threshold > 0:
            going_B = going_B & ~(residual_BD.norm(dim=1) < threshold)
        if not bool(going_B.any()):
            break
    return values_BT[:, : step + 1], indices_BT[:, : step + 1], residual_BD


def _add_rows(out_FD: Tensor, index_B: Tensor, values_BD: Tensor) -> None:
    """out[index] += values, in the same order every time. On a CPU `index_add_` goes through the
    rows one by one; elsewhere it does not, and what does (`index_put_` sorts) is slow on a CPU.
    """
    if out_FD.device.type == "cpu":
        out_FD.index_add_(0, index_B, values_BD)
    else:
        out_FD.index_put_((index_B,), values_BD, accumulate=True)


def _widened(values_BT: Tensor, steps: int) -> Tensor:
    return torch.nn.functional.pad(values_BT, (0, steps - values_BT.shape[1]))
