"""dictionary_learning: its TopKTrainer.update with its defaults (AuxK weight 1/32, Adam at
2e-4 / sqrt(F / 2^14), 1000 steps of warm-up), which includes projection and renormalisation."""

import json
from pathlib import Path

import torch
from dictionary_learning.trainers.top_k import TopKTrainer
from spec import Spec
from torch import Tensor

ABOUT = "TopKTrainer.update, defaults (Adam at 2e-4 / sqrt(F / 2^14), 1000 steps of warm-up)"
WARMUP_STEPS = 1000


class System:
    def __init__(self, spec: Spec, first_BD: Tensor) -> None:
        self.trainer = TopKTrainer(
            steps=spec.steps,
            activation_dim=spec.d,
            dict_size=spec.width,
            k=spec.k,
            layer=0,
            lm_name="given",
            lr=spec.learning_rate,
            warmup_steps=min(WARMUP_STEPS, spec.steps // 4),
            decay_start=spec.steps * 4 // 5,
            seed=spec.seed,
            device=spec.device,
        )
        self.trainer.dead_feature_threshold = spec.dead_after
        self.done = 0

    @property
    def encoder_FD(self) -> Tensor:
        return self.trainer.ae.encoder.weight.data

    def step(self, x_BD: Tensor) -> None:
        self.trainer.update(self.done, x_BD)
        self.done += 1

    def flag_dead(self, latents: Tensor) -> None:
        self.trainer.num_tokens_since_fired[latents] = self.trainer.dead_feature_threshold

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.trainer.ae.state_dict(), folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": self.trainer.config}))
