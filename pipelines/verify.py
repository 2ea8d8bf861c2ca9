"""`sae verify`: compares each file with what was written, reads it back, lists what is wrong."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.config import RunConfig
from pipelines.manifest import Manifest
from sae.base.config import load_config
from sae.base.errors import UserError
from sae.base.files import read_json, sha256_file
from sae.base.sums import SUMS, problems_of, read_sums

if TYPE_CHECKING:
    from sae.store import ActivationStore

RESULTS = {"evaluation": "evaluate", "export": "export"}  # folders of plain files: their stage
CONTROLS = "controls"  # fitted for evaluations, and kept
TRAINING = ("checkpoint", "wandb")
"""In a coder's folder: what is there while it trains, checked by itself, and another program's."""
COMMITS = ("checkpoint-*.json", ".checkpoint-*.partial")
"""Beside the coders' folders. A state that none of them names may be what a kill left."""


def verify(path: Path) -> list[str]:
    """Problems of what lies at `path`, a sentence each with the file's name; empty if it is sound.

    A run folder, or a part of one: the store, a coder, a feature index, the folder of evaluations
    or exports, one file of these.
    """
    if (path / "run.yaml").exists() or (path / "manifest.json").exists():
        return _verify_run(path)
    for known, check in (
        ("zarr.json", _verify_store),
        ("cfg.json", _verify_coder),
        ("index.json", _verify_index),
        (SUMS, _verify_sums),
    ):
        if (path / known).exists():
            return check(path)
    sealed = [folder for folder in list(path.parents)[:2] if (folder / SUMS).exists()]
    if path.is_file() and sealed:
        return _verify_file(path, sealed[0])
    raise UserError(
        f"{path} is no run folder, activation store, coder, feature index, evaluation or export of "
        "Loupe."
    )


def _verify_run(path: Path) -> list[str]:
    """What the manifest records must be there and sound, and what is there must be sound."""
    if not (path / "manifest.json").exists():
        return [f"{path / 'manifest.json'}: missing"]
    try:
        manifest = Manifest.open(path)
    except UserError as error:
        return [str(error)]
    outputs = [path / o for item in manifest.items.values() for o in item["outputs"]]
    problems = [f"{output}: missing" for output in outputs if not output.exists()]
    problems += _verify_configuration(path, manifest)
    stores = [path / "activations.zarr"] if "harvest" in manifest.items else []
    coders = _names(path / "coders", manifest, "train")
    indexes = _names(path / "features", manifest, "index")
    results = [
        path / name
        for name, stage in RESULTS.items()
        if _names(path, manifest, stage) or (path / name / SUMS).exists()
    ]
    for part, check in (
        *((store, _verify_store) for store in stores),
        *((coder, _verify_coder) for coder in coders),
        *((index, _verify_index) for index in indexes),
        *((result, _verify_sums) for result in results),
        (path / CONTROLS, _verify_controls),
    ):
        if part.exists():
            problems += check(part)
    problems += _verify_explanations(path / "explanations")
    problems += _unexpected(path / "coders", *COMMITS) + _unexpected(path / "features")
    return problems + _verify_checkpoints(path / "coders")


def _names(folder: Path, manifest: Manifest, stage: str) -> list[Path]:
    """The folders of the coders for which the stage was done."""
    items = [item.partition("/") for item in manifest.items]
    return [folder / coder for name, _, coder in items if name == stage]


def _verify_configuration(path: Path, manifest: Manifest) -> list[str]:
    file = path / "run.yaml"
    if not file.exists():
        return [f"{file}: missing"]
    try:
        load_config(RunConfig, file)
    except UserError as error:
        return [f"{file}: {error}"]
    if manifest.configuration not in (None, sha256_file(file)):
        return [f"{file}: not what the last run wrote (damaged, or edited since)"]
    return []


def _verify_sums(path: Path) -> list[str]:
    """Files that the sums name; a coder beside them (of `pipelines.addition`) has its own."""
    coders = [config.parent for config in path.glob("*/cfg.json")]
    problems = problems_of(path, [coder.name for coder in coders])
    return problems + [problem for coder in coders for problem in _verify_coder(coder)]


