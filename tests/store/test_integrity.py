"""One writer at a time, nothing mixed, nothing lost unnoticed, a full disk, values out of range."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import sae.store.schema as schema
from sae.base.errors import UserError
from sae.base.sums import problems_of, read_sums
from sae.store import ActivationStore, ShuffledReader, StoreWriter
from tests.disk import full_disk
from tests.store.fixtures import SITES, make_parts, make_store, write_shards

SITE = "blocks.0.hook_resid_post"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "CHUNK_ROWS", 64)
    monkeypatch.setattr(schema, "SHARD_ROWS", 512)


def begin(path: Path, shards: list[int], **changes: object) -> None:
    spec, tokens, documents, data = make_parts(**changes)  # pyright: ignore[reportArgumentType]
    with StoreWriter(path, spec, tokens, documents) as writer:
        write_shards(writer, data, shards)


def complete(path: Path, **changes: object) -> None:
    spec, tokens, documents, data = make_parts(**changes)  # pyright: ignore[reportArgumentType]
    with StoreWriter(path, spec, tokens, documents) as writer:
        write_shards(writer, data, writer.missing)
        writer.finish()


def test_a_second_harvester_is_refused_with_the_owner_named(tmp_path: Path) -> None:
    spec, tokens, documents, _ = make_parts()
    with (
        StoreWriter(tmp_path / "s.zarr", spec, tokens, documents),
        pytest.raises(UserError, match=r"in use by process \d+ on .+ since"),
    ):
        StoreWriter(tmp_path / "s.zarr", spec, tokens, documents)
    StoreWriter(tmp_path / "s.zarr", spec, tokens, documents).__exit__(None, None, None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"name": "tiny", "hash": "other", "layers": 2, "d_model": 16}}, "model"),
        ({"corpus": {"description": {"source": "x"}, "hash": "other"}}, "corpus"),
        ({"tokenizer_hash": "other"}, "tokenizer_hash"),
        ({"harvested_as": "bfloat16"}, "harvested_as"),
        ({"code": "other"}, "code"),
    ],
)
def test_another_harvest_does_not_go_on_with_a_part_of_this_one(
    tmp_path: Path, changes: dict, named: str
) -> None:
    begin(tmp_path / "s.zarr", [0, 2])
    with pytest.raises(UserError, match=rf"holds 2 shards of another harvest \(its {named} differ"):
        begin(tmp_path / "s.zarr", [], **changes)
    complete(tmp_path / "s.zarr")
    complete(tmp_path / "s.zarr", **changes)  # a whole one is replaced, as its stage is stale


def test_what_is_no_store_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no activation store of Loupe"):
        begin(tmp_path / "s.zarr", [0])
    assert (tmp_path / "s.zarr" / "thesis.tex").exists()


def test_a_whole_store_is_not_harvested_again(tmp_path: Path) -> None:
    """The kill came between the end of the harvest and its record in the manifest."""
    make_store(tmp_path / "s.zarr")
    spec, tokens, documents, _ = make_parts()
    before = read_sums(tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "progress").mkdir()
    with StoreWriter(tmp_path / "s.zarr", spec, tokens, documents) as writer:
        assert writer.missing == []
        writer.finish()
    assert read_sums(tmp_path / "s.zarr") == before
    assert problems_of(tmp_path / "s.zarr") == []


def test_damaged_progress_costs_that_shard(tmp_path: Path) -> None:
    begin(tmp_path / "s.zarr", [0, 1, 2])
    spec, tokens, documents, _ = make_parts()
    (tmp_path / "s.zarr" / "progress" / "1.npz").write_bytes(b"PK\x03\x04 half")
    (tmp_path / "s.zarr" / schema.shard_file(SITE, 2)).unlink()
    with StoreWriter(tmp_path / "s.zarr", spec, tokens, documents) as writer:
        assert {0, 1, 2} & set(writer.missing) == {1, 2}


def test_a_disk_that_is_full_at_any_write_leaves_a_store_to_go_on_with(tmp_path: Path) -> None:
    with full_disk() as counted:
        complete(tmp_path / "whole.zarr")
    whole = read_sums(tmp_path / "whole.zarr")
    for limit in np.linspace(1, counted.writes, 12).astype(int):
        path = tmp_path / f"{limit}.zarr"
        with full_disk(limit), pytest.raises(OSError, match="No space left"):
            complete(path)
        with pytest.raises(UserError, match=r"incomplete|no activation store"):
            ActivationStore.open(path)
        complete(path)
        assert read_sums(path) == whole, limit
        assert problems_of(path) == []
        shutil.rmtree(path)


def test_a_missing_shard_is_an_error_and_no_nought(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path / "s.zarr")
    lost = schema.shard_file(SITE, 1)
    (store.path / lost).unlink()
    with pytest.raises(UserError, match="is missing"):  # gone while it is open
        store.read(SITE, 0, store.spec.rows)
    with pytest.raises(UserError, match=f"lacks {lost}"):
        ActivationStore.open(store.path)


def test_every_damaged_file_is_refused_by_what_reads_it(tmp_path: Path) -> None:
    """Training's own path for shards; each other table through its own reader."""
    whole, data = make_store(tmp_path / "whole.zarr")
    documents = whole.documents
    rng = np.random.default_rng(0)
    for name in read_sums(whole.path):
        path = Path(shutil.copytree(whole.path, tmp_path / "copy.zarr"))
        raw = bytearray((path / name).read_bytes())
        raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        (path / name).write_bytes(raw)
        with pytest.raises(UserError):
            read_all(path)
        shutil.rmtree(path)
    assert documents.id == ["a", "b", "ü"]
    np.testing.assert_array_equal(whole.read(SITE, 0, 10), data[SITE][:10])


def test_a_pipeline_that_checks_no_sums_is_refused(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path / "s.zarr")
    with (
        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}),
        pytest.raises(UserError, match=r"unset `codec_pipeline\.path`"),
    ):
        store.read(SITE, 0, 8)


def read_all(path: Path) -> None:
    store = ActivationStore.open(path)
    store.tokens()
    assert len(store.documents) == 3
    for site in SITES:
        store.stats(site)
    for split in store.splits:
        reader = ShuffledReader(store, list(SITES), batch=16, split=split, window=2)
        batches = reader.batches()
        for _ in range(reader.order.batches_per_epoch):
            next(batches)
        batches.close()


def test_values_out_of_range_are_counted_with_their_documents(tmp_path: Path) -> None:
    *_, data = make_parts()
    data[SITE][9, 0] = np.inf
    data[SITE][60:63, 2] = np.nan
    with pytest.raises(UserError) as raised:
        complete_with(tmp_path / "t.zarr", data)
    assert "4 of 512 activations" in str(raised.value)
    assert "position 1 of sequence 1" in str(raised.value)
    assert "`a` (1), `b` (3)" in str(raised.value)


def complete_with(path: Path, data: dict[str, np.ndarray]) -> None:
    spec, tokens, documents, _ = make_parts()
    with StoreWriter(path, spec, tokens, documents) as writer:
        write_shards(writer, data, writer.missing)
        writer.finish()
