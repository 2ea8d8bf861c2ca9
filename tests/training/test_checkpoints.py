"""Checkpoints: rotated, verified, passed over when damaged; signals, disk-full, divergence."""

import errno
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae.base.errors import CheckFailure, UserError
from sae.base.interrupts import Interrupted, StopRequest
from sae.coders import make_coder
from sae.store import ActivationStore, ShuffledReader
from sae.training import CoderTrainer, Settings, train
from sae.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    other_training,
    remove_checkpoints,
    save_checkpoint,
    verify_checkpoints,
)
from sae.training.run import _Saver
from tests.training.test_training import SITE, curve

STEPS, BATCH = 24, 64
NAMES = ("a", "b")


def make_trainers(store: ActivationStore, rate: float = 3e-3) -> list[CoderTrainer]:
    settings = Settings(steps=STEPS, batch=BATCH, dead_after=640, learning_rate=rate)
    return [
        CoderTrainer(name, make_coder("topk", 16, 64, k=4), SITE, store.stats(SITE), settings)
        for name in NAMES
    ]


def run(store: ActivationStore, folder: Path, **options) -> list[CoderTrainer]:
    trainers = options.pop("trainers", None) or make_trainers(store)
    values = {"fingerprint": "f", "log_every": 4, "checkpoint_seconds": 0, **options}
    train(trainers, ShuffledReader(store, [SITE], BATCH, window=4), folder, STEPS, **values)
    return trainers


def stop_at(wanted: int, error: BaseException) -> Callable[[int], None]:
    def on_step(step: int) -> None:
        if step == wanted:
            raise error

    return on_step


