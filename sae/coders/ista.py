"""ISTA: the encoder is an optimiser of the codes, cut off after a few steps.

    minimise over f ≥ 0:   ‖x − b_dec − W_decᵀ f‖² + l1 · Σ f            (λ = l1 / 2 in the form
                                                                          ½‖·‖² + λ‖f‖₁)
    f_0     = η_0 ReLU(W_enc (x − b_dec) + b_enc)
    f_{t+1} = ReLU(g + η_t (W_dec (x − b_dec − W_decᵀ g) − l1 / 2)),
    g       = f_t + β_t (f_t − f_{t−1}),  β_t Nesterov's

Beck & Teboulle 2009, "A Fast Iterative Shrinkage-Thresholding Algorithm" (the accelerated form);
Gregor & LeCun 2010, "Learning Fast Approximations of Sparse Coding" (unrolled, with what is
learned: here the first guess f_0 and the step sizes η_t). The problem is convex, so that with
steps of 1 / ‖W_dec‖² or less the codes reach its optimum from any f_0; each step then closes a
part of the gap between an amortised encoder and sparse coding. Before training f_0 is the first
step from 0 (W_enc = W_dec, b_enc = −l1 / 2), and all sizes are 1 / ‖W_dec‖².
"""

import math
from collections.abc import Iterator, Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sae.base.errors import UserError
from sae.coders.contract import Coder, Forward, SparseForward
from sae.coders.relu import check_weight
from sae.kernels import Codes, Kernels, Support, chunks

PER_STEP, BESIDE = 3, 6  # dense tensors that steps hold (tests/training/test_memory.py counts)


