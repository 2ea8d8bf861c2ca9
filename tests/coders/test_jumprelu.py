"""Gradients to thresholds against the loss that they are estimates for; L0 against its target."""

import pytest
import torch

from sae.base.errors import UserError
from sae.coders import make_coder
from sae.coders.jumprelu import JumpReLU, jump, step
from sae.kernels import get_kernels
from sae.store import SiteStats
from sae.training import CoderTrainer, Settings

BANDWIDTH = 0.4


def smoothed(pre: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """1[pre > θ] averaged over a rectangle of width ε around θ: a ramp from 0 to 1."""
    return ((pre - threshold) / BANDWIDTH + 0.5).clamp(0, 1)


def test_the_thresholds_gradient_is_that_of_the_smoothed_step() -> None:
    """Central differences of Σ w · ramp(pre − θ), whose derivative is −w / ε inside the window."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    threshold = torch.tensor([0.0, 0.1, 0.4, 0.8, 1.5], dtype=torch.float64, requires_grad=True)
    (step(pre, threshold, BANDWIDTH) * weight).sum().backward()
    small = 1e-7
    for latent in range(5):
        nudge = torch.zeros(5, dtype=torch.float64)
        nudge[latent] = small
        up, down = ((smoothed(pre, threshold.detach() + s * nudge) * weight).sum() for s in (1, -1))
        assert threshold.grad is not None
        assert threshold.grad[latent].item() == pytest.approx(
            (up - down).item() / (2 * small), 1e-5
        )


def test_the_reconstructions_gradient_matches_a_finite_difference_in_expectation() -> None:
    """E over pre of (c − jump(pre, θ))² moves with θ as the estimate says.

    For pre uniform on [0, 2], c = 1: E = const + ∫_0^θ (1 − (1 − p)²) dp / 2, whose derivative
    is (1 − (1 − θ)²) / 2. The estimate averages −θ/ε · ∂/∂act over the window, with
    ∂/∂act = −2 (1 − act), which is 2 where the latent is off and 2 (p − 1) where it is on.
    """
    pre = torch.linspace(0, 2, 400_001, dtype=torch.float64)
    threshold = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    act = jump(pre, threshold.expand_as(pre), 0.01)
    (1 - act).square().mean().backward()
    # Half of the window is off (2 · 1), half on (2 · (1 − θ)); the density of pre is 1/2.
    on_and_off = (2 * 1 + 2 * (1 - 0.6)) / 2
    assert threshold.grad is not None
    assert threshold.grad.item() == pytest.approx(0.6 * on_and_off / 2, rel=2e-3)
    exact = (1 - (1 - 0.6) ** 2) / 2
    assert threshold.grad.item() == pytest.approx(exact, rel=2e-3)


def test_the_whole_loss_gives_the_papers_gradient_to_thresholds() -> None:
    """Dense and by hand: −(θ ∂L/∂act + λ) / (B ε) over the window, summed over rows."""
    torch.manual_seed(0)
    coder = JumpReLU(6, 12, l0_penalty=0.3, bandwidth=BANDWIDTH, l0_warmup=0.0).double()
    coder.initialise(torch.zeros(6), torch.Generator().manual_seed(1))
    coder.threshold_F.data.uniform_(0.1, 0.8)
    x_BD = torch.randn(64, 6, dtype=torch.float64) * 2
    forward = coder.training_forward(x_BD, get_kernels())
    assert forward.penalty is not None
    ((x_BD - forward.x_hat_BD).square().sum() / x_BD.numel() + forward.penalty).backward()
    pre = (x_BD - coder.b_dec_D) @ coder.W_enc_FD.T + coder.b_enc_F
    acts = pre * (pre > coder.threshold_F)
    by_act = 2 * (acts @ coder.W_dec_FD + coder.b_dec_D - x_BD) @ coder.W_dec_FD.T / x_BD.numel()
    window = (pre - coder.threshold_F).abs() < BANDWIDTH / 2
    wanted = -((coder.threshold_F * by_act + 0.3 / 64) * window).sum(0) / BANDWIDTH
    torch.testing.assert_close(coder.threshold_F.grad, wanted.detach())


def sparse_data(rows: int, generator: torch.Generator) -> torch.Tensor:
    """Sums of 3 on average of 24 directions in 12 dimensions."""
    directions = torch.nn.functional.normalize(
        torch.randn(24, 12, generator=torch.Generator().manual_seed(5)), dim=1
    )
    on = torch.rand(rows, 24, generator=generator) < 3 / 24
    return (on * (1 + torch.rand(rows, 24, generator=generator))) @ directions


@pytest.mark.parametrize("target", [2.0, 5.0])
def test_l0_reaches_its_target_and_thresholds_stay_positive(target: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = sparse_data(20_000, generator)
    stats = SiteStats(
        len(x), x.mean(0).numpy(), float(x.square().sum(1).mean()), float(x.norm(dim=1).mean())
    )
    settings = Settings(steps=600, batch=256, learning_rate=3e-3)
    coder = make_coder("jumprelu", 12, 48, target_l0=target)
    trainer = CoderTrainer("j", coder, "x", stats, settings)
    for _ in range(settings.steps):
        trainer.step(x[torch.randint(len(x), (256,), generator=generator)])
        assert (trainer.coder.threshold_F >= 0).all()
    fresh = sparse_data(4000, generator)
    saved = trainer.finished_coder()
    codes = saved.encode(fresh)
    assert codes.l0().float().mean().item() == pytest.approx(target, rel=0.1)
    variance = (fresh - fresh.mean(0)).square().sum()
    assert (saved.decode(codes) - fresh).square().sum() < 0.5 * variance


def test_a_fixed_penalty_lowers_l0() -> None:
    found = []
    for penalty in (0.0, 0.3):
        generator = torch.Generator().manual_seed(0)
        x = sparse_data(5000, generator)
        stats = SiteStats(len(x), x.mean(0).numpy(), float(x.square().sum(1).mean()), 1.0)
        coder = make_coder("jumprelu", 12, 48, l0_penalty=penalty)
        trainer = CoderTrainer(
            "j", coder, "x", stats, Settings(steps=200, batch=256, learning_rate=3e-3)
        )
        for start in range(200):
            log = trainer.step(x[(start * 256) % 4608 :][:256])
        found.append(float(log.l0))
    assert found[1] < 0.7 * found[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_l0": 17}, "target_l0 is 17"),
        ({"bandwidth": 0}, "bandwidth is 0"),
        ({"l0_penalty": -1}, "l0_penalty is -1"),
        ({"target_l0": 3, "l0_penalty": 0.1}, "leave out l0_penalty and l0_warmup, or target_l0"),
        ({"target_l0": 3, "l0_warmup": 0.1}, "leave out l0_penalty and l0_warmup, or target_l0"),
        ({"k": 3}, "no hyperparameter `k`; it has l0_penalty"),
    ],
)
def test_mistakes_get_a_sentence(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_coder("jumprelu", 8, 16, **options)
