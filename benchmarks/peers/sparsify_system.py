"""EleutherAI's sparsify: its SparseCoder and fused encoder, stepped in the order of its Trainer.

Its Trainer reads activations from a model's hooks only, so the body of its loop stands here:
decoder rows to unit norm, forward (on a CPU its decoder is the eager `embedding_bag`), loss
fvu + auxk_alpha * auxk, backward, gradient projection, optimiser, warm-up schedule, count of
silent tokens. Of its optimisers, Adam (`optimizer="adam"`; its default is Signum, made
schedule-free) with its own learning rate, 2e-4 / sqrt(F / 2^14); without bitsandbytes that is
torch.optim.Adam. auxk_alpha is 0 by default; where AuxK is on, 1/32 as in Gao et al.
"""

from pathlib import Path

import torch
from sparsify import SparseCoder, SparseCoderConfig
from spec import Spec
from torch import Tensor
from transformers import get_linear_schedule_with_warmup

ABOUT = "SparseCoder, Adam at 2e-4 / sqrt(F / 2^14), 1000 steps of warm-up, linear decay"
WARMUP_STEPS = 1000


class System:
    def __init__(self, spec: Spec, first_BD: Tensor) -> None:
        torch.set_float32_matmul_precision("high")  # as its Trainer.fit does
        torch.manual_seed(spec.seed)
        self.auxk_alpha = 1 / 32 if spec.auxk else 0.0
        self.threshold = spec.dead_after
        config = SparseCoderConfig(num_latents=spec.width, k=spec.k)
        self.sae = SparseCoder(spec.d, config, spec.device, dtype=torch.float32)
        self.sae.b_dec.data = first_BD.mean(0)
        rate = spec.learning_rate or 2e-4 / (spec.width / 2**14) ** 0.5
        self.optimizer = torch.optim.Adam([{"params": self.sae.parameters(), "lr": rate}])
        self.schedule = get_linear_schedule_with_warmup(
            self.optimizer, min(WARMUP_STEPS, spec.steps // 4), spec.steps
        )
        self.silent_F = torch.zeros(spec.width, dtype=torch.long, device=spec.device)
        self.fired_F = torch.zeros(spec.width, dtype=torch.bool, device=spec.device)

    @property
    def encoder_FD(self) -> Tensor:
        return self.sae.encoder.weight.data

    def step(self, x_BD: Tensor) -> None:
        sae = self.sae
        sae.set_decoder_norm_to_unit_norm()
        dead_F = self.silent_F > self.threshold if self.auxk_alpha > 0 else None
        variance = (x_BD - x_BD.mean(0)).pow(2).sum()
        out = sae(x=x_BD, y=x_BD, dead_mask=dead_F, total_variance=variance)
        self.fired_F[out.latent_indices.flatten()] = True
        float(out.fvu.detach())  # its running average, logged or not
        (out.fvu + self.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        with torch.no_grad():
            self.silent_F += len(x_BD)
            self.silent_F[self.fired_F] = 0
            self.fired_F.zero_()

    def flag_dead(self, latents: Tensor) -> None:
        self.silent_F[latents] = self.threshold + 1

    def save(self, folder: Path) -> None:
        self.sae.set_decoder_norm_to_unit_norm()
        self.sae.save_to_disk(folder)
