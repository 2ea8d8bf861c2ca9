"""One coder in training: its optimiser, its dead latents, its step."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.base.devices import default_dtype
from sae.base.errors import UserError
from sae.base.large_pages import on_large_pages
from sae.base.memory import keep_freed_memory
from sae.coders import Coder, Codes, TwoSites
from sae.kernels import Backend, get_kernels
from sae.store import SiteStats
from sae.training.averaging import WeightAverage
from sae.training.dead import DeadLatents, auxk_step, most_revived
from sae.training.optimizer import CoderOptimizer
from sae.training.resampling import Resampler
from sae.training.settings import Settings


@dataclass(frozen=True)
class StepLog:
    """What a step reports. Its tensors are not waited for unless they are recorded; the count of
    dead latents is, since the shapes of the auxiliary loss depend on it."""

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
    A transcoder has a `target` as well: the site that it predicts, with its statistics and, from
    them, a scale of its own. `centre_D` is the geometric median of the site that is predicted, in
    raw units, where `settings.centre` asks that b_dec starts there.
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
        target: tuple[str, SiteStats] | None = None,
        centre_D: npt.NDArray[np.floating] | None = None,
    ) -> None:
        self.name, self.site, self.settings = name, site, settings
        self.sites = (site,) if target is None else (site, target[0])
        self.scale, self.target_scale = self._initialise(coder, stats, target)
        if settings.centre == "geometric_median":
            self._move_centre(coder, centre_D)
        if torch.device(device).type == "cpu":
            keep_freed_memory()
        self.coder = coder.to(device).train()
        for parameter in self.coder.parameters():
            parameter.data = on_large_pages(parameter.data)
        self.kernels = get_kernels(backend, device)
        self.optimizer = CoderOptimizer(
            self.coder, settings.clipped_at(coder.d_out), self.kernels, settings.moments
        )
        self.average = WeightAverage(self.coder, settings.ema) if settings.ema else None
        self.dead = DeadLatents(coder.d_sae, settings.dead_tokens, torch.device(device))
        self.resampler = Resampler(self.coder, settings)
        self.auxk_k = settings.auxk_k or max(1, coder.d_in // 2)
        low = default_dtype(device)
        self.candidates = low if low is torch.bfloat16 else None
        self.done = 0

    def _initialise(
        self, coder: Coder, stats: SiteStats, target: tuple[str, SiteStats] | None
    ) -> tuple[float, float | None]:
        """First weights; returns the scales of the site and, for a transcoder, of its target."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        scale, mean_D = _normalisation(self.site, stats)
        if isinstance(coder, TwoSites):
            if target is None:
                raise UserError(
                    f"`{coder.architecture}` predicts one site from another; name it as "
                    "`target_site`."
                )
            target_scale, target_mean_D = _normalisation(*target)
            coder.initialise(mean_D, generator, target_mean_D)
            return scale, target_scale
        if target is not None:
            raise UserError(
                f"`{coder.architecture}` reconstructs the site that it reads; only transcoders "
                f"have a target site, such as `{target[0]}`."
            )
        coder.initialise(mean_D, generator)
        return scale, None

    def _move_centre(self, coder: Coder, centre_D: npt.NDArray[np.floating] | None) -> None:
        if centre_D is None:
            raise UserError(
                "`centre` is `geometric_median`, which statistics do not tell; give it as "
                "`centre_D`, from some rows by `sae.training.geometric_median`."
            )
        scaled_D = torch.as_tensor(centre_D * (self.target_scale or self.scale))
        coder.b_dec_D.data.copy_(scaled_D)

    @property
    def units(self) -> tuple[str, float, torch.device]:
        """What `scaled` depends on: trainers of equal units can share its result."""
        return self.site, self.scale, self.coder.W_enc_FD.device

    def scaled(self, raw_BD: Tensor) -> Tensor:
        """Raw activations (B, D) of any floating dtype in the units and place of training."""
        return raw_BD.to(self.coder.W_enc_FD.device, torch.float32) * self.scale

    def step(self, raw_BD: Tensor, raw_target_BD: Tensor | None = None) -> StepLog:
        """One update on a batch of raw activations (B, D) of any floating dtype.

        A transcoder is given those of its target site too, (B, d_out).
        """
        return self.step_scaled(self.scaled(raw_BD), raw_target_BD)

    def step_scaled(self, x_BD: Tensor, raw_target_BD: Tensor | None = None) -> StepLog:
        """One update on what `scaled` made of a batch; `x_BD` is only read."""
        coder, settings = self.coder, self.settings
        y_BD = x_BD
        if raw_target_BD is not None and self.target_scale is not None:
            y_BD = raw_target_BD.to(x_BD.device, torch.float32) * self.target_scale
        coder.progress = self.done / settings.steps
        forward = coder.training_forward(x_BD, self.kernels, self.candidates)
        square, residual_BD = forward.error(y_BD)
        error = square / y_BD.numel()
        loss = error if forward.penalty is None else error + forward.penalty
        loss.backward()
        dead = self.dead.dead
        auxk = None
        if coder.uses_auxk and len(dead) and settings.auxk_coefficient:
            auxk = auxk_step(
                coder,
                x_BD,
                residual_BD,
                self.dead.longest(dead, most_revived(coder)),
                self.auxk_k,
                settings.auxk_coefficient,
                self.kernels,
                self.candidates,
            )
            loss = loss.detach() + settings.auxk_coefficient * auxk
        rate = settings.rate(self.done, coder.d_sae)
        self.optimizer.step(rate, last=self.done + 1 == settings.steps)
        coder.constrain()
        if self.average is not None:
            self.average.update()
        self.dead.update(forward.codes)
        self.done += 1
        self._resample(x_BD, residual_BD, forward.codes)
        l0 = forward.codes.acts_N.detach().count_nonzero() / len(x_BD)
        return StepLog(loss.detach(), error.detach(), auxk, l0, len(dead), rate)

    def _resample(self, x_BD: Tensor, residual_BD: Tensor, codes: Codes) -> None:
        new = self.resampler.after_step(
            self.done, x_BD, residual_BD, codes, self.dead.silent_F, self.optimizer
        )
        if self.average is not None and len(new):
            self.average.restart(new)

    def finished_coder(self, borrow: bool = False) -> Coder:
        """The coder that takes raw activations; training may go on afterwards.

        With `borrow` it may not: the coder's matrices are then this trainer's own where they can
        be, which spares a copy of what may fill half of the memory. After all `settings.steps` no
        row sleeps (`CoderOptimizer`); before, one may be as it was up to seven steps ago.
        """
        coder = self.coder if self.average is None else self.average.averaged()
        if isinstance(coder, TwoSites):
            return coder.folded(self.scale, self.target_scale, borrow=borrow).cpu()
        return coder.folded(self.scale, borrow=borrow).cpu()

    def state_dict(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "scale": self.scale,
            "target_scale": self.target_scale,
            "coder": self.coder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "silent_F": self.dead.silent_F,
            "resampler": self.resampler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coder.load_state_dict(state["coder"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.dead.silent_F.copy_(state["silent_F"])
        self.resampler.load_state_dict(state["resampler"])
        self.scale, self.done = float(state["scale"]), int(state["done"])
        self.target_scale = state["target_scale"]


def _normalisation(site: str, stats: SiteStats) -> tuple[float, Tensor]:
    """The scale that gives activations a variance of D, and their mean in those units."""
    if stats.variance <= 0:
        raise UserError(f"The activations at `{site}` do not vary; there is nothing to learn.")
    scale = (len(stats.mean_D) / stats.variance) ** 0.5
    return scale, torch.from_numpy(stats.mean_D * scale).float()
