"""One writer at a time, nothing mixed, nothing lost unnoticed, a full disk, values out of range."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import sae.store.schema as schema
from sae.base.errors import UserError
from sae.base.files import LARGEST_JSON, remove_tree
from sae.base.sums import SUMS, problems_of, read_sums, write_sums
from sae.store import ActivationStore, ShuffledReader, StoreWriter
from tests.damage import Damage
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


@pytest.mark.parametrize("name", ["tokens/c/0/0", f"activations/{SITE}/zarr.json"])
def test_damage_of_a_begun_store_is_not_sealed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.zarr"
    begin(path, [0, 2])
    with Damage(path / name, "flip", 0.5), pytest.raises(UserError, match="is not what was writt"):
        complete(path)
    complete(path)
    assert problems_of(path) == []


def test_damage_that_comes_while_a_store_is_written_is_not_sealed(tmp_path: Path) -> None:
    path, (spec, tokens, documents, data) = tmp_path / "s.zarr", make_parts()
    with StoreWriter(path, spec, tokens, documents) as writer:
        write_shards(writer, data, writer.missing)
        with (
            Damage(path / "tokens/c/0/0", "flip", 0.5),
            pytest.raises(UserError, match="is not what was written"),
        ):
            writer.finish()
    assert not (path / SUMS).exists()


def test_what_a_kill_left_of_a_removal_goes_before_the_disk_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it takes the room of the store that is to take its place, and nothing removes it."""
    path, left = tmp_path / "s.zarr", tmp_path / ".s.zarr.removed"
    make_store(path)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        remove_tree(path)
    assert left.is_dir()
    there: list[bool] = []
    monkeypatch.setattr(
        "sae.store.writer.require_free_space", lambda *_: there.append(left.exists())
    )
    begin(path, [0])
    assert there
    assert not any(there)


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


def test_a_store_goes_only_when_the_one_in_its_place_fits(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    make_store(path)
    before = read_sums(path)
    spec, tokens, documents, _ = make_parts()

    def remove() -> None:
        remove_tree(path)

    with pytest.raises(UserError, match="are free"):
        StoreWriter(path, replace(spec, sequences=10**12), tokens, documents, remove)
    assert read_sums(path) == before
    assert problems_of(path) == []
    with StoreWriter(path, spec, tokens, documents, remove) as writer:
        assert len(writer.missing) == spec.shards


def test_a_refusal_to_begin_leaves_the_store_to_others(tmp_path: Path) -> None:
    spec, tokens, documents, _ = make_parts()

    def refuse() -> None:
        raise UserError("It is being read.")

    with pytest.raises(UserError, match="being read"):
        StoreWriter(tmp_path / "s.zarr", spec, tokens, documents, refuse)
    assert list(tmp_path.iterdir()) == []


def test_all_that_the_sums_vouch_for_is_on_the_disk_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, sync = tmp_path / "s.zarr", set(), os.fsync

    def recorded(descriptor: int) -> None:
        if not (path / SUMS).exists():
            synced.add(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    make_store(path)
    folders = [p for p in (path, *path.rglob("*")) if p.is_dir()]
    for place in (*folders, *(path / name for name in read_sums(path))):
        assert place.stat().st_ino in synced, place


@pytest.mark.parametrize("name", ["tokens", f"activations/{SITE}", f"statistics/{SITE}/mean"])
def test_chunks_of_other_names_are_refused(tmp_path: Path, name: str) -> None:
    """They would lie where nobody looks at what they unfold to."""
    store, _ = make_store(tmp_path / "s.zarr")
    metadata = store.path / name / "zarr.json"
    said = json.loads(metadata.read_text())
    said["chunk_key_encoding"]["configuration"]["separator"] = "."
    metadata.write_text(json.dumps(said))
    reseal_nothing(store.path)
    with pytest.raises(UserError, match="are named as none of Loupe are"):
        ActivationStore.open(store.path)


@pytest.mark.parametrize("name", ["zarr.json", "tokens/zarr.json"])
def test_metadata_of_any_size_are_not_read(tmp_path: Path, name: str) -> None:
    store, _ = make_store(tmp_path / "s.zarr")
    os.truncate(store.path / name, LARGEST_JSON + 1)
    with pytest.raises(UserError, match=f"{name} has .* bytes, and a file of its kind at most"):
        ActivationStore.open(store.path)


def test_links_out_of_a_store_and_stores_elsewhere_are_refused(tmp_path: Path) -> None:
    store, _ = make_store(tmp_path / "s.zarr")
    (store.path / "tokens/c").rename(tmp_path / "c")
    (store.path / "tokens/c").symlink_to(tmp_path / "c")
    with pytest.raises(UserError, match="tokens/c leads out of the store"):
        ActivationStore.open(store.path)
    with pytest.raises(UserError, match="is no folder of this machine"):
        ActivationStore.open("s3://bucket/s.zarr")


def reseal_nothing(path: Path) -> None:
    """Somebody who means harm brings sums that fit, here of no file."""
    write_sums(path, {})
