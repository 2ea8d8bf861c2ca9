"""Coders so wide that a batch touches few latents: rows that sleep, averages, resuming."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae.coders import make_coder
from sae.kernels import get_kernels
from sae.store import SiteStats
from sae.training import CoderTrainer, Settings
from sae.training.optimizer import WAKE_EVERY, CoderOptimizer

WIDE = {"width": 512, "steps": 200, "learning_rate": 1e-2, "ema": 0.9, "moments": "bfloat16"}


def wide_trainer(backend: str = "auto", **changes: Any) -> CoderTrainer:
    """24 rows of 2 latents touch at most 48 of 512."""
    given = {**WIDE, **changes}
    settings = Settings(
        steps=given["steps"],
        batch=24,
        dead_after=200,
        learning_rate=given["learning_rate"],
        ema=given["ema"],
        moments=given["moments"],
    )
    coder = make_coder("topk", 16, given["width"], k=2)
    stats = SiteStats(1000, np.zeros(16), 16.0, 4.0)
    return CoderTrainer("wide", coder, "", stats, settings, backend=backend)  # pyright: ignore


def rows_of_atoms(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    atoms = torch.randn(30, 16, generator=generator)
    which = torch.randint(30, (count, 24), generator=generator)
    return list(atoms[which] + 0.1 * torch.randn(count, 24, 16, generator=generator))


@pytest.mark.parametrize("backend", ["sparse", "cpu"])
def test_a_wide_coder_updates_touched_rows_alone_and_learns(backend: str) -> None:
    """Also while AuxK revives latents, whose rows join the gradient."""
    trainer = wide_trainer(backend, ema=None, moments="float32")
    batches = rows_of_atoms(60)
    before = trainer.coder.W_dec_FD.detach().clone()
    logs = [trainer.step(batches[0])]
    changed = (trainer.coder.W_dec_FD.detach() != before).any(dim=1)
    assert 0 < int(changed.sum()) <= 48
    logs += [trainer.step(x_BD) for x_BD in batches[1:]]
    assert any(log.dead for log in logs)
    assert float(logs[-1].error) < 0.5 * float(logs[0].error)


def test_a_wide_coder_learns_as_with_dense_adam() -> None:
    """The reference backend's gradients are dense. docs/training.md has the larger comparison."""
    errors = []
    for backend, changes in (
        ("reference", {"moments": "float32"}),
        ("cpu", {"moments": "float32"}),
        ("cpu", {}),
    ):
        trainer = wide_trainer(backend, ema=None, **changes)
        errors.append([float(trainer.step(x_BD).error) for x_BD in rows_of_atoms(200)][-50:])
    dense, lazy, half = (sum(e) / len(e) for e in errors)
    assert lazy < 1.1 * dense
    assert half < 1.1 * dense


def test_no_row_sleeps_long_and_all_move_as_by_dense_adam() -> None:
    """The same gradients, of few rows each, given whole and as the touched rows alone."""
    torch.manual_seed(0)
    coders = [wide_trainer(ema=None, moments="float32") for _ in range(2)]
    start = coders[0].coder.W_enc_FD.detach().clone()
    for step in range(1, 4 * WAKE_EVERY + 1):
        touched = torch.randperm(512)[:48].sort().values
        values = torch.randn(48, 16)
        for trainer, whole in zip(coders, (True, False), strict=True):
            grad = torch.sparse_coo_tensor(touched[None], values, (512, 16), is_coalesced=True)
            trainer.coder.W_enc_FD.grad = grad.to_dense() if whole else grad
            trainer.optimizer.step(rate=1e-3)
        asleep = (coders[1].optimizer.updated["W_enc_FD"] < step).any()
        assert bool(asleep) is (step % WAKE_EVERY != 0)
    dense, lazy = (trainer.coder.W_enc_FD.detach() for trainer in coders)
    # what is caught up takes the bias correction as it is now, which falls fast in the first steps
    assert (lazy - dense).norm() < 0.05 * (dense - start).norm()


@pytest.mark.parametrize("steps", [WAKE_EVERY + 3, 2 * WAKE_EVERY])
def test_no_row_sleeps_in_what_is_saved(steps: int) -> None:
    trainer = wide_trainer(ema=None, steps=steps)
    batches = rows_of_atoms(steps)
    for x_BD in batches[:-1]:
        trainer.step(x_BD)
    assert trainer.optimizer.may_sleep
    trainer.step(batches[-1])
    for name, updated in trainer.optimizer.updated.items():
        assert (updated == steps).all(), name


class Waits(TorchDispatchMode):
    """Counts the single numbers that Python waits for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_an_update_with_dense_gradients_waits_for_the_norm_alone() -> None:
    """On a GPU each number that Python asks for is a wait; the norm comes in one piece."""
    trainer = wide_trainer("reference", ema=None, moments="float32")
    optimizer = trainer.optimizer
    for weight in trainer.coder.parameters():
        weight.grad = torch.randn_like(weight)
    with Waits() as waits:
        optimizer.step(1e-3)
    assert waits.count == 0  # a list is no single number
    assert not optimizer.may_sleep


def test_a_matrix_without_a_gradient_sleeps_as_a_whole() -> None:
    """Nothing of a step that left it out is forgotten when whole gradients come again."""
    found = []
    for late in (False, True):
        optimizer = wide_trainer(ema=None, moments="float32").optimizer
        weight = optimizer.coder.W_enc_FD
        for step in range(3):
            torch.manual_seed(step)
            grad = torch.randn_like(weight)
            weight.grad = None if late and step == 1 else grad * (step != 1)
            optimizer.step(1e-3)
        found.append(weight.detach().clone())
    torch.testing.assert_close(*found, rtol=0, atol=2e-4)


def test_only_matrices_of_latents_have_moments_in_bfloat16() -> None:
    for name, options in (("switch", {"k": 2}), ("skip_transcoder", {"k": 2, "d_out": 16})):
        coder = make_coder(name, 16, 64, **options)
        moments = CoderOptimizer(coder, 1.0, get_kernels(), "bfloat16").moments
        half = {n for n, (m, _) in moments.items() if m.dtype is torch.bfloat16}
        assert half == {"W_enc_FD", "W_dec_FD"}, name


def test_a_wide_coder_with_an_average_resumes_bit_for_bit() -> None:
    batches = rows_of_atoms(40)
    whole, first, second = (wide_trainer() for _ in range(3))
    for x_BD in batches:
        whole.step(x_BD)
    for x_BD in batches[:17]:
        first.step(x_BD)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for x_BD in batches[17:]:
        second.step(x_BD)
    for trainers in (
        (whole.coder, second.coder),
        (whole.finished_coder(), second.finished_coder()),
    ):
        for ours, other in zip(*(t.parameters() for t in trainers), strict=True):
            assert torch.equal(ours, other)


def test_the_average_is_what_is_saved() -> None:
    trainer = wide_trainer(ema=0.5)
    mean = trainer.coder.W_enc_FD.detach().clone()
    for t, x_BD in enumerate(rows_of_atoms(20), start=1):
        trainer.step(x_BD)
        weights = trainer.coder.W_enc_FD.detach().clone()
        decay = min(0.5, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * weights
    coder = trainer.finished_coder()
    torch.testing.assert_close(coder.W_enc_FD, mean)
    torch.testing.assert_close(coder.W_dec_FD.norm(dim=1), torch.ones(512))
