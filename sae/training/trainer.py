"""One coder in training: its optimiser, its dead latents, its step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae.base.devices import default_dtype
from sae.base.errors import UserError
from sae.coders import Coder
from sae.kernels import Backend, get_kernels
from sae.store import SiteStats
from sae.training.dead import DeadLatents, auxk_loss
from sae.training.optimizer import CoderOptimizer
from sae.training.settings import Settings


@dataclass(frozen=True)
class StepLog:
    """What a step reports, as tensors: nothing is computed for it, nothing waits for it."""

    loss: Tensor
    error: Tensor  # mean ‖x − x̂‖² / D in normalised units: FVU, up to the batch's own variance
    auxk: Tensor | None
    l0: Tensor
    dead: int
    rate: float

    def record(self) -> dict[str, float]:
        return {
            "loss": float(self.loss),
            "fvu_batch": float(self.error),
            "l0": float(self.l0),
            "dead": self.dead,
            "auxk": float(self.auxk) if self.auxk is not None else 0.0,
            "learning_rate": self.rate,
        }


class CoderTrainer:
    """Trains `coder` on batches of one site, in units in which x has a variance of D in all.

    `stats` are those of the store's train split: they fix the scale and the initial b_dec.
    """

    def __init__(
        self,
        name: str,
        coder: Coder,
        site: str,
        stats: SiteStats,
        settings: Settings,
        device: str = "cpu",
        backend: Backend = "auto",
    ) -> None:
        self.name, self.site, self.settings = name, site, settings
        if stats.variance <= 0:
            raise UserError(f"The activations at `{site}` do not vary; there is nothing to learn.")
        self.scale = (coder.d_in / stats.variance) ** 0.5
        mean_D = torch.from_numpy(stats.mean_D * self.scale).float()
        coder.initialise(mean_D, torch.Generator().manual_seed(settings.seed))
        self.coder = coder.to(device).train()
        self.kernels = get_kernels(backend, device)
        self.optimizer = CoderOptimizer(self.coder, settings.grad_clip, self.kernels)
        self.dead = DeadLatents(coder.d_sae, settings.dead_after, torch.device(device))
        self.auxk_k = settings.auxk_k or max(1, coder.d_in // 2)
        low = default_dtype(device)
        self.candidates = low if low is torch.bfloat16 else None
        self.done = 0

    def step(self, raw_BD: Tensor) -> StepLog:
        """One update on a batch of raw activations (B, D) of any floating dtype."""
        coder, settings = self.coder, self.settings
        x_BD = raw_BD.to(self.coder.W_enc_FD.device, torch.float32) * self.scale
        forward = coder.training_forward(x_BD, self.kernels, self.candidates)
        error = (x_BD - forward.x_hat_BD).square().sum() / x_BD.numel()
        loss = error if forward.penalty is None else error + forward.penalty
        dead = self.dead.dead if coder.uses_auxk else torch.empty(0, dtype=torch.int64)
        auxk = None
        if len(dead) and settings.auxk_coefficient:
            auxk = auxk_loss(
                coder, x_BD, forward.x_hat_BD.detach(), dead, self.auxk_k, self.kernels
            )
            loss = loss + settings.auxk_coefficient * auxk
        loss.backward()
        rate = settings.rate(self.done, coder.d_sae)
        self.optimizer.step(rate)
        self.dead.update(forward.codes)
        self.done += 1
        l0 = forward.codes.acts_N.detach().count_nonzero() / len(x_BD)
        auxk_value = None if auxk is None else auxk.detach()
        return StepLog(loss.detach(), error.detach(), auxk_value, l0, len(dead), rate)

    def finished_coder(self) -> Coder:
        """The coder that takes raw activations; training may go on afterwards."""
        return self.coder.folded(self.scale).cpu()

    def state_dict(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "scale": self.scale,
            "coder": self.coder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "silent_F": self.dead.silent_F,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coder.load_state_dict(state["coder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.dead.silent_F.copy_(state["silent_F"])
        self.scale, self.done = float(state["scale"]), int(state["done"])
