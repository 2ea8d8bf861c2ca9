"""Latents that have stopped firing, and the auxiliary loss that brings them back."""

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from sae.coders import Coder, Codes
from sae.coders.entries import DENSE_ABOVE
from sae.kernels import Kernels, select_topk

LEAK = 0.1  # slope below zero; docs/training.md compares it with 0 and 1
MOST_VALUES = 1 << 27  # of the dead rows of one matrix, at a time
COPIES = 6  # of those values that a step holds, all told
EPSILON = torch.finfo(torch.float32).tiny


class DeadLatents:
    """Counts, for each latent, the tokens since it last fired."""

    def __init__(self, width: int, after: int, device: torch.device | None = None) -> None:
        self.after = after
        self.silent_F = torch.zeros(width, dtype=torch.int64, device=device)

    def update(self, codes: Codes) -> None:
        """Counts a batch of tokens. An entry with activation 0 is not a firing."""
        # Sums of ones are exact in any order, so that atomics on CUDA do no harm.
        firing_N = (codes.acts_N.detach() > 0).float()
        fired_F = torch.zeros_like(self.silent_F, dtype=torch.float32)
        fired_F.index_add_(0, codes.support.indices_N, firing_N)
        self.silent_F.add_(codes.rows).masked_fill_(fired_F > 0, 0)

    @property
    def dead(self) -> Tensor:
        """Latent numbers, ascending."""
        return (self.silent_F >= self.after).nonzero()[:, 0]

    def longest(self, dead: Tensor, most: int) -> Tensor:
        """The dead ones that have been silent longest, at most so many, ascending."""
        if len(dead) <= most:
            return dead
        order = self.silent_F[dead].argsort(descending=True, stable=True)
        return dead[order[:most].sort().values]


def most_revived(coder: Coder) -> int:
    """Dead latents that AuxK takes at a time, so that copies of their rows fit beside the coder."""
    return max(1, MOST_VALUES // max(coder.d_in, coder.d_out))


def auxk_step(
    coder: Coder,
    x_BD: Tensor,
    residual_BD: Tensor,
    dead: Tensor,
    k: int,
    coefficient: float,
    kernels: Kernels,
    candidates: torch.dtype | None = None,
) -> Tensor:
    """How badly the k best dead latents of each token model what the living ones left over.

        ‖e − ê‖² / ‖e‖²,   e = x − x̂ (a constant),   ê = Σ_{top-k dead} σ(pre_i) · W_dec[i]

    Gao et al. 2024, appendix A.2, but for two things. Theirs is ‖e − ê‖², and here it is divided
    by ‖e‖² of the batch, so that the weight of the auxiliary loss does not fall with the error.
    And σ is there a ReLU and here leaky: a dead latent's pre-activations are negative on nearly
    every token (on 99 % of its best ones, in the demo), so that a ReLU would stop the very
    gradient that is to revive it.

    Only dead latents are ranked, ê has no bias, and the gradient reaches the encoder and the
    decoder of the dead latents alone. (Latents that tie for the last place all count in the dense
    form.)

    Adds `coefficient` times the gradient to what is in the coder's `.grad`, and returns the
    value. All work is on the dead rows: nothing here is as wide as the dictionary. `candidates`
    is the precision in which the k best are looked for.
    """
    weights = (coder.W_enc_FD, coder.b_enc_F, coder.W_dec_FD)
    W_enc, b_enc, W_dec = own = [w.detach()[dead].requires_grad_() for w in weights]
    centre_D = coder.input_centre().detach()
    k = min(k, len(dead))
    if k > DENSE_ABOVE * len(dead):
        estimate_BD = _dense_estimate(x_BD - centre_D, W_enc, b_enc, W_dec, k)
    else:
        rows = x_BD - centre_D, W_enc.detach(), b_enc.detach()
        support = select_topk(*rows, k, candidates, kernels)
        pre_N = kernels.encode_at(x_BD, centre_D, W_enc, b_enc, support, support.pre_N)
        estimate_BD = kernels.decode(leaky_relu(pre_N, LEAK), W_dec, support)
    total = residual_BD.square().sum()
    loss = (residual_BD - estimate_BD).square().sum() / total.clamp_min(EPSILON)
    gradients = torch.autograd.grad(coefficient * loss, own)
    for weight, gradient in zip(weights, gradients, strict=True):
        if weight.requires_grad:  # an encoder may have no bias to learn
            _add_rows(weight, dead, gradient)
    return loss.detach()


def _dense_estimate(
    centred_BD: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, k: int
) -> Tensor:
    """ê by whole products over the dead rows: cheaper where most of them are among the k best."""
    pre_BM = torch.addmm(b_enc, centred_BD, W_enc.T)
    with torch.no_grad():
        least_B1 = pre_BM.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        chosen_BM = pre_BM >= least_B1
    return torch.where(chosen_BM, leaky_relu(pre_BM, LEAK), 0) @ W_dec


def _add_rows(weight: Tensor, rows: Tensor, values: Tensor) -> None:
    """weight.grad[rows] += values; either gradient may hold the touched rows alone.

    No row comes twice, so that the sums do not depend on the order of threads.
    """
    if values.is_sparse:
        rows, values = rows[values._indices()[0]], values._values()
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    if weight.grad.is_sparse:
        more = torch.sparse_coo_tensor(rows[None], values, weight.shape, check_invariants=False)
        weight.grad = (weight.grad + more).coalesce()
    else:
        weight.grad.index_add_(0, rows, values)
