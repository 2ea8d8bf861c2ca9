"""Neuron resampling of Bricken et al. 2023, "Towards Monosemanticity" (appendix, "Neuron
Resampling"): dead latents start again at inputs that the coder reconstructs badly.

At each resampling step, a latent that was silent throughout the window before it gets
    decoder row    an input example's direction, examples drawn with probability ∝ loss²
    encoder row    the same, at a fifth of the mean norm of the living latents' encoder rows
    bias           0, and Adam's moments of all three are forgotten.

The paper measures the loss of 819,200 inputs with the coder of that moment, beside the training
stream. Here the examples are the last so many training inputs, each with its loss at its own step:
no second stream, no further forward pass. They are not older than the window, since before it the
latents that are dead now took part in the reconstruction; in a training whose window is shorter
than 819,200 inputs there are as many examples as the window has. They are drawn without
replacement by a weighted reservoir (Efraimidis & Spirakis 2006: the smallest of Exp(1) / weight),
which holds no more rows than latents that may turn out to be dead. Its draws are a pure function of
(seed, step).
An input is taken relative to `b_dec`, which is what the encoder sees. A resampling that would fall
on the last step is left out: latents that start again there would be saved as they are.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.base.errors import UserError
from sae.coders import Coder, Codes
from sae.coders.registry import ARCHITECTURES
from sae.training.optimizer import CoderOptimizer
from sae.training.settings import Settings

EXAMPLES = 819_200  # inputs before a resampling step that are examples, in whole batches
ENCODER_NORM = 0.2  # of a new encoder row, in mean norms of the living ones


def check_resampling(architecture: str, settings: Settings) -> None:
    """Raises `UserError` if coders of this architecture are not resampled, and it is asked for."""
    if settings.resample and not ARCHITECTURES[architecture].resamples:
        raise UserError(
            f"`resample` is given for a `{architecture}` coder; only `relu` coders "
            "are resampled, others keep their latents alive by AuxK or need no help."
        )


class Resampler:
    """Resamples at the steps that `Settings.resample` names, and gathers examples before them."""

    def __init__(self, coder: Coder, settings: Settings) -> None:
        check_resampling(coder.architecture, settings)
        self.coder, self.settings = coder, settings
        steps = {max(1, round(share * settings.steps)) for share in settings.resample}
        self.steps = sorted(step for step in steps if step < settings.steps)
        self.window = max(1, round(settings.resample_window * settings.steps))
        self.collected = min(self.window, -(-EXAMPLES // settings.batch))  # batches
        self._forget_examples()

    def after_step(
        self,
        step: int,
        x_BD: Tensor,
        residual_BD: Tensor,
        codes: Codes,
        silent_F: Tensor,
        optimizer: CoderOptimizer,
    ) -> Tensor:
        """To be called when `step` (from 1) is done: gathers, and resamples where it is time.

        `residual_BD` is what the weights before the step left of `x_BD`, and `codes` are theirs.
        `silent_F` counts tokens since a latent fired; new latents start again at 0. Returns which
        latents are new: mostly none.
        """
        nothing = silent_F.new_empty(0)
        due = next((s for s in self.steps if s >= step), None)
        if due is None or due - step >= self.collected:
            return nothing
        batch = len(x_BD)
        may_be_dead = int((silent_F >= (self.window - (due - step)) * batch).sum())
        error_B = residual_BD.square().sum(dim=1)
        self._gather(step, x_BD, error_B + self.coder.row_penalty(codes), may_be_dead)
        if step < due:
            return nothing
        dead = (silent_F >= self.window * batch).nonzero()[:, 0][: len(self.rows_ND)]
        self._resample(dead, optimizer)
        silent_F[dead] = 0
        self._forget_examples()
        return dead

    def state_dict(self) -> dict[str, Any]:
        return {"keys_N": self.keys_N, "rows_ND": self.rows_ND}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.coder.W_dec_FD.device
        self.keys_N, self.rows_ND = state["keys_N"], state["rows_ND"].to(device)

    def _forget_examples(self) -> None:
        self.keys_N = torch.empty(0, dtype=torch.float64)
        self.rows_ND = torch.empty(0, self.coder.d_in)

    @torch.no_grad()
    def _gather(self, step: int, x_BD: Tensor, loss_B: Tensor, capacity: int) -> None:
        """Merges a batch into the reservoir of the `capacity` smallest keys, in their order."""
        loss_B = loss_B.cpu().double()
        # Not torch's generator: it reads only 32 bits of a seed, too few for two numbers.
        rng = np.random.default_rng([self.settings.seed % 2**32, step])
        drawn_B = torch.from_numpy(rng.exponential(size=len(x_BD)))
        keys_N = torch.cat([self.keys_N, drawn_B / loss_B.square()])
        kept = keys_N.argsort(stable=True)[:capacity]
        old = kept < len(self.keys_N)
        rows_ND = x_BD.new_empty(len(kept), x_BD.shape[1])
        rows_ND[old] = self.rows_ND.to(x_BD)[kept[old]]
        rows_ND[~old] = x_BD[kept[~old] - len(self.keys_N)]
        self.keys_N, self.rows_ND = keys_N[kept], rows_ND

    @torch.no_grad()
    def _resample(self, dead: Tensor, optimizer: CoderOptimizer) -> None:
        if not len(dead):
            return
        coder = self.coder
        living_F = torch.ones(coder.d_sae, dtype=torch.bool, device=dead.device)
        living_F[dead] = False
        norms_F = torch.linalg.vector_norm(coder.W_enc_FD, dim=1)
        norm = norms_F[living_F].mean() if living_F.any() else norms_F.mean()
        directions = F.normalize(self.rows_ND[: len(dead)] - coder.b_dec_D, dim=1)
        coder.W_dec_FD[dead] = directions
        coder.W_enc_FD[dead] = ENCODER_NORM * norm * directions
        coder.b_enc_F[dead] = 0
        optimizer.forget(dead)
