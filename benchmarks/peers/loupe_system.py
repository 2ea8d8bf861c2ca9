"""Loupe: its public trainer with a `topk` coder, settings as they default."""

from pathlib import Path

import numpy as np
from spec import Spec
from torch import Tensor

from sae.coders import make_coder, save_coder
from sae.store import SiteStats
from sae.training import CoderTrainer, Settings

ABOUT = "sae.training.CoderTrainer.step, architecture topk, default Settings"


class System:
    def __init__(self, spec: Spec, first_BD: Tensor) -> None:
        settings = Settings(
            steps=spec.steps,
            batch=spec.batch,
            learning_rate=spec.learning_rate,
            dead_after=spec.dead_after,
            seed=spec.seed,
        )
        x = first_BD.cpu().double().numpy()
        norms = np.linalg.norm(x, axis=1)
        stats = SiteStats(len(x), x.mean(0), float(np.square(norms).mean()), float(norms.mean()))
        coder = make_coder("topk", spec.d, spec.width, k=spec.k)
        self.trainer = CoderTrainer("loupe", coder, "", stats, settings, spec.device)

    @property
    def encoder_FD(self) -> Tensor:
        return self.trainer.coder.W_enc_FD.data

    def step(self, x_BD: Tensor) -> None:
        self.trainer.step(x_BD)

    def flag_dead(self, latents: Tensor) -> None:
        self.trainer.dead.silent_F[latents] = self.trainer.dead.after

    def save(self, folder: Path) -> None:
        save_coder(self.trainer.finished_coder(), folder)
