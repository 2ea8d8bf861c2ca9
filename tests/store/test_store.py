import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import sae.store.schema as schema
from sae.base.errors import UserError
from sae.store import ActivationStore, ShuffledReader, StoreWriter
from tests.store.fixtures import SITES, make_parts, make_store, write_shards

SITE = "blocks.0.hook_resid_post"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards of many chunks in little data."""
    monkeypatch.setattr(schema, "CHUNK_ROWS", 64)
    monkeypatch.setattr(schema, "SHARD_ROWS", 512)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_what_is_written_is_read(tmp_path: Path, compression: str) -> None:
    store, data = make_store(tmp_path / "s.zarr", compression=compression)
    assert store.spec.shards > 3
    for site in SITES:
        np.testing.assert_array_equal(store.read(site, 0, store.spec.rows), data[site])
        np.testing.assert_array_equal(store.read(site, 13, 200), data[site][13:200])
    assert store.rows_of("heldout") == range(512 * 8, 700 * 8)


def test_statistics_are_those_of_the_train_split_without_position_0(tmp_path: Path) -> None:
    store, data = make_store(tmp_path / "s.zarr")
    x = data[SITE][: 512 * 8].astype(np.float64)[np.arange(512 * 8) % 8 != 0]
    stats = store.stats(SITE)
    assert stats.count == len(x)
    np.testing.assert_allclose(stats.mean_D, x.mean(0), rtol=1e-6)
    assert stats.mean_square == pytest.approx((x**2).sum(1).mean(), rel=1e-6)
    assert stats.mean_norm == pytest.approx(np.linalg.norm(x, axis=1).mean(), rel=1e-6)
    assert stats.variance == pytest.approx(x.var(0).sum(), rel=1e-5)


def test_an_interrupted_harvest_resumes_to_the_identical_store(tmp_path: Path) -> None:
    whole, data = make_store(tmp_path / "whole.zarr")
    spec, tokens, documents, _ = make_parts()
    with StoreWriter(tmp_path / "cut.zarr", spec, tokens, documents) as writer:
        write_shards(writer, data, [0, 3])
    with pytest.raises(UserError, match="incomplete"):
        ActivationStore.open(tmp_path / "cut.zarr")
    with StoreWriter(tmp_path / "cut.zarr", spec, tokens, documents) as writer:
        assert 0 not in writer.missing
        assert 3 not in writer.missing
        write_shards(writer, data, writer.missing)
        writer.finish()
    cut = ActivationStore.open(tmp_path / "cut.zarr")
    for site in SITES:
        np.testing.assert_array_equal(cut.read(site, 0, spec.rows), whole.read(site, 0, spec.rows))
        assert cut.stats(site).mean_square == whole.stats(site).mean_square
        np.testing.assert_array_equal(cut.stats(site).mean_D, whole.stats(site).mean_D)


def test_unfinished_shards_refuse_to_finish(tmp_path: Path) -> None:
    spec, tokens, documents, data = make_parts()
    with StoreWriter(tmp_path / "s.zarr", spec, tokens, documents) as writer:
        write_shards(writer, data, [1])
        with pytest.raises(UserError, match="misses shards"):
            writer.finish()


def test_values_that_float16_cannot_hold_are_an_error(tmp_path: Path) -> None:
    spec, tokens, documents, data = make_parts()
    data[SITE][9, 0] = np.inf

    def write_all() -> None:
        with StoreWriter(tmp_path / "s.zarr", spec, tokens, documents) as writer:
            write_shards(writer, data, writer.missing)
            writer.finish()

    with pytest.raises(UserError, match="finite"):
        write_all()


def test_a_flipped_byte_is_found_by_the_read_path_of_training(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path / "s.zarr")
    shard = max((store.path / "activations" / SITE / "c").rglob("*"), key=lambda p: p.is_file())
    raw = bytearray(shard.read_bytes())
    raw[10] ^= 0x40
    shard.write_bytes(raw)
    reader = ShuffledReader(ActivationStore.open(store.path), [SITE], batch=64)
    batches = reader.batches()
    with pytest.raises(UserError, match="damaged"):
        list(islice(batches, reader.order.batches_per_epoch))


def test_documents_own_their_rows(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path / "s.zarr")
    documents = store.documents
    assert documents.id == ["a", "b", "ü"]
    assert documents.of_rows([0, 1, 49, 50, 512 * 8 + 5]).tolist() == [0, 0, 0, 1, 2]


def test_batches_are_the_rows_of_the_order_and_resume_anywhere(tmp_path: Path) -> None:
    store, data = make_store(tmp_path / "s.zarr")
    reader = ShuffledReader(store, list(SITES), batch=100, window=3, seed=5)
    per_epoch = reader.order.batches_per_epoch
    assert per_epoch == 512 * 7 // 100
    stream = reader.batches()
    seen = [next(stream) for _ in range(2 * per_epoch)]
    stream.close()
    known = {row.tobytes(): i for i, row in enumerate(data[SITE][: 512 * 8])}
    rows = [known[x.tobytes()] for batch in seen[:per_epoch] for x in batch[SITE]]
    assert len(set(rows)) == len(rows) == per_epoch * 100
    assert all(row % 8 for row in rows)
    second = data["blocks.1.hook_mlp_out"]
    np.testing.assert_array_equal(seen[0]["blocks.1.hook_mlp_out"], second[rows[:100]])
    for start in (1, 7, per_epoch - 1, per_epoch, per_epoch + 3):
        resumed = reader.batches(start)
        np.testing.assert_array_equal(next(resumed)[SITE], seen[start][SITE])
        resumed.close()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: s.read("blocks.0.hook_resid_pots", 0, 1), "Did you mean"),
        (lambda s: s.rows_of("test"), "train, heldout"),
        (lambda s: ShuffledReader(s, [SITE], batch=10**6), "fewer than one batch"),
        (lambda s: ActivationStore.open(s.path.parent / "none"), "sae harvest"),
    ],
)
def test_mistakes_get_a_sentence(tmp_path: Path, act, message: str) -> None:
    store, _ = make_store(tmp_path / "s.zarr")
    with pytest.raises(UserError, match=message):
        act(store)


def test_a_store_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    spec, tokens, documents, _ = make_parts()
    spec = replace(spec, sequences=10**12)
    with pytest.raises(UserError, match="are free"):
        StoreWriter(tmp_path / "s.zarr", spec, tokens, documents)
    assert not (tmp_path / "s.zarr").exists()


def test_a_reader_that_fails_ends_when_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batches fill the queue, and its error would wait for room without end."""
    store, _ = make_store(tmp_path / "s.zarr")
    reader = ShuffledReader(store, [SITE], batch=64, ahead=1)
    failed = threading.Event()

    def produce(start: int) -> Iterator[dict[str, np.ndarray]]:
        yield {SITE: np.zeros(1)}
        yield {SITE: np.zeros(1)}
        failed.set()
        raise OSError("the disk is gone")

    monkeypatch.setattr(reader, "_produce", produce)
    before = set(threading.enumerate())
    batches = reader.batches()
    next(batches)
    [thread] = set(threading.enumerate()) - before
    assert failed.wait(5)
    batches.close()
    thread.join(5)
    assert not thread.is_alive()
