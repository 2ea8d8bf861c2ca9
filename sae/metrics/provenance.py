"""What an evaluation is of, and whether coder, store and model belong together at all."""

import hashlib
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save

import sae
from sae.base.errors import UserError, nearest
from sae.coders import Coder
from sae.metrics.bootstrap import LEVEL, RESAMPLES
from sae.metrics.controls import CONTROLS
from sae.metrics.sample import Sample
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel


def special_ids(lm: "LanguageModel", store: ActivationStore) -> frozenset[int]:
    """Ids of BOS, EOS and PAD, which are never scored."""
    tokenizer = lm.tokenizer
    ids = (
        store.attributes.get("bos"),
        lm.bos_id,
        getattr(tokenizer, "eos_token_id", None),
        getattr(tokenizer, "pad_token_id", None),
    )
    return frozenset(int(i) for i in ids if i is not None)


def check_fit(
    coder: Coder, store: ActivationStore, lm: "LanguageModel", controls: Sequence[str]
) -> tuple[str, str]:
    """The site that the coder predicts and the one that it reads (for most, the same).

    Makes sure that coder, store and model belong together.
    """
    site, target = coder.site, coder.target_site
    if not isinstance(site, str) or not isinstance(target, str):
        raise UserError("The coder's metadata has no `hook_name`; it must name the coder's site.")
    for does, name, expected in (
        ("reads", site, coder.d_in),
        ("predicts", target, coder.d_out),
    ):
        width = store.width.get(name)
        if width is None:
            raise UserError(
                f"The coder {does} `{name}`, but the store at {store.path} has only "
                f"{', '.join(store.sites)}; harvest that site." + nearest(name, store.sites)
            )
        if width != expected:
            raise UserError(
                f"The coder {does} {expected} values per token, but `{name}` in the store at "
                f"{store.path} has {width}: they are of different models."
            )
    stored = store.attributes.get("model", {})
    if stored.get("hash") not in (None, lm.hash):
        raise UserError(
            f"The store at {store.path} was harvested from another model "
            f"(`{stored.get('name')}`) than `{lm.name}`; load the model that it names."
        )
    for name in controls:
        if name not in CONTROLS:
            raise UserError(
                f"Unknown control `{name}`; it must be one of {', '.join(CONTROLS)}."
                + nearest(name, CONTROLS)
            )
    return target, site


def describe_coder(coder: Coder, given: str | None) -> dict[str, Any]:
    saved = {name: tensor.cpu() for name, tensor in coder.saved_tensors().items()}
    return {
        "hash": given or hashlib.sha256(save(saved)).hexdigest(),
        "architecture": coder.architecture,
        "site": coder.site,
        "target_site": coder.target_site,
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
    }


def describe_store(store: ActivationStore, split: str) -> dict[str, Any]:
    keys = ("model", "tokenizer_hash", "corpus", "context", "sequences", "harvested_as")
    kept = {key: store.attributes[key] for key in keys if key in store.attributes}
    return {"path": str(store.path), "split": split, **kept}


def describe_interval(held: Sample, heard: Sample) -> dict[str, Any]:
    """How the intervals were made; `units` for activations, `loss_units` for losses."""
    return {
        "level": LEVEL,
        "resamples": RESAMPLES,
        "over": held.over,
        "units": held.units,
        "loss_over": heard.over,
        "loss_units": heard.units,
    }


def describe_run(device: torch.device, started: float) -> dict[str, Any]:
    return {
        "device": str(device),
        "versions": {
            "loupe": sae.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 2),
        "command": " ".join(sys.argv),
    }
