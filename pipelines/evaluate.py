"""Stage evaluate: a coder against held-out text, with intervals, self-tests and controls."""

from typing import Any

from pipelines.config import RunConfig
from pipelines.progress import steps_progress
from sae.base.errors import UserError
from sae.base.files import read_json, write_json
from sae.coders import coder_hash, load_coder
from sae.lm import load_lm
from sae.metrics import evaluate
from sae.store import ActivationStore


def run(config: RunConfig, name: str) -> dict[str, Any]:
    """Writes `evaluation/<name>.json`, and the report of all coders evaluated so far."""
    store = ActivationStore.open(config.store)
    coder = load_coder(config.coder_folder(name))
    # The gate (splicing x̂ + e must change nothing) holds in float32 only.
    lm = load_lm(config.model.name, config.model.device, "float32")
    check_same_model(store, lm.hash, config)
    wanted = config.evaluate
    with steps_progress(f"evaluate {name}") as report:
        result = evaluate(
            coder,
            store,
            lm,
            tokens=wanted.tokens,
            loss_tokens=wanted.loss_tokens,
            seed=wanted.seed,
            progress=report,
            coder_hash=coder_hash(config.coder_folder(name)),
        )
    folder = config.folder / "evaluation"
    write_json(folder / f"{name}.json", result)
    write_run_report(config)
    return {key: result["metrics"][key]["value"] for key in ("ev", "l0", "ce_recovered_mean")}


def write_run_report(config: RunConfig) -> None:
    from sae.metrics.report import write_report

    folder = config.folder / "evaluation"
    known = [coder.name for coder in config.train.coders]
    found = {n: read_json(p) for n in known if (p := folder / f"{n}.json").exists()}
    write_report(found, folder / "report.html")


def check_same_model(store: ActivationStore, model_hash: str, config: RunConfig) -> None:
    if store.spec.model["hash"] != model_hash:
        raise UserError(
            f"{store.path} was harvested from another model than `{config.model.name}` "
            f"(weights {store.spec.model['hash'][:12]} against {model_hash[:12]}); harvest again, "
            "or name the model that it came from."
        )
