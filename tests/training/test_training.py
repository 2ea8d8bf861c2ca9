import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sae.base.errors import UserError
from sae.coders import Codes, make_coder
from sae.coders.registry import TRAINABLE, TWO_SITES
from sae.kernels import get_kernels
from sae.store import ActivationStore, ShuffledReader, SiteStats
from sae.training import CoderTrainer, Settings, train
from sae.training.checkpoint import checkpoints
from sae.training.dead import DeadLatents, auxk_step
from tests.contracts.test_coders import OPTIONS
from tests.kernels.places import needs_triton

SITE = "blocks.0.hook_resid_post"
TARGET = "blocks.1.hook_mlp_out"
STEPS, BATCH = 40, 64
BACKENDS = ["reference", "sparse", "cpu", pytest.param("triton", marks=needs_triton)]


class Killed(Exception):  # noqa: N818
    pass


def _trainers(store: ActivationStore, names: tuple[str, ...] = TRAINABLE) -> list[CoderTrainer]:
    settings = Settings(steps=STEPS, batch=BATCH, dead_after=640, learning_rate=3e-3)
    return [_trainer(store, name, settings) for name in names]


def _trainer(store: ActivationStore, name: str, settings: Settings) -> CoderTrainer:
    options, target = dict(OPTIONS[name]), None
    if name in TWO_SITES:
        options["d_out"], target = store.width[TARGET], (TARGET, store.stats(TARGET))
    coder = make_coder(name, 16, 64, **options)
    return CoderTrainer(name, coder, SITE, store.stats(SITE), settings, target=target)


def make_reader(store: ActivationStore) -> ShuffledReader:
    return ShuffledReader(store, [SITE, TARGET], BATCH, window=4)


