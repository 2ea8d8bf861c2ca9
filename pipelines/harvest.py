"""Stage harvest: text -> tokens -> a GPT-2's activations -> Zarr shards."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.begin import Begin, nothing
from pipelines.config import RunConfig
from pipelines.manifest import CODE, code_hash
from pipelines.progress import progress
from sae.base.errors import UserError
from sae.base.memory import require_memory
from sae.corpus import PackedCorpus, open_corpus, pack_corpus
from sae.lm import LanguageModel, load_lm
from sae.lm.load import tokenizer_hash
from sae.store import DocumentTable, StoreSpec, StoreWriter
from sae.store.schema import BYTES_PER_VALUE, CHUNK_ROWS
from sae.store.writer import WAITING


def run(config: RunConfig, begin: Begin = nothing) -> dict[str, Any]:
    """Makes `activations.zarr`, or goes on with it; returns facts for the summary."""
    lm = load_lm(config.model.name, config.model.device, config.model.dtype)
    sites = {site: lm.site_width(site) for site in config.harvest.sites}
    corpus, packed = tokenise(config, lm)
    spec = StoreSpec(
        sites=sites,
        context=packed.tokens.shape[1],
        sequences=len(packed.tokens),
        splits=dict(packed.splits.items()),
        model={
            "name": lm.name,
            "hash": lm.hash,
            "layers": lm.n_layers,
            "d_model": lm.d_model,
            "vocab_size": lm.vocab_size,
        },
        tokenizer_hash=tokenizer_hash(lm.tokenizer),
        corpus={"description": corpus, "hash": packed.hash},
        bos=lm.bos_id,
        harvested_as=str(lm.dtype).removeprefix("torch."),
        compression=config.harvest.compression,  # pyright: ignore[reportArgumentType]
        code=code_hash(*CODE["harvest"]),
    )
    _check_memory(spec)
    documents = DocumentTable(packed.document_start, packed.document_id, packed.document_title)
    with StoreWriter(config.store, spec, packed.tokens, documents, begin) as writer:
        with progress("harvest", spec.rows) as update:
            harvest_shards(lm, writer, packed.tokens, config.harvest.batch, update)
        writer.finish()
    return {"tokens": spec.rows, "bytes": spec.bytes, "documents": len(documents)}


def _check_memory(spec: StoreSpec) -> None:
    """Shards that are there at once: one that the model fills, one that is written, and those that
    wait for the disk."""
    rows = min(spec.shard_sequences, spec.sequences) * spec.context
    shards = min(2 + WAITING, spec.shards)
    needed = shards * rows * sum(spec.sites.values()) * BYTES_PER_VALUE
    require_memory(needed, "The harvest", "give fewer `harvest.sites` at a time")


def tokenise(config: RunConfig, lm: LanguageModel) -> tuple[dict[str, Any], PackedCorpus]:
    """(description of the source, packed rows), both splits, within their budgets."""
    wanted = config.corpus
    context = wanted.context or lm.context
    if context > lm.context:
        raise UserError(
            f"`corpus.context` is {context}, longer than the context of `{lm.name}`, {lm.context}."
        )
    source = open_corpus(wanted.source, wanted.column)
    with progress("tokenise", wanted.train_tokens + wanted.heldout_tokens) as update:
        packed = pack_corpus(
            source,
            lm.tokenizer,
            context=context,
            train_tokens=wanted.train_tokens,
            heldout_tokens=wanted.heldout_tokens,
            heldout_share=wanted.heldout_share,
            seed=wanted.seed,
            multiple=max(1, CHUNK_ROWS // context),
            on_tokens=update,
        )
    return source.description, packed


def harvest_shards(
    lm: LanguageModel,
    writer: StoreWriter,
    tokens: np.ndarray,
    batch: int,
    on_rows: Callable[[int], None] | None = None,
) -> None:
    """Runs the model over every shard that is missing, all sites in one early-exit pass.

    A finished shard goes to the writer's thread; the model goes on at once. On CUDA the copies
    into pinned memory are asynchronous and waited for once per shard.
    """
    spec = writer.spec
    cuda = lm.device.type == "cuda"
    missing = writer.missing
    done = spec.rows - sum(_rows(spec.shard_range(i)) for i in missing) * spec.context
    for shard in missing:
        first, last = spec.shard_range(shard)
        block = {
            site: torch.empty(
                (last - first, spec.context, width), dtype=torch.float16, pin_memory=cuda
            )
            for site, width in spec.sites.items()
        }
        for start in range(first, last, batch):
            stop = min(start + batch, last)
            found = lm.capture(_as_tensor(tokens[start:stop]), list(spec.sites))
            for site, x_STD in found.items():
                block[site][start - first : stop - first].copy_(x_STD, non_blocking=cuda)
            done += (stop - start) * spec.context
            if on_rows:
                on_rows(done)
        if cuda:
            torch.cuda.synchronize(lm.device)
        writer.write(shard, {site: x.flatten(0, 1).numpy() for site, x in block.items()})


def _rows(bounds: Sequence[int]) -> int:
    return bounds[1] - bounds[0]


def _as_tensor(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))
