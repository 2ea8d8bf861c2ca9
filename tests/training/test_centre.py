"""Where b_dec starts: the geometric median against what defines it, and in a training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sae.base.errors import UserError
from sae.coders import make_coder
from sae.store import ActivationStore
from sae.training import CoderTrainer, Settings, first_rows, geometric_median, train
from sae.training import centre as module
from tests.training.test_training import BATCH, SITE, STEPS, TARGET, make_reader


def pull(rows_ND: np.ndarray, y_D: np.ndarray) -> float:
    """‖Σ (x − y) / ‖x − y‖‖ / N over the rows elsewhere: 0 at the median, if no row lies there."""
    away = rows_ND - y_D
    away = away[np.linalg.norm(away, axis=1) > 0]
    return float(np.linalg.norm((away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0))) / len(
        rows_ND
    )


def test_the_rows_around_the_median_pull_it_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((3000, 20)) ** 3).astype(np.float16)
    found = geometric_median(rows)
    assert found.dtype == np.float64
    assert pull(rows.astype(np.float64), found) < 1e-8
    assert pull(rows.astype(np.float64), rows.mean(0, dtype=np.float64)) > 1e-3
    monkeypatch.setattr(module, "BLOCK", 700)
    np.testing.assert_allclose(geometric_median(rows), found, atol=1e-7)


def test_rows_far_off_hardly_move_it() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((1000, 5))
    far = np.vstack([rows, np.full((50, 5), 1e4)])
    assert np.linalg.norm(far.mean(0)) > 1000
    assert np.linalg.norm(geometric_median(far) - geometric_median(rows)) < 0.2


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([[3.0, 1.0]], [3.0, 1.0]),
        ([[0.0], [1.0], [5.0]], [1.0]),  # on a line: the one in the middle
        ([[0, 0], [0, 0], [0, 0], [4, 0], [0, 4]], [0, 0]),  # where most of the rows are
        # a triangle with an angle of more than 120 degrees has its median in that corner
        ([[0, 0], [10, 1], [-10, 1]], [0, 0]),
        # the mean is a row, but not the median: the step leads away from it
        ([[0, 0], [1, 0], [2, 0], [3, 0], [-6, 0], [0, 9], [0, -9]], None),
    ],
)
def test_it_may_lie_on_rows(rows: list[list[float]], wanted: list[float] | None) -> None:
    array = np.array(rows, dtype=np.float64)
    found = geometric_median(array)
    if wanted is not None:
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    distances = [np.linalg.norm(array - y, axis=1).sum() for y in (found, *array, array.mean(0))]
    assert distances[0] <= min(distances) + 1e-6


def test_the_sample_is_what_the_training_reads_first(store: ActivationStore) -> None:
    reader = make_reader(store)
    rows = first_rows(reader, SITE, 3 * BATCH + 5)
    batches = reader.batches()
    wanted = np.concatenate([next(batches)[SITE] for _ in range(4)])[: len(rows)]
    batches.close()
    assert len(rows) == 3 * BATCH + 5
    np.testing.assert_array_equal(rows, wanted)


def make_trainer(store: ActivationStore) -> CoderTrainer:
    settings = Settings(steps=STEPS, batch=BATCH, centre="geometric_median", grad_clip=0)
    centre_D = geometric_median(first_rows(make_reader(store), SITE, 500))
    coder = make_coder("relu", 16, 64)
    return CoderTrainer("c", coder, SITE, store.stats(SITE), settings, centre_D=centre_D)


def test_b_dec_starts_there_in_the_units_of_training(store: ActivationStore) -> None:
    trainer = make_trainer(store)
    centre_D = geometric_median(first_rows(make_reader(store), SITE, 500))
    torch.testing.assert_close(
        trainer.finished_coder().b_dec_D, torch.from_numpy(centre_D).float(), atol=1e-5, rtol=1e-5
    )
    mean_D = torch.from_numpy(store.stats(SITE).mean_D).float()
    assert not torch.allclose(trainer.finished_coder().b_dec_D, mean_D, atol=1e-3)


def test_a_transcoder_starts_at_the_median_of_its_target(store: ActivationStore) -> None:
    settings = Settings(steps=STEPS, batch=BATCH, centre="geometric_median")
    centre_D = geometric_median(first_rows(make_reader(store), TARGET, 500))
    trainer = CoderTrainer(
        "t",
        make_coder("transcoder", 16, 64, d_out=8, k=4),
        SITE,
        store.stats(SITE),
        settings,
        target=(TARGET, store.stats(TARGET)),
        centre_D=centre_D,
    )
    torch.testing.assert_close(
        trainer.finished_coder().b_dec_D, torch.from_numpy(centre_D).float(), atol=1e-5, rtol=1e-5
    )


def test_a_resumed_training_is_the_same_to_the_bit(store: ActivationStore, tmp_path: Path) -> None:
    whole = make_trainer(store)
    train([whole], make_reader(store), tmp_path / "a", STEPS, fingerprint="a")
    train([make_trainer(store)], make_reader(store), tmp_path / "b", STEPS // 2, fingerprint="a")
    again = make_trainer(store)
    facts = train([again], make_reader(store), tmp_path / "b", STEPS, fingerprint="a")
    assert facts["steps"] == STEPS - STEPS // 2
    for a, b in zip(
        again.coder.state_dict().values(), whole.coder.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_without_rows_it_is_a_sentence(store: ActivationStore) -> None:
    settings = Settings(steps=STEPS, centre="geometric_median")
    with pytest.raises(UserError, match="give it as `centre_D`"):
        CoderTrainer("c", make_coder("relu", 16, 64), SITE, store.stats(SITE), settings)
    with pytest.raises(UserError, match="`centre` is `median`"):
        Settings(steps=STEPS, centre="median")  # pyright: ignore[reportArgumentType]