class ISTA(Coder):
    """Codes after `steps` accelerated proximal gradient steps on the decoder itself.

    `l1` is in units of the activations that the coder reads, so that `folded` changes it.
    Training minimises the same objective over weights and step sizes.
    """

    architecture = "ista"
    hyperparameters = ("steps", "l1")
    squared_norm: Tensor  # ‖W_dec‖², the Lipschitz constant of the gradient / 2
    direction_D: Tensor  # the right singular vector that belongs to it
    norm_known: bool = False  # whether they are this decoder's: only training asks

    def __init__(self, d_in: int, d_sae: int, steps: int = 4, l1: float = 5.0) -> None:
        if steps < 1:
            raise UserError(f"`steps` is {steps}; at least one is needed.")
        check_weight("l1", l1)
        super().__init__(d_in, d_sae)
        self.steps, self.l1 = steps, l1
        self.log_gain_T = nn.Parameter(torch.zeros(steps + 1))  # of η_t ‖W_dec‖²
        self.register_buffer("squared_norm", torch.tensor(1.0))
        self.register_buffer("direction_D", torch.zeros(d_in))

    def initialise(self, mean_D: Tensor, generator: torch.Generator) -> None:
        super().initialise(mean_D, generator)
        with torch.no_grad():
            self.b_enc_F.fill_(-self.l1 / 2)
            self._find_norm()
            self.log_gain_T.zero_()

    def step_sizes(self) -> Tensor:
        """η_t: of the first guess, then of each step."""
        return self.log_gain_T.exp() / self.squared_norm

    def dense_values(self, rows: int) -> int:
        """Those of one chunk: the steps of the others are taken anew in the backward pass."""
        return min(rows, self._chunk_rows) * self.d_sae * self._dense_tensors

    def gradient_values(self, rows: int) -> int:
        """The decoder's twice: every step adds to what the later ones left."""
        return super().gradient_values(rows) + self.W_dec_FD.numel()

    @property
    def _dense_tensors(self) -> int:
        return PER_STEP * self.steps + BESIDE

    @property
    def _chunk_rows(self) -> int:
        return max(1, chunks.UNROLLED // (self.d_sae * self._dense_tensors))

    def select(self, centred_BD: Tensor) -> Support:
        return self._iterated(centred_BD).support

    def infer(self, x_BD: Tensor) -> Codes:
        return self._iterated(x_BD - self.b_dec_D)

    def training_forward(
        self, x_BD: Tensor, kernels: Kernels, candidates: torch.dtype | None = None
    ) -> Forward:
        self._follow_norm()
        codes = self._iterated(x_BD - self.b_dec_D)
        penalty = self.l1 * codes.acts_N.sum() / (len(x_BD) * self.d_in)
        return SparseForward(self, codes, kernels, penalty)

    def scale_units(self, factor: float) -> None:
        self.l1 *= factor

    def saved_tensors(self) -> dict[str, Tensor]:
        return {**super().saved_tensors(), "step_sizes": self.step_sizes().detach()}

    def load_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        super().load_saved(tensors)
        with torch.no_grad():
            self.squared_norm.fill_(1.0)  # step sizes are those saved, to the bit
            self.log_gain_T.copy_(tensors["step_sizes"].log())
        self.norm_known = False
        return self

    @torch.no_grad()
    def _find_norm(self) -> None:
        """‖W_dec‖² from nothing; the step sizes stay what they are."""
        values_D, vectors_DD = torch.linalg.eigh(self.W_dec_FD.T @ self.W_dec_FD)
        self.log_gain_T += (values_D[-1] / self.squared_norm).log()
        self.squared_norm.copy_(values_D[-1])
        self.direction_D.copy_(vectors_DD[:, -1])
        self.norm_known = True

    def _iterated(self, centred_BD: Tensor) -> Codes:
        """The codes, chunk by chunk; only their support outlives a chunk.

        With gradients and more than one chunk, the steps of a chunk are computed again in the
        backward pass, so that memory holds those of one chunk.
        """
        parts = centred_BD.split(self._chunk_rows)
        again = len(parts) > 1 and torch.is_grad_enabled()
        acts, indices, counts = [], [], [torch.zeros(1, dtype=torch.int64)]
        for chunk_BD in parts:
            found = checkpoint(self._unroll, chunk_BD, use_reentrant=False) if again else None
            acts_BF = cast(Tensor, found) if again else self._unroll(chunk_BD)
            row_N, latent_N = (acts_BF.detach() > 0).nonzero(as_tuple=True)
            acts.append(acts_BF[row_N, latent_N])
            indices.append(latent_N)
            counts.append(torch.bincount(row_N, minlength=len(chunk_BD)))
        counts[0] = counts[0].to(centred_BD.device)
        offsets_B1 = torch.cat(counts).cumsum(0)
        return Codes(torch.cat(acts), Support(torch.cat(indices), offsets_B1, self.d_sae))

    def _unroll(self, centred_BD: Tensor) -> Tensor:
        """Dense codes (rows, F) of a chunk."""
        first, *sizes = self.step_sizes().unbind()
        acts_BF = first * torch.relu(torch.addmm(self.b_enc_F, centred_BD, self.W_enc_FD.T))
        ahead_BF = acts_BF
        for size, momentum in zip(sizes, nesterov(self.steps), strict=True):
            left_BD = torch.addmm(centred_BD, ahead_BF, self.W_dec_FD, alpha=-1)
            gain_BF = left_BD @ self.W_dec_FD.T - self.l1 / 2
            new_BF = torch.relu(ahead_BF + size * gain_BF)
            ahead_BF = new_BF + momentum * (new_BF - acts_BF)
            acts_BF = new_BF
        return acts_BF

    @torch.no_grad()
    def _follow_norm(self) -> None:
        """‖W_dec‖² by one step of the power method from where the last training step left it."""
        if not self.norm_known:
            self._find_norm()
        image_F = self.W_dec_FD @ self.direction_D
        self.squared_norm.copy_(image_F.square().sum())
        direction_D = image_F @ self.W_dec_FD
        self.direction_D.copy_(direction_D / direction_D.norm().clamp_min(1e-30))


def nesterov(steps: int) -> Iterator[float]:
    """β_t = (s_t − 1) / s_{t+1} with s_1 = 1, s_{t+1} = (1 + √(1 + 4 s_t²)) / 2."""
    s = 1.0
    for _ in range(steps):
        following = (1 + math.sqrt(1 + 4 * s * s)) / 2
        yield (s - 1) / following
        s = following
