"""What an evaluation is of, and how it was made."""

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sae
from sae.base.errors import UserError, nearest
from sae.coders import Coder, coder_hash
from sae.metrics.bootstrap import LEVEL, MIN_UNITS, RESAMPLES
from sae.metrics.controls import NAMES
from sae.store import ActivationStore

if TYPE_CHECKING:
    from sae.lm import LanguageModel


def special_ids(lm: "LanguageModel", store: ActivationStore) -> frozenset[int]:
    """Ids of BOS, EOS and PAD, which are never scored."""
    return special_tokens(lm, store.attributes.get("bos"))


def special_tokens(lm: "LanguageModel", bos: int | None) -> frozenset[int]:
    """The same of a text whose rows begin with `bos`."""
    tokenizer = lm.tokenizer
    ids = (
        bos,
        lm.bos_id,
        getattr(tokenizer, "eos_token_id", None),
        getattr(tokenizer, "pad_token_id", None),
    )
    return frozenset(int(i) for i in ids if i is not None)


def check_controls(controls: Sequence[str]) -> None:
    for name in controls:
        if name not in NAMES:
            raise UserError(
                f"Unknown control `{name}`; it must be one of {', '.join(NAMES)}."
                + nearest(name, NAMES)
            )


def describe_coder(coder: Coder, given: str | None) -> dict[str, Any]:
    return {
        "hash": given or coder_hash(coder),
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


def describe_interval(resampled: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    """How intervals were made: for each kind of number (a prefix of the keys), what was resampled,
    and how many of these hold tokens of that kind.
    """
    found: dict[str, Any] = {"level": LEVEL, "resamples": RESAMPLES, "least_units": MIN_UNITS}
    for prefix, (over, units) in resampled.items():
        found |= {f"{prefix}over": over, f"{prefix}units": units}
    return found


def describe_report(
    coder: Coder,
    coder_hash: str,
    lm: "LanguageModel",
    started: float,
    seed: int,
    store: ActivationStore | None = None,
) -> dict[str, Any]:
    """Of a report that is no evaluation: the same keys. `store` where its activations were read."""
    return {
        "coder": describe_coder(coder, coder_hash),
        "model": {"name": lm.name, "hash": lm.hash},
        **({"store": describe_store(store, "heldout")} if store is not None else {}),
        "seed": seed,
        **describe_run(coder.W_dec_FD.device, started),
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
