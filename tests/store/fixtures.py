"""A small store written through the real writer."""

from pathlib import Path

import numpy as np

from sae.store import ActivationStore, DocumentTable, StoreSpec, StoreWriter

SITES = {"blocks.0.hook_resid_post": 16, "blocks.1.hook_mlp_out": 8}


def make_parts(
    sequences: int = 700, context: int = 8, train: int = 512, **changes: object
) -> tuple[StoreSpec, np.ndarray, DocumentTable, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    values: dict = {
        "sites": SITES,
        "context": context,
        "sequences": sequences,
        "splits": {"train": (0, train), "heldout": (train, sequences)},
        "model": {"name": "tiny", "hash": "abc", "layers": 2, "d_model": 16},
        "tokenizer_hash": "t",
        "corpus": {"description": {"source": "x"}, "hash": "c"},
        "bos": 0,
    }
    spec = StoreSpec(**(values | changes))
    tokens = rng.integers(1, 99, (sequences, context)).astype(np.uint16)
    tokens[:, 0] = 0
    documents = DocumentTable(
        np.array([1, 50, train * context + 1]), ["a", "b", "ü"], ["A", "B", ""]
    )
    data = {
        site: rng.normal(1, 2, (sequences * context, width)).astype(np.float16)
        for site, width in spec.sites.items()
    }
    return spec, tokens, documents, data


def write_shards(writer: StoreWriter, data: dict[str, np.ndarray], shards: list[int]) -> None:
    for shard in shards:
        first, last = (s * writer.spec.context for s in writer.spec.shard_range(shard))
        writer.write(shard, {site: x[first:last] for site, x in data.items()})


def make_store(path: Path, **changes: object) -> tuple[ActivationStore, dict[str, np.ndarray]]:
    spec, tokens, documents, data = make_parts(**changes)  # pyright: ignore[reportArgumentType]
    with StoreWriter(path, spec, tokens, documents) as writer:
        write_shards(writer, data, writer.missing)
        writer.finish()
    return ActivationStore.open(path), data
