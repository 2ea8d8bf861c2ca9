"""`sae verify`: reads everything back and lists what is wrong."""

from pathlib import Path

import numpy as np

from pipelines.config import RunConfig
from sae.base.config import load_config
from sae.base.errors import UserError
from sae.base.files import read_json


def verify(path: Path) -> list[str]:
    """Problems of a run folder, store, coder or feature index; empty if it is sound."""
    if (path / "run.yaml").exists():
        config = load_config(RunConfig, path / "run.yaml")
        parts = [path / "activations.zarr", *sorted((path / "features").glob("*/"))]
        parts += [path / "coders" / coder.name for coder in config.train.coders]
        problems = [f"{part}: missing" for part in parts if not part.exists()]
        return problems + [p for part in parts if part.exists() for p in verify(part)]
    if (path / "zarr.json").exists():
        return _verify_store(path)
    if (path / "cfg.json").exists():
        return _verify_coder(path)
    if (path / "index.json").exists():
        from sae.features import verify_index

        return [f"{path}: {problem}" for problem in verify_index(path)]
    raise UserError(f"{path} is no run folder, activation store, coder or feature index of Loupe.")


def _verify_store(path: Path) -> list[str]:
    """Reads every chunk (checksums), and compares shapes and token ids with the schema."""
    from sae.store import ActivationStore

    try:
        store = ActivationStore.open(path)
    except UserError as error:
        return [str(error)]
    problems = []
    tokens = store.tokens()
    if tokens.shape != (store.sequences, store.context):
        problems.append(f"{path}: tokens have shape {tokens.shape}")
    if not (tokens[:, 0] == store.spec.bos).all():
        problems.append(f"{path}: a sequence does not begin with BOS")
    step = store.spec.shard_sequences * store.context
    for site in store.sites:
        for start in range(0, store.spec.rows, step):
            try:
                block = store.read(site, start, min(start + step, store.spec.rows))
            except UserError as error:
                problems.append(str(error))
                continue
            if not np.isfinite(block).all():
                problems.append(f"{path}: `{site}` holds values that are not finite near {start}")
    return problems


def _verify_coder(path: Path) -> list[str]:
    from sae.coders import load_coder

    config = read_json(path / "cfg.json")
    try:
        coder = load_coder(path)
    except UserError as error:
        return [str(error)]
    problems = []
    for name, tensor in coder.saved_tensors().items():
        if not tensor.isfinite().all():
            problems.append(f"{path}: `{name}` holds values that are not finite")
    if (coder.d_in, coder.d_sae) != (config["d_in"], config["d_sae"]):
        problems.append(f"{path}: the weights' shapes contradict cfg.json")
    return problems
