"""SAELens: SAETrainer.step on a TopKTrainingSAE with its defaults, as its training loop calls it.

Dense codes (`use_sparse_activations=False`, its default; the sparse ones fail on a CPU). It has
no gradient projection and no renormalisation: it selects by pre-activation times decoder norm.
"""

from pathlib import Path

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from spec import Spec
from torch import Tensor

ABOUT = "SAETrainer.step, TopKTrainingSAE, defaults (Adam at 3e-4 constant, dense codes)"


class System:
    def __init__(self, spec: Spec, first_BD: Tensor) -> None:
        torch.manual_seed(spec.seed)
        sae = TopKTrainingSAE(
            TopKTrainingSAEConfig(d_in=spec.d, d_sae=spec.width, k=spec.k, device=spec.device)
        )
        rate = spec.learning_rate or 3e-4
        config = SAETrainerConfig(
            total_training_samples=spec.steps * spec.batch,
            train_batch_size_samples=spec.batch,
            lr=rate,
            lr_end=rate / 10,
            device=spec.device,
            dead_feature_window=max(1, spec.dead_after // spec.batch),
        )
        self.trainer = SAETrainer(config, sae, iter(()))

    @property
    def encoder_FD(self) -> Tensor:
        return self.trainer.sae.W_enc.data.T

    def step(self, x_BD: Tensor) -> None:
        self.trainer.step(x_BD)
        self.trainer.n_training_steps += 1

    def flag_dead(self, latents: Tensor) -> None:
        self.trainer.n_forward_passes_since_fired[latents] = (
            self.trainer.cfg.dead_feature_window + 1
        )

    def save(self, folder: Path) -> None:
        self.trainer.sae.save_inference_model(folder)
