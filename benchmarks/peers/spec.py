"""What every benchmarked system is asked to build. Runs in every peer's environment: torch only.

A system's module has one class, `System`, which builds a TopK coder and trains it the way that
its own trainer does:

    System(spec, first_BD)   first_BD: the first batch, for biases set from data
    step(x_BD)               one training step, finished when it returns on a CPU
    flag_dead(latents)       makes the next step take these latents for dead
    encoder_FD               the encoder's rows, writable
    save(folder)             the coder as the system's own code saves it
"""

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """One TopK training. `learning_rate=None` is the system's own default for this width."""

    d: int
    width: int
    k: int
    batch: int
    steps: int
    auxk: bool = False
    seed: int = 0
    device: str = "cpu"
    learning_rate: float | None = None
    dead_after: int = 10_000_000  # tokens
    scale: float = 1.0  # what rows of a file are multiplied by before the system sees them


def load_system(name: str) -> ModuleType:
    """The module of a system; importing it imports the peer."""
    return importlib.import_module("gemm_system" if name.startswith("gemm") else f"{name}_system")


def synthetic_batches(spec: Spec, count: int) -> list[Tensor]:
    """Batches (B, D) float32 of sparse sums of 4 D directions, a mean and noise: same for all."""
    random = torch.Generator().manual_seed(1)
    atoms = torch.randn(4 * spec.d, spec.d, generator=random)
    atoms /= atoms.norm(dim=1, keepdim=True)
    mean_D = torch.randn(spec.d, generator=random)
    found = []
    for _ in range(count):
        which = torch.randint(len(atoms), (spec.batch, spec.k), generator=random)
        weight = torch.empty(spec.batch, spec.k).exponential_(generator=random)
        x_BD = torch.nn.functional.embedding_bag(
            which, atoms, per_sample_weights=weight, mode="sum"
        )
        noise = torch.randn(x_BD.shape, generator=random) * (0.3 / spec.d**0.5)
        found.append((x_BD + noise + mean_D).to(spec.device))
    return found
