"""Resampling of dead latents as in Towards Monosemanticity, step by step and within a training."""

from pathlib import Path

import pytest
import torch

from sae.base.errors import UserError
from sae.coders import Codes, make_coder
from sae.coders.contract import SparseForward
from sae.kernels import Kernels, get_kernels
from sae.store import ActivationStore
from sae.training import CoderTrainer, Settings, train
from sae.training.optimizer import CoderOptimizer
from sae.training.resampling import ENCODER_NORM, Resampler
from tests.training.test_training import BATCH, SITE, STEPS, Killed, make_reader

D, F = 6, 10
KERNELS = get_kernels()
DEAD = [2, 7]


def resampled(
    x_BD: torch.Tensor, errors_B: torch.Tensor, seed: int = 0
) -> tuple[Resampler, CoderOptimizer, torch.Tensor]:
    """A coder whose latents 2 and 7 are dead, resampled after one batch with these errors."""
    coder = make_coder("relu", D, F, l1=0.0)
    coder.initialise(torch.zeros(D), torch.Generator().manual_seed(0))
    optimizer = CoderOptimizer(coder, 1.0, KERNELS)
    coder.training_forward(x_BD, KERNELS).x_hat_BD.sum().backward()
    optimizer.step(1e-3)
    with torch.no_grad():
        coder.W_enc_FD *= 3
        coder.b_enc_F.fill_(0.5)
        coder.b_dec_D.zero_()
    silent_F = torch.zeros(F, dtype=torch.int64)
    silent_F[DEAD] = 10**6
    settings = Settings(steps=10, batch=len(x_BD), resample=(0.1,), seed=seed)
    resampler = Resampler(coder, settings)
    missing_BD = torch.zeros_like(x_BD)
    missing_BD[:, 0] = errors_B.sqrt()
    codes = Codes.fixed(torch.zeros(len(x_BD), 1), torch.zeros(len(x_BD), 1).long(), F)
    new = resampler.after_step(1, x_BD, missing_BD, codes, silent_F, optimizer)
    assert new.tolist() == DEAD
    return resampler, optimizer, silent_F


def test_dead_latents_start_again_at_the_worst_inputs() -> None:
    torch.manual_seed(0)
    x_BD = torch.randn(50, D) * 4
    errors_B = torch.full((50,), 1e-6)
    errors_B[[11, 30]] = 1.0
    resampler, optimizer, silent_F = resampled(x_BD, errors_B)
    coder = resampler.coder
    living = [i for i in range(F) if i not in DEAD]
    wanted = torch.nn.functional.normalize(x_BD[[11, 30]], dim=1)
    found = coder.W_dec_FD.detach()[DEAD]
    assert torch.allclose(found, wanted) or torch.allclose(found, wanted.flip(0))
    norm = ENCODER_NORM * coder.W_enc_FD.detach()[living].norm(dim=1).mean()
    torch.testing.assert_close(coder.W_enc_FD.detach()[DEAD], norm * found)
    assert coder.b_enc_F.detach()[DEAD].tolist() == [0, 0]
    assert (coder.b_enc_F.detach()[living] == 0.5).all()
    assert silent_F[DEAD].tolist() == [0, 0]
    for name in ("W_enc_FD", "W_dec_FD", "b_enc_F"):
        for moment in optimizer.moments[name]:
            assert (moment[DEAD] == 0).all()
            assert (moment[living] != 0).any(), name


def test_examples_are_drawn_by_the_square_of_their_loss() -> None:
    """Losses 1, 2, 3: the first draw falls on them with probabilities 1/14, 4/14, 9/14."""
    x_BD = torch.eye(D)[:3]
    draws = 600
    counts = torch.zeros(3)
    for seed in range(draws):
        resampler = resampled(x_BD, torch.tensor([1.0, 2.0, 3.0]), seed)[0]
        counts += resampler.coder.W_dec_FD.detach()[DEAD[0], :3].round()
    shares = torch.tensor([1.0, 4.0, 9.0]) / 14
    deviation = (counts - draws * shares) / (draws * shares * (1 - shares)).sqrt()
    assert deviation.abs().max() < 3.5


def make_trainer(store: ActivationStore, ema: float | None = None) -> CoderTrainer:
    """Half of the latents never fire: their biases are far below 0."""
    settings = Settings(
        steps=STEPS,
        batch=BATCH,
        learning_rate=3e-3,
        resample=(0.5, 0.75),
        resample_window=0.25,
        ema=ema,
        seed=3,
    )
    trainer = CoderTrainer(
        "relu", make_coder("relu", 16, 64, l1=1.0), SITE, store.stats(SITE), settings
    )
    with torch.no_grad():
        trainer.coder.b_enc_F[32:] = -100
    return trainer