def curve(folder: Path) -> list[dict]:
    """The log without what depends on the clock; two trainings that are one have one curve."""
    timed = ("tokens_per_s", "waited_share")
    lines = (folder / "training.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_training_learns_and_logs(store: ActivationStore, tmp_path: Path) -> None:
    trainers = _trainers(store)
    facts = train(
        trainers, make_reader(store), tmp_path / "c", STEPS, fingerprint="a", log_every=10
    )
    assert facts["tokens"] == STEPS * BATCH
    for trainer in trainers:
        lines = (tmp_path / "c" / trainer.name / "training.jsonl").read_text().splitlines()
        assert len(lines) == STEPS // 10
        norms = trainer.finished_coder().W_dec_FD.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    x = torch.from_numpy(store.read(SITE, 0, 512).astype(np.float32))
    before = make_coder("topk", 16, 64, k=4)
    before.initialise(x.mean(0), torch.Generator().manual_seed(0))
    after = trainers[0].finished_coder()
    errors = [(coder(x) - x).square().sum() for coder in (before, after)]
    assert errors[1] < errors[0]


def test_resume_is_bit_identical(store: ActivationStore, tmp_path: Path) -> None:
    """Killed after a checkpoint and started again: the weights of an undisturbed run."""
    undisturbed = _trainers(store)
    train(undisturbed, make_reader(store), tmp_path / "a", STEPS, fingerprint="a", log_every=5)

    def kill_at_25(step: int) -> None:
        if step == 25:
            raise Killed

    first = _trainers(store)
    with pytest.raises(Killed):
        train(
            first,
            make_reader(store),
            tmp_path / "b",
            STEPS,
            fingerprint="a",
            log_every=5,
            checkpoint_seconds=0,
            on_step=kill_at_25,
        )
    assert checkpoints(tmp_path / "b")[0].name == "checkpoint-24.json"
    second = _trainers(store)
    train(second, make_reader(store), tmp_path / "b", STEPS, fingerprint="a", log_every=5)
    for ours, truth in zip(second, undisturbed, strict=True):
        for (name, a), b in zip(
            ours.coder.state_dict().items(), truth.coder.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), f"{ours.name} {name}"
        assert curve(tmp_path / "a" / ours.name) == curve(tmp_path / "b" / ours.name)


def test_a_checkpoint_of_another_training_is_not_used(
    store: ActivationStore, tmp_path: Path
) -> None:
    train(_trainers(store), make_reader(store), tmp_path, STEPS, fingerprint="a")
    facts = train(_trainers(store), make_reader(store), tmp_path, STEPS, fingerprint="b")
    assert facts["steps"] == STEPS


def test_logging_and_reading_the_coder_change_nothing(
    store: ActivationStore, tmp_path: Path
) -> None:
    weights = []
    for name, every in (("often", 1), ("never", 10**6)):
        trainers = _trainers(store, ("topk", "batchtopk"))

        def look(_step: int, _records: object, trainers: list = trainers) -> None:
            for trainer in trainers:
                trainer.finished_coder()(torch.zeros(2, 16))

        train(
            trainers,
            make_reader(store),
            tmp_path / name,
            STEPS,
            fingerprint="a",
            log_every=every,
            on_log=look,
        )
        weights.append([p for t in trainers for p in t.coder.state_dict().values()])
    for a, b in zip(*weights, strict=True):
        assert torch.equal(a, b)


def test_dead_latents_are_counted_in_tokens() -> None:
    dead = DeadLatents(4, after=20)
    acts, indices = torch.tensor([[1.0], [0.0]]), torch.tensor([[2], [3]])
    for _ in range(10):
        dead.update(Codes.fixed(acts, indices, 4))  # latent 3 is named, but not active
    assert dead.dead.tolist() == [0, 1, 3]
    assert dead.silent_F.tolist() == [20, 20, 0, 20]


def test_the_log_counts_dead_latents_of_coders_without_auxk(store: ActivationStore) -> None:
    coder = make_coder("relu", 16, 64, l1=1.0)
    settings = Settings(steps=9, batch=16, dead_after=16)
    trainer = CoderTrainer("relu", coder, SITE, store.stats(SITE), settings)
    with torch.no_grad():
        coder.b_enc_F[:20] = -1e6
    x = torch.from_numpy(store.read(SITE, 1, 17)).float()
    trainer.step(x)
    assert trainer.step(x).dead >= 20


def _auxk_parts(backend: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    coder = make_coder("topk", 8, 32, k=3).double()
    coder.initialise(torch.randn(8), torch.Generator().manual_seed(1))
    x = torch.randn(50, 8, dtype=torch.float64)
    dead = torch.tensor([1, 5, 6, 30])
    x_hat = coder(x).detach()
    loss = auxk_step(coder, x, x - x_hat, dead, 2, 1.0, get_kernels(backend))  # pyright: ignore
    return loss, {n: p.grad for n, p in coder.named_parameters() if p.grad is not None}


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def auxk_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.training.dead.DENSE_ABOVE", request.param)


@pytest.mark.usefixtures("auxk_form")
@pytest.mark.parametrize("backend", BACKENDS)
def test_auxk_reaches_encoder_and_decoder_of_dead_latents_alone(backend: str) -> None:
    _, gradients = _auxk_parts(backend)
    living = torch.ones(32, dtype=torch.bool)
    living[[1, 5, 6, 30]] = False
    for name in ("W_enc_FD", "W_dec_FD", "b_enc_F"):
        assert (gradients[name][living] == 0).all()
        assert (gradients[name][~living] != 0).any(), name
    assert "b_dec_D" not in gradients


@pytest.mark.usefixtures("auxk_form")
@pytest.mark.parametrize("backend", BACKENDS)
def test_auxk_agrees_with_its_formula(backend: str) -> None:
    """Dense, by hand: only dead latents ranked, no bias in the estimate, residual constant."""
    torch.manual_seed(0)
    coder = make_coder("topk", 8, 32, k=3).double()
    coder.initialise(torch.randn(8), torch.Generator().manual_seed(1))
    x = torch.randn(50, 8, dtype=torch.float64)
    dead = torch.tensor([1, 5, 6, 30])
    residual = x - coder(x).detach()
    pre = (x - coder.b_dec_D.detach()) @ coder.W_enc_FD[dead].T + coder.b_enc_F[dead]
    values, indices = pre.topk(2, dim=1)
    estimate = torch.einsum(
        "bk,bkd->bd", torch.where(values > 0, values, 0.1 * values), coder.W_dec_FD[dead][indices]
    )
    wanted = (residual - estimate).square().sum() / residual.square().sum()
    wanted.backward()
    loss, gradients = _auxk_parts(backend)
    torch.testing.assert_close(loss.detach(), wanted.detach())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, dict(coder.named_parameters())[name].grad)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    settings = Settings(steps=100, warmup=0.1, decay=0.2)
    rates = [settings.rate(step, 2**14) for step in range(100)]
    assert rates[0] == pytest.approx(0.1 * settings.peak_rate(2**14))
    assert rates[50] == max(rates)
    assert 0 < rates[-1] < 0.1 * rates[50]
    assert settings.peak_rate(2**16) == pytest.approx(settings.peak_rate(2**14) / 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(steps=0), "`steps` is 0"),
        (lambda: Settings(steps=10, warmup=0.8, decay=0.5), "together"),
        (
            lambda: CoderTrainer(
                "a",
                make_coder("topk", 4, 8, k=2),
                SITE,
                SiteStats(9, np.zeros(4), 0.0, 0.0),
                Settings(steps=1),
            ),
            "do not vary",
        ),
    ],
)
def test_mistakes_get_a_sentence(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_transcoder_is_trained_in_the_units_of_both_sites(store: ActivationStore) -> None:
    """Its error is the share of the target's variance; saved, it predicts the raw target."""
    trainer = _trainer(store, "transcoder", Settings(steps=STEPS, batch=BATCH, learning_rate=1e-4))
    stats = store.stats(TARGET)
    assert trainer.target_scale == pytest.approx((8 / stats.variance) ** 0.5)
    x, y = (torch.from_numpy(store.read(s, 0, 4096).astype(np.float32)) for s in (SITE, TARGET))
    log = trainer.step(x, y)
    trained = trainer.coder.for_inference()(x * trainer.scale)
    torch.testing.assert_close(trainer.finished_coder()(x), trained / trainer.target_scale)
    with torch.no_grad():
        trainer.coder.threshold.fill_(1e9)  # nothing fires: what is left is the mean
        mean = trainer.finished_coder()(x)
    assert float((y - mean).square().sum(1).mean()) == pytest.approx(stats.variance, rel=0.1)
    assert float(log.error) > 0


def test_two_sites_need_a_target_and_one_site_has_none(store: ActivationStore) -> None:
    settings = Settings(steps=STEPS, batch=BATCH)
    coder = make_coder("transcoder", 16, 64, d_out=8)
    with pytest.raises(UserError, match="name it as `target_site`"):
        CoderTrainer("t", coder, SITE, store.stats(SITE), settings)
    target = (TARGET, store.stats(TARGET))
    with pytest.raises(UserError, match="only transcoders have a target site"):
        CoderTrainer(
            "t", make_coder("topk", 16, 64, k=4), SITE, store.stats(SITE), settings, target=target
        )


def test_of_many_dead_latents_the_longest_silent_come_first() -> None:
    silent = DeadLatents(8, after=10)
    silent.silent_F = torch.tensor([50, 3, 20, 90, 10, 60, 20, 0])
    assert silent.dead.tolist() == [0, 2, 3, 4, 5, 6]
    assert silent.longest(silent.dead, 6).tolist() == [0, 2, 3, 4, 5, 6]
    assert silent.longest(silent.dead, 4).tolist() == [0, 2, 3, 5]  # of equal ones the first
