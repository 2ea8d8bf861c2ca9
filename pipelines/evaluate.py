"""Stage evaluate: a coder against held-out text, with intervals, self-tests and controls."""

from typing import Any

from pipelines.config import RunConfig
from pipelines.progress import steps_progress
from sae.base.files import write_json
from sae.coders import coder_hash, load_coder
from sae.lm import load_lm
from sae.metrics import evaluate
from sae.metrics.controls import Cache
from sae.store import ActivationStore


def run(config: RunConfig, name: str) -> dict[str, Any]:
    """Writes `evaluation/<name>.json`; fitted controls are kept in `controls/`."""
    store = ActivationStore.open(config.store)
    coder = load_coder(config.coder_folder(name))
    # The gate (splicing x̂ + e must change nothing) holds in float32 only.
    lm = load_lm(config.model.name, config.model.device, "float32")
    wanted = config.evaluate
    with steps_progress(f"evaluate {name}") as report:
        result = evaluate(
            coder,
            store,
            lm,
            tokens=wanted.tokens,
            loss_tokens=wanted.loss_tokens,
            quick=wanted.quick,
            controls=wanted.controls,
            cache=Cache(config.folder / "controls"),
            seed=wanted.seed,
            progress=report,
            coder_hash=coder_hash(config.coder_folder(name)),
        )
    write_json(config.folder / "evaluation" / f"{name}.json", result)
    return {key: result["metrics"][key]["value"] for key in ("ev", "l0", "ce_recovered_mean")}