def weights(trainers: list[CoderTrainer]) -> list[torch.Tensor]:
    return [w for trainer in trainers for w in trainer.coder.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_checkpoints_take_a_tenth_of_the_time_at_most() -> None:
    saver = _Saver(Path(), [], [], "f", every_seconds=1.0)
    saver.saved, saver.took = time.perf_counter() - 2.0, 0.05
    assert saver.is_due()
    saver.took = 0.5
    assert not saver.is_due()
    saver.saved -= 4.0
    assert saver.is_due()


def interrupted(store: ActivationStore, folder: Path, at: int = 10) -> None:
    with pytest.raises(ZeroDivisionError):
        run(store, folder, on_step=stop_at(at, ZeroDivisionError()))


def test_the_last_two_are_kept_and_nothing_else(store: ActivationStore, tmp_path: Path) -> None:
    interrupted(store, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-9.json",
        "checkpoint-8.json",
    ]
    for name in NAMES:
        states = {path.name for path in (tmp_path / name / "checkpoint").iterdir()}
        assert states == {"step-8.pt", "step-9.pt"}
    assert verify_checkpoints(tmp_path) == []
    remove_checkpoints(tmp_path)
    assert not list(tmp_path.rglob("*checkpoint*"))


@pytest.mark.parametrize("victim", ["checkpoint-9.json", "a/checkpoint/step-9.pt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_one_is_passed_over_and_the_end_is_the_same(
    store: ActivationStore, tmp_path: Path, victim: str, damage: str
) -> None:
    whole = run(store, tmp_path / "whole")
    folder = tmp_path / "hurt"
    interrupted(store, folder)
    spoil(folder / victim, damage)
    if not (victim.endswith("json") and damage == "gone"):
        assert any(Path(victim).name in p for p in verify_checkpoints(folder))
    told: list[str] = []
    assert same(weights(run(store, folder, say=told.append)), weights(whole))
    for name in NAMES:
        assert curve(folder / name) == curve(tmp_path / "whole" / name)
    if damage != "gone" or victim.endswith("pt"):
        assert "step 8" in told[0]
        assert Path(victim).name in told[0]


def spoil(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 4
        path.write_bytes(data)


def test_with_no_whole_one_left_nothing_is_thrown_away(
    store: ActivationStore, tmp_path: Path
) -> None:
    interrupted(store, tmp_path)
    for state in (tmp_path / "b" / "checkpoint").iterdir():
        spoil(state, "flip")
    with pytest.raises(UserError, match=r"No checkpoint in .+ can be read"):
        run(store, tmp_path)


def test_another_training_says_that_it_starts_anew(store: ActivationStore, tmp_path: Path) -> None:
    interrupted(store, tmp_path)
    told: list[str] = []
    run(store, tmp_path, fingerprint="other", say=told.append)
    assert "checkpoint of step 9" in told[0]
    assert verify_checkpoints(tmp_path) == []


def test_the_checkpoint_of_another_training_says_what_that_is(
    store: ActivationStore, tmp_path: Path
) -> None:
    assert other_training(tmp_path, "f") is None
    with pytest.raises(ZeroDivisionError):
        run(store, tmp_path, on_step=stop_at(10, ZeroDivisionError()), made_of={"batch": 64})
    assert other_training(tmp_path, "f") is None
    other = other_training(tmp_path, "g")
    assert other is not None
    assert other[0].name == "checkpoint-9.json"
    assert other[1]["made_of"] == {"batch": 64}
    assert set(other[1]["sha256_of"]) == set(NAMES)


def test_what_is_refused_changes_nothing(store: ActivationStore, tmp_path: Path) -> None:
    """`begin` comes when no checkpoint is left to refuse, and before the logs are cut."""
    interrupted(store, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    begun: list[int] = []

    def begin() -> None:
        begun.append(len([p for p in before if p.read_bytes() == before[p]]))

    run(store, tmp_path, begin=begin)
    assert begun == [len(NAMES)]
    for state in (tmp_path / "b" / "checkpoint").iterdir():
        spoil(state, "flip")
    with pytest.raises(UserError, match="can be read"):
        run(store, tmp_path, begin=begin)
    assert len(begun) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_saves_the_step_at_work_and_resumes_to_the_same_end(
    store: ActivationStore, tmp_path: Path, number: int
) -> None:
    whole = run(store, tmp_path / "whole")
    stop = StopRequest()

    def on_step(step: int) -> None:
        if step == 7:
            stop.number = number

    with pytest.raises(Interrupted, match="step 7 of 24") as raised:
        run(store, tmp_path / "cut", stop=stop, on_step=on_step, checkpoint_seconds=1e9)
    assert raised.value.code == 128 + number
    assert load_checkpoint(tmp_path / "cut", make_trainers(store), "f", print) == 7
    assert same(weights(run(store, tmp_path / "cut")), weights(whole))
    for name in NAMES:
        assert curve(tmp_path / "cut" / name) == curve(tmp_path / "whole" / name)


def test_a_stop_in_the_last_step_is_heeded(store: ActivationStore, tmp_path: Path) -> None:
    stop = StopRequest(signal.SIGTERM)
    with pytest.raises(Interrupted, match="step 1 of"):
        run(store, tmp_path, stop=stop)


def spoil_weights_at(trainer: CoderTrainer, wanted: int, value: float) -> Callable[[int], None]:
    def on_step(step: int) -> None:
        if step == wanted:
            with torch.no_grad():
                trainer.coder.W_dec_FD[3, 5] = value

    return on_step


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "nan|not finite"), (float("inf"), "nan|inf|not finite")]
)
def test_a_training_that_is_no_longer_finite_keeps_its_last_good_checkpoint(
    store: ActivationStore, tmp_path: Path, value: float, said: str
) -> None:
    trainers = make_trainers(store)
    with pytest.raises(CheckFailure, match=rf"`b` diverged: .*({said}).*checkpoint-9\.json"):
        run(store, tmp_path, trainers=trainers, on_step=spoil_weights_at(trainers[1], 10, value))
    fresh = make_trainers(store)
    assert load_checkpoint(tmp_path, fresh, "f", print) == 9
    assert all(w.isfinite().all() for w in weights(fresh) if w.is_floating_point())
    for name in NAMES:
        assert all(x == x for record in curve(tmp_path / name) for x in record.values())


def test_what_exploded_and_is_finite_is_not_saved(store: ActivationStore, tmp_path: Path) -> None:
    """Between two lines of the log, too: the checkpoint would be called the last good one."""
    trainers = make_trainers(store)

    def spoil(step: int) -> None:
        if step == 10:
            with torch.no_grad():
                trainers[1].coder.b_dec_D.fill_(1e6)

    with pytest.raises(CheckFailure, match=r"`b` diverged: its error .* at step 11; .*-10\.json"):
        run(store, tmp_path, trainers=trainers, on_step=spoil, log_every=STEPS)
    assert checkpoints(tmp_path)[0].name == "checkpoint-10.json"


def test_a_learning_rate_that_explodes_is_noticed(store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(CheckFailure, match=r"`a` diverged: .*Lower its `learning_rate`"):
        run(store, tmp_path, trainers=make_trainers(store, rate=1e5), log_every=1)


def test_a_disk_that_is_full_costs_the_work_since_the_last_checkpoint(
    store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`replace` and `fsync` fail at every point in turn; each resumed run ends the same."""
    import os

    whole = weights(run(store, tmp_path / "whole"))
    for name in ("replace", "fsync"):
        for point in (1, 2, 3, 7, 12, 20):
            folder = tmp_path / f"{name}-{point}"
            calls = 0
            real = getattr(os, name)

            def failing(*args, point: int = point, real=real):
                nonlocal calls
                calls += 1
                if calls == point:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, failing)
                with pytest.raises(OSError, match="No space left"):
                    run(store, folder)
            assert same(weights(run(store, folder)), whole), (name, point)
            assert not list(folder.rglob("*.partial"))


def test_many_checkpoints_leave_two(store: ActivationStore, tmp_path: Path) -> None:
    trainers = make_trainers(store)[:1]
    open_files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for done in range(1, 300):
        trainers[0].done = done
        save_checkpoint(tmp_path / "c", trainers, "f")
    assert len(list((tmp_path / "c").rglob("*.*"))) == 4
    if open_files:
        assert len(list(Path("/proc/self/fd").iterdir())) <= open_files
