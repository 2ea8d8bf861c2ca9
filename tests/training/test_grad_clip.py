"""The gradient's norm is bounded, or it is not."""

import numpy as np
import pytest
import torch

from sae.base.errors import UserError
from sae.coders import make_coder
from sae.store import SiteStats
from sae.training import CoderTrainer, Settings
from sae.training.settings import Loss


def weights_after(grad_clip: float, backend: str, of: Loss = "per_dimension") -> torch.Tensor:
    """Of three steps on rows that grow, so that clipping weighs them anew."""
    bound = {"grad_clip": grad_clip, "grad_clip_of": of}
    settings = Settings(steps=3, batch=32, learning_rate=1e-2, warmup=0, **bound)  # pyright: ignore
    coder, stats = make_coder("relu", 8, 32, l1=1.0), SiteStats(100, np.zeros(8), 8.0, 2.8)
    trainer = CoderTrainer("c", coder, "", stats, settings, backend=backend)  # pyright: ignore
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 5.0, 0.1):
        trainer.step(size * torch.randn(32, 8, generator=generator))
    return trainer.coder.W_enc_FD.detach()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nought_is_no_clipping(backend: str) -> None:
    free = weights_after(0, backend)
    assert torch.equal(free, weights_after(1e30, backend))
    assert not torch.allclose(free, weights_after(0.01, backend), atol=1e-4)


def test_a_bound_on_the_summed_loss_is_a_dth_of_one_on_the_loss_per_dimension() -> None:
    assert torch.equal(weights_after(0.08, "cpu", "summed"), weights_after(0.01, "cpu"))
    assert Settings(steps=1, grad_clip=0, grad_clip_of="summed").clipped_at(8) == 0


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_bound_below_nought_is_a_sentence(value: float) -> None:
    with pytest.raises(UserError, match="`grad_clip` is"):
        Settings(steps=1, grad_clip=value)
