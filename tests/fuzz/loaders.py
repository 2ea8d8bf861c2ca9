"""Every loader of Loupe, as it is called on files that may come from anybody."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sae.base.errors import UserError
from tests.fuzz import mends, samples

Load = Callable[[Path], object]


@dataclass(frozen=True)
class Loader:
    """`load(folder)` reads a variant of what `make` wrote, and all of it.

    `mend` puts right the sums and hashes that a stranger would put right as well. Only files that
    match `changed` are changed.
    """

    make: Callable[[Path, Path, Path], None]
    load: Load
    mend: Callable[[Path], None] | None = None
    changed: str = "**/*"


def _described(folder: Path) -> None:
    """What `sae info` and `sae verify` say of it, also where its loader refuses it."""
    from pipelines.summary import print_info
    from pipelines.verify import verify

    for look in (print_info, verify):
        with suppress(UserError):
            look(folder)


def _configuration(folder: Path) -> None:
    from pipelines.config import RunConfig
    from pipelines.train import check_coders
    from sae.base.config import load_config

    lines = (folder / "settings.txt").read_bytes().decode("utf-8", "surrogateescape").split("\n")
    for given in ((folder / "run.yaml", []), (None, lines)):
        config = load_config(RunConfig, *given)
        config.model_dump(mode="json")
        check_coders(config)


def _coder(folder: Path) -> None:
    import torch

    from sae.coders import load_coder

    _described(folder)
    coder = load_coder(folder)
    x_BD = torch.randn(3, coder.d_in)
    coder.decode(coder.encode(x_BD), x_BD)
    _ = coder.site, coder.target_site


def _sparsify(folder: Path) -> None:
    from sae.io.sparsify import load_sparsify

    load_sparsify(folder, samples.SITE)


def _dictionary_learning(folder: Path) -> None:
    from sae.io.dictionary_learning import load_dictionary_learning

    load_dictionary_learning(folder, samples.SITE)


def _hdf5(folder: Path) -> None:
    from pipelines.summary import print_info

    print_info(folder / "topk.h5")


def _export(folder: Path) -> None:
    from sae.io.hdf5 import export_dictionary

    export_dictionary(
        folder / "index", folder / "coder", folder.parent / "e.h5", features="0-5", examples=2
    )


def _store(folder: Path) -> None:
    from sae.store import ActivationStore, ShuffledReader

    _described(folder)
    store = ActivationStore.open(folder)
    store.tokens()
    store.documents.of_rows([0, 5])
    for site in store.sites:
        _ = store.stats(site).variance
        store.read(site, 0, min(300, store.spec.rows))
    for split in store.splits:
        store.rows_of(split)
    stream = ShuffledReader(store, list(store.sites)[:1], batch=32, window=2).batches()
    list(islice(stream, 3))
    stream.close()


def _unfinished(folder: Path) -> None:
    from sae.features.spill import Spill
    from sae.store import StoreWriter
    from tests.store.fixtures import make_parts, write_shards

    with Spill(folder / "index.partial", samples.F, "f") as spill:
        rows = spill.rows
    if rows:
        spill.codes()
    spec, tokens, documents, data = make_parts(sequences=9000, train=8500)
    with StoreWriter(folder / "s.zarr", spec, tokens, documents) as writer:
        write_shards(writer, data, writer.missing)
        writer.finish()


def _checkpoint(folder: Path) -> None:
    from sae.training.checkpoint import load_checkpoint, verify_checkpoints
    from sae.training.log import TrainingLog

    verify_checkpoints(folder)
    load_checkpoint(folder, samples.make_trainers(), "f", lambda _: None)
    TrainingLog(folder / "c", samples.STEP).close()


def _index(folder: Path) -> None:
    from app import payload
    from sae.features import FeatureIndex, gallery, select

    _described(folder)
    index = FeatureIndex.open(folder)
    select(index, 'density>0.01 label:the token:" the" promotes:a kind:token max<90')
    view = index.view()
    gallery.interesting(index, view)
    for feature in {0, 1, 3, index.width // 2, index.width - 1} - {-1}:
        _feature(index, feature)
        payload.card(index, view.loc[feature].to_dict())
    for row in (0, 1, index.tokens_ST.size - 1):
        index.active_at(row)
        index.document_of(row)
    _ = index.vocabulary.names, index.token_counts_V, index.labels()


def _feature(index: Any, feature: int) -> None:
    for kind in ("top", "random", "near-miss", "quantiles"):
        index.examples(feature, kind, 3)
    for near in ("decoder", "encoder", "coactivation"):
        index.neighbours(feature, near)
    index.histogram(feature)
    index.logit_histogram(feature)
    index.enrichment(feature)


def _notes(folder: Path) -> None:
    import json

    from sae.base.files import read_json
    from sae.features.notes import Notes
    from sae.features.notes_file import notes_problems

    notes_problems(folder / "notes.sqlite3")
    notes = Notes(folder / "notes.sqlite3", samples.CODER_HASH, width=samples.F)
    json.dumps([notes.labels(), sorted(notes.stars()), notes.tags()])
    notes.history()
    notes.history(1)
    notes.import_json(read_json(folder / "notes.json"))
    notes.set_label(2, "another")
    notes.undo(3)
    notes.export_json()


def _evaluation(folder: Path) -> None:
    from app.run_folder import Run
    from pipelines import compare
    from pipelines.config import RunConfig
    from pipelines.summary import print_summary
    from sae.base.config import load_config

    names = [path.stem for path in sorted((folder / "evaluation").glob("?.json"))]
    wanted = ", ".join(f"{{name: {name}, k: {k}}}" for k, name in enumerate(names, 2))
    config = load_config(RunConfig, None, [f"folder={folder}", f"train.coders=[{wanted}]"])
    print_summary(config)
    for name in names:
        Run(folder).evaluation(name)
    compare.run(config)


def _manifest(folder: Path) -> None:
    from pipelines.manifest import Manifest
    from pipelines.summary import print_info
    from pipelines.verify import verify

    manifest = Manifest.open(folder)
    for name in list(manifest.items):
        manifest.is_current(name, "f")
    verify(folder)
    print_info(folder)
    manifest.forget(["train/topk"])


def _sums(folder: Path) -> None:
    from sae.base.sums import problems_of, require_intact

    problems_of(folder, ["checkpoint"])
    require_intact(folder, ["cfg.json", "sae_weights.safetensors"])


def _corpus(folder: Path) -> None:
    from sae.corpus import open_corpus

    for document in open_corpus(str(folder)).documents():
        _ = document.text.encode(), document.id.encode(), document.title.encode()


def _model(folder: Path) -> None:
    import torch

    from sae.features.tokenizer_bytes import vocabulary_of
    from sae.lm import load_lm
    from sae.lm.load import tokenizer_hash

    lm = load_lm(str(folder), device="cpu", dtype="float32")
    tokenizer_hash(lm.tokenizer)
    ids = lm.tokenizer.encode("The quick brown fox.", add_special_tokens=False)[:8]
    kept = [i for i in ids if i < lm.vocab_size] or [0]
    lm.capture(torch.tensor([kept]), [samples.SITE])
    vocabulary_of(lm.tokenizer, lm.vocab_size)


def _addition(folder: Path) -> None:
    from sae.lm.modular_addition import load_modular_addition

    net = load_modular_addition(folder)
    net(net.grid[:5])


def _filters(folder: Path) -> None:
    from sae.base.errors import UserError
    from sae.features import FeatureIndex, select

    index = FeatureIndex.open(folder / "index")
    refused: list[UserError] = []
    for line in (folder / "filter.txt").read_bytes().decode("utf-8", "replace").split("\n"):
        try:
            select(index, line.replace("@saved.json", f"@{folder / 'saved.json'}"))
        except UserError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _probe_sets(folder: Path) -> None:
    from sae.metrics.probe_sets import probe_sets, read_set

    for path in probe_sets(folder).values():
        read_set(path, 20, 0)


LOADERS: dict[str, Loader] = {
    "configuration": Loader(samples.configuration, _configuration),
    "coder": Loader(samples.coders, _coder, mends.sums),
    "sparsify": Loader(samples.sparsify, _sparsify),
    "dictionary_learning": Loader(samples.dictionary_learning, _dictionary_learning),
    "hdf5": Loader(samples.exports, _hdf5),
    "export": Loader(samples.coder_and_index, _export, mends.coder_hash, "coder/*"),
    "store": Loader(samples.stores, _store, mends.sums),
    "unfinished": Loader(samples.unfinished, _unfinished),
    "checkpoint": Loader(samples.checkpoints, _checkpoint, mends.checkpoints),
    "index": Loader(samples.indexes, _index),
    "notes": Loader(samples.notes, _notes),
    "evaluation": Loader(samples.evaluations, _evaluation),
    "manifest": Loader(samples.manifests, _manifest, mends.manifest),
    "sums": Loader(samples.sums, _sums, None, "SHA256SUMS"),
    "corpus": Loader(samples.corpora, _corpus),
    "model": Loader(samples.models, _model),
    "addition": Loader(samples.additions, _addition),
    "filters": Loader(samples.filters, _filters, None, "*.*"),
    "probe_sets": Loader(samples.probe_sets, _probe_sets),
}
