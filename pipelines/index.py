"""Stage index: which tokens fire each feature, and what the browser and the export read."""

from typing import Any

from pipelines.begin import Begin, nothing
from pipelines.config import RunConfig
from pipelines.progress import steps_progress
from sae.base.files import read_json
from sae.coders import coder_hash, load_coder
from sae.features import build_index
from sae.lm import load_lm
from sae.store import ActivationStore


def run(config: RunConfig, name: str, begin: Begin = nothing) -> dict[str, Any]:
    """Makes `features/<name>/`, or goes on with it."""
    store = ActivationStore.open(config.store)
    coder = load_coder(config.coder_folder(name))
    lm = load_lm(config.model.name, "cpu", "float32")
    with steps_progress(f"index {name}") as report:
        folder = build_index(
            coder,
            store,
            config.folder / "features" / name,
            lm=lm,
            tokens=config.index.tokens,
            name=name,
            progress=report,
            coder_hash=coder_hash(config.coder_folder(name)),
            before_replacing=begin,
        )
    meta = read_json(folder / "index.json")
    return {"tokens": meta["tokens"], "d_sae": meta["d_sae"]}