def test_a_training_revives_its_dead_latents(store: ActivationStore, tmp_path: Path) -> None:
    trainer = make_trainer(store)
    train([trainer], make_reader(store), tmp_path / "c", STEPS, fingerprint="a")
    assert (trainer.coder.b_enc_F > -10).all()
    assert (trainer.dead.silent_F < BATCH * STEPS // 4).all()


def test_latents_start_anew_in_the_average_too(store: ActivationStore) -> None:
    """A row of the average is no mixture of a dead direction and the one that took its place."""
    trainer, batches = make_trainer(store, ema=0.99), make_reader(store).batches()
    assert trainer.average is not None
    for _, batch in zip(range(STEPS // 2), batches, strict=False):
        trainer.step(torch.from_numpy(batch[SITE]))
    batches.close()
    averages = trainer.average.weights
    for name in ("W_enc_FD", "W_dec_FD", "b_enc_F"):
        weight = trainer.coder.get_parameter(name).detach()
        assert torch.equal(averages[name][32:], weight[32:]), name
        assert not torch.equal(averages[name][:32], weight[:32]), name


def test_losses_are_those_of_the_weights_that_made_the_codes(
    store: ActivationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reconstruction that is decoded when it is asked for would be of the weights after the
    step: nobody asks for it then."""
    trainer, moved = make_trainer(store), []
    batches = make_reader(store).batches()
    step = CoderOptimizer.step
    monkeypatch.setattr(CoderOptimizer, "step", lambda *a, **k: (step(*a, **k), moved.append(1)))
    forward = trainer.coder.training_forward

    class Late(SparseForward):
        @property
        def x_hat_BD(self) -> torch.Tensor:
            raise AssertionError("read after the step" if moved else "read before the step")

    def sparse(x_BD: torch.Tensor, kernels: Kernels, candidates: object) -> SparseForward:
        moved.clear()
        made = forward(x_BD, kernels)
        return Late(trainer.coder, made.codes, kernels, made.penalty)

    monkeypatch.setattr(trainer.coder, "training_forward", sparse)
    for _, batch in zip(range(STEPS), batches, strict=False):
        trainer.step(torch.from_numpy(batch[SITE]))
    batches.close()
    assert (trainer.coder.b_enc_F > -10).all()  # it did resample


def test_the_last_step_resamples_nothing() -> None:
    coder = make_coder("relu", D, F, l1=0.0)
    assert Resampler(coder, Settings(steps=10, resample=(0.5, 0.99))).steps == [5]


def test_resume_amid_the_gathering_is_bit_identical(store: ActivationStore, tmp_path: Path) -> None:
    """Killed between the first example gathered and the resampling."""
    undisturbed = make_trainer(store)
    train([undisturbed], make_reader(store), tmp_path / "a", STEPS, fingerprint="a")

    def kill_at_16(step: int) -> None:
        if step == 16:
            raise Killed

    with pytest.raises(Killed):
        train(
            [make_trainer(store)],
            make_reader(store),
            tmp_path / "b",
            STEPS,
            fingerprint="a",
            checkpoint_seconds=0,
            on_step=kill_at_16,
        )
    again = make_trainer(store)
    facts = train([again], make_reader(store), tmp_path / "b", STEPS, fingerprint="a")
    assert facts["steps"] == STEPS - 15
    for (name, a), b in zip(
        again.coder.state_dict().items(), undisturbed.coder.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("batch", "steps", "batches"),
    [
        (8192, 976_562, 100),  # the paper's: 819,200 inputs
        (1000, 976_562, 820),
        (8192, 4882, 62),  # the window's, which is shorter
    ],
)
def test_examples_are_as_many_as_the_papers_where_the_window_has_them(
    batch: int, steps: int, batches: int
) -> None:
    settings = Settings(steps=steps, batch=batch, resample=(0.0256,), resample_window=0.0128)
    coder = make_coder("relu", D, F, l1=0.0)
    resampler = Resampler(coder, settings)
    x_BD, silent_F = torch.randn(F, D), torch.full((F,), 10**10)
    codes = Codes.fixed(torch.zeros(F, 1), torch.zeros(F, 1).long(), F)
    optimizer = CoderOptimizer(coder, 0.0, KERNELS)
    first = resampler.steps[0] - batches + 1
    for step, gathered in ((first - 1, 0), (first, F)):
        assert not len(resampler.after_step(step, x_BD, x_BD, codes, silent_F, optimizer))
        assert len(resampler.rows_ND) == gathered


def test_only_relu_is_resampled(store: ActivationStore) -> None:
    settings = Settings(steps=10, resample=(0.5,))
    with pytest.raises(UserError, match="only `relu`"):
        CoderTrainer("t", make_coder("topk", 16, 64, k=4), SITE, store.stats(SITE), settings)
    for share in (25_000, 1.0, 0.0):
        with pytest.raises(UserError, match="shares of the training"):
            Settings(steps=10, resample=(share,))
