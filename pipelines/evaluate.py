"""Stage evaluate: a coder against held-out text, with intervals, self-tests and controls."""

from typing import Any

from pipelines.begin import Begin, nothing
from pipelines.config import RunConfig
from pipelines.manifest import CONTROLS, code_hash
from pipelines.progress import steps_progress
from pipelines.results import (
    folder_of,
    require_sums,
    whole_command,
    withdraw,
    withdraw_others,
)
from sae.base.errors import CheckFailure
from sae.base.files import write_json
from sae.coders import Coder, coder_hash, load_coder
from sae.lm import load_lm
from sae.metrics import evaluate, write_report
from sae.metrics.controls import Cache
from sae.store import ActivationStore


def run(config: RunConfig, name: str, begin: Begin = nothing) -> dict[str, Any]:
    """Writes `evaluation/<name>.json` and its page; fitted controls are kept in `controls/`.

    What was measured on other weights goes once this is measured, and no earlier: until `begin()`
    it is on record. When a check fails, all that stood goes.
    """
    require_sums(folder_of(config))
    store = ActivationStore.open(config.store)
    coder = load_coder(config.coder_folder(name))
    weights = coder_hash(config.coder_folder(name))
    try:
        result = _evaluated(config, name, store, coder, weights)
    except CheckFailure:
        begin()
        withdraw_others(config, name, weights)
        withdraw(config, name)
        raise
    begin()
    withdraw_others(config, name, weights)
    withdraw(config, name)  # the report is of the evaluation before this one
    folder = folder_of(config)
    whole = whole_command(config) if config.evaluate.quick else None
    write_report(name, result, folder / f"{name}.html", whole)
    write_json(folder / f"{name}.json", result)
    return {key: result["metrics"][key]["value"] for key in ("ev", "l0", "ce_recovered_mean")}


def _evaluated(
    config: RunConfig, name: str, store: ActivationStore, coder: Coder, weights: str
) -> dict[str, Any]:
    # The gate (splicing x̂ + e must change nothing) holds in float32 only.
    lm = load_lm(config.model.name, config.model.device, "float32")
    wanted = config.evaluate
    with steps_progress(f"evaluate {name}", in_tokens=("activations", "losses")) as report:
        return evaluate(
            coder,
            store,
            lm,
            tokens=wanted.tokens,
            loss_tokens=wanted.loss_tokens,
            quick=wanted.quick,
            controls=wanted.controls,
            cache=Cache(config.folder / "controls", code_hash(*CONTROLS)),
            seed=wanted.seed,
            progress=report,
            coder_hash=weights,
        )
