"""Training through every backend, on a GPU where there is one: the same steps, the same resume."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae.coders import make_coder
from sae.coders.registry import TRAINABLE, TWO_SITES
from sae.store import SiteStats
from sae.training import CoderTrainer, Settings
from tests.contracts.test_coders import OPTIONS
from tests.kernels.places import PLACES, needs_gpu

D = 16


def _trainer(
    architecture: str, device: str, backend: str = "auto", width: int = 64, **changes: Any
) -> CoderTrainer:
    given = {"steps": 40, "batch": 32, "dead_after": 64, "learning_rate": 3e-3, **changes}
    stats = SiteStats(1000, np.zeros(D), float(D), 4.0)
    options, target = dict(OPTIONS[architecture]), None
    if architecture in TWO_SITES:
        options["d_out"], target = D, ("mlp_out", stats)
    coder = make_coder(architecture, D, width, **options)
    return CoderTrainer(
        architecture,
        coder,
        "mlp_in",
        stats,
        Settings(**given),
        device,
        backend,  # pyright: ignore[reportArgumentType]
        target,
    )


def _batches(count: int, rows: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    atoms = torch.randn(30, D, generator=generator)
    which = torch.randint(30, (count, rows), generator=generator)
    return list(atoms[which] + 0.1 * torch.randn(count, rows, D, generator=generator))


def _weights(trainer: CoderTrainer) -> dict[str, Tensor]:
    return {name: w.detach().cpu() for name, w in trainer.coder.state_dict().items()}


def _compare_with_reference(architecture: str, device: str, backend: str, steps: int) -> None:
    """After some steps, AuxK among them; both choose in float32, so that no near-tie differs."""
    ours, truth = (_trainer(architecture, device, name) for name in (backend, "reference"))
    ours.candidates = None
    for x_BD in _batches(steps):
        logs = [trainer.step(x_BD, x_BD) for trainer in (ours, truth)]
        assert float(logs[0].loss) == pytest.approx(float(logs[1].loss), rel=1e-3)
        assert logs[0].dead == logs[1].dead
    for (name, a), b in zip(_weights(ours).items(), _weights(truth).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize(("backend", "device"), PLACES)
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_a_few_steps_are_those_of_the_reference(
    architecture: str, backend: str, device: str
) -> None:
    _compare_with_reference(architecture, device, backend, steps=4)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("architecture", TRAINABLE)
def test_steps_on_a_gpu_are_those_of_the_reference(architecture: str) -> None:
    _compare_with_reference(architecture, "cuda", "auto", steps=10)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("architecture", TRAINABLE)
@pytest.mark.parametrize("shape", ["many entries per latent", "few latents touched"])
def test_resume_on_a_gpu_is_bit_identical(architecture: str, shape: str) -> None:
    """Large batches, in which threads would meet if sums were left to atomics."""
    changes: dict[str, Any] = {"width": 2048, "batch": 4096, "dead_after": 3 * 4096, "ema": 0.9}
    if shape == "few latents touched":
        changes |= {"width": 2**16, "batch": 256, "dead_after": 3 * 256, "moments": "bfloat16"}
    if architecture == "relu":
        changes |= {"resample": (0.2,), "resample_window": 0.1}
    batches = _batches(12, changes["batch"])
    whole, first, second = (_trainer(architecture, "cuda", **changes) for _ in range(3))
    for x_BD in batches:
        whole.step(x_BD, x_BD)
    for x_BD in batches[:6]:
        first.step(x_BD, x_BD)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for x_BD in batches[6:]:
        second.step(x_BD, x_BD)
    for (name, a), b in zip(_weights(whole).items(), _weights(second).values(), strict=True):
        assert torch.equal(a, b), name