def _verify_controls(path: Path) -> list[str]:
    """Fitted controls: coders, which have their own sums, and files, which the folder's name."""
    if not path.is_dir():
        return [f"{path}: extra"]
    coders = [config.parent for config in path.glob("*/cfg.json")]
    others = {*path.iterdir()} - {*coders, path / f".{SUMS}.lock"}
    is_sealed = (path / SUMS).exists() or bool(others)
    problems = problems_of(path, [coder.name for coder in coders]) if is_sealed else []
    return problems + [p for coder in coders for p in _verify_coder(coder, is_ours=True)]


def _unexpected(folder: Path, *expected: str) -> list[str]:
    """What lies directly in a folder that holds folders of coders."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        f"{entry}: extra"
        for entry in entries
        if not entry.is_dir() and not any(entry.match(pattern) for pattern in expected)
    ]


def _verify_file(path: Path, folder: Path) -> list[str]:
    """A file of a folder that is sealed, or of one within it."""
    try:
        digest = read_sums(folder).get(path.relative_to(folder).as_posix())
    except UserError as error:
        return [str(error)]
    if digest is None:
        return [f"{path}: extra"]
    return [] if sha256_file(path) == digest else [f"{path}: not what was written"]


def _verify_index(path: Path) -> list[str]:
    from sae.features import verify_index

    return [p if p.startswith(str(path)) else f"{path}: {p}" for p in verify_index(path)]


def _verify_explanations(folder: Path) -> list[str]:
    """The answers of language models that `sae explain` keeps."""
    from sae.explain.journal import journal_problems

    return [
        problem for path in sorted(folder.glob("*.jsonl")) for problem in journal_problems(path)
    ]


def _verify_checkpoints(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    from sae.training.checkpoint import verify_checkpoints

    return verify_checkpoints(folder)


def _verify_store(path: Path) -> list[str]:
    """Every file, then every chunk as it is read, shapes and token ids against the schema."""
    if problems := problems_of(path):
        return problems
    from sae.store import ActivationStore

    try:
        store = ActivationStore.open(path)
        return _contents_of(store)
    except UserError as error:
        return [f"{path}: {error}"]


def _contents_of(store: "ActivationStore") -> list[str]:
    path, problems = store.path, []
    tokens = store.tokens()
    if tokens.shape != (store.sequences, store.context):
        problems.append(f"{path}: tokens have shape {tokens.shape}")
    elif not (tokens[:, 0] == store.spec.bos).all():
        problems.append(f"{path}: a sequence does not begin with BOS")
    step = store.spec.shard_sequences * store.context
    for site in store.sites:
        for start in range(0, store.spec.rows, step):
            block = store.read(site, start, min(start + step, store.spec.rows))
            if not np.isfinite(block).all():
                problems.append(f"{path}: `{site}` holds values that are not finite near {start}")
    return problems


def _verify_coder(path: Path, *, is_ours: bool = False) -> list[str]:
    """The files, where Loupe wrote them; then the weights, of whatever tool."""
    from sae.coders import load_coder

    try:
        config = read_json(path / "cfg.json")
    except UserError as error:
        return [str(error)]
    metadata = config.get("metadata") if isinstance(config, dict) else None
    is_ours |= isinstance(metadata, dict) and "loupe" in metadata
    if (is_ours or (path / SUMS).exists()) and (problems := problems_of(path, TRAINING)):
        return problems
    try:
        coder = load_coder(path)
    except UserError as error:
        return [f"{path}: {error}"]
    problems = []
    for name, tensor in coder.saved_tensors().items():
        if not tensor.isfinite().all():
            problems.append(f"{path}: `{name}` holds values that are not finite")
    if (coder.d_in, coder.d_sae) != (config["d_in"], config["d_sae"]):
        problems.append(f"{path}: the weights' shapes contradict cfg.json")
    return problems
