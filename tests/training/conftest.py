"""A small store with chunks and shards so small that windows and epochs matter."""

from pathlib import Path

import pytest

import sae.store.schema as schema
from sae.store import ActivationStore
from tests.store.fixtures import make_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ActivationStore:
    monkeypatch.setattr(schema, "CHUNK_ROWS", 64)
    monkeypatch.setattr(schema, "SHARD_ROWS", 512)
    return make_store(tmp_path / "s.zarr")[0]
