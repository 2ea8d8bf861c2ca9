"""Reading a typed text with the model and the coder. The only module that imports torch, and it
does so when a text is read, never before: pages that need no model stay light.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import streamlit as st

from app.data import Here
from app.payload import Percentiles
from app.run_folder import STARTED_IN
from sae.base.errors import UserError
from sae.features import FeatureIndex

if TYPE_CHECKING:
    from sae.coders import Coder
    from sae.lm import LanguageModel

MOST_CHARACTERS = 20_000
RANKS = {
    "activation": "Activation",
    "percentile": "Percentile",
    "surprise": "Surprise",
}
"""What features can be ranked by; see `Firings.by`."""


class Pair(NamedTuple):
    """The model and the coder, with the lock that lets one session at a time use them."""

    lm: "LanguageModel"
    coder: "Coder"
    lock: threading.Lock


@dataclass(frozen=True)
class Reading:
    """A text as the coder sees it. Position 0 is BOS, which is no data: nothing fires there.

    Attributes:
        token_ids: (T,) int64, BOS first.
        error: float32; the share of each token's squared norm that the reconstruction misses,
            norm(x - x_hat)^2 / norm(x)^2; 0 at position 0.
        positions, features, acts: (N,) the firings, in order of position.
        cut: the text was longer than the model's context.
    """

    token_ids: np.ndarray
    error: np.ndarray
    positions: np.ndarray
    features: np.ndarray
    acts: np.ndarray
    cut: bool

    def acts_of(self, feature: int) -> np.ndarray:
        """(T,) activations of one feature."""
        acts_T = np.zeros(len(self.token_ids), np.float32)
        own = self.features == feature
        acts_T[self.positions[own]] = self.acts[own]
        return acts_T


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def _pair(model: str, folder: str, coder_hash: str) -> Pair:
    import sae.coders as coders

    coder = coders.load_coder(folder)
    if coder_hash not in map(coders.coder_hash, (folder, coder)):
        raise UserError(
            f"The coder in {folder} is not the one that this index was made with; make the index "
            "again with `sae index`."
        )
    lm = _model(model)
    return Pair(lm, coder.to(lm.device), threading.Lock())


def _model(name: str) -> "LanguageModel":
    """The model that an index names: a folder is relative to where the browser was started."""
    from huggingface_hub import constants

    from sae.lm import load_lm
    from sae.lm.assets import POCKET, local_model_folder

    folder = Path(os.environ.get(STARTED_IN, ""), name)
    if name != POCKET and folder.is_dir():
        name = str(folder)
    try:
        return load_lm(name, dtype="float32")
    except UserError as error:
        missing = isinstance(error.__cause__, OSError) and local_model_folder(name) is None
        if not (missing and constants.HF_HUB_OFFLINE):
            raise
        raise UserError(
            f"The model `{name}` is not on this machine, and the browser downloads none; download "
            f'it once in Python with `sae.load_lm("{name}")`, or start the browser with '
            "HF_HUB_OFFLINE=0."
        ) from error


def load(here: Here) -> Pair:
    """Model and coder of this index.

    Raises:
        UserError: one of them cannot be loaded, or is not the one that the index was made with.
    """
    meta, folder = here.index.meta, here.run.coder(here.coder)
    if not (folder / "cfg.json").is_file():
        raise UserError(
            f"The coder's weights are not in {folder}; make them with "
            f"`{here.run.command('train')}`."
        )
    pair = _pair(str(meta["model"]), str(folder), str(meta["coder_hash"]))
    wanted = meta.get("model_hash")
    if wanted and pair.lm.hash != wanted:
        raise UserError(
            f"The model `{meta['model']}` has changed since this index was made; make it again "
            f"with `{here.run.command('index')}`."
        )
    return pair


def read(here: Here, text: str) -> Reading:
    """Reads `text`; the same text is read once."""
    return _read(here, *here.stamps[:2], text[:MOST_CHARACTERS])


@st.cache_data(max_entries=64, show_spinner=False, hash_funcs={Here: lambda here: ""})
def _read(here: Here, folder: str, stamp: int, text: str) -> Reading:
    import torch

    pair = load(here)
    lm, coder, site = pair.lm, pair.coder, str(here.index.meta["site"])
    text_ids = lm.tokenizer.encode(text, add_special_tokens=False, verbose=False)
    kept = [lm.bos_id, *text_ids][: lm.context]
    with pair.lock, torch.inference_mode():
        # One pass at a time: the model's hooks are its own, not a session's.
        target = coder.target_site or site
        found = lm.capture(torch.tensor([kept]), list({site, target}))
        x_TD, y_TD = (found[name][0, 1:].float() for name in (site, target))
        codes = coder.encode(x_TD)
        missed_T = (y_TD - coder.decode(codes, x_TD)).square().sum(1) / y_TD.square().sum(1)
        acts_N, indices_N, offsets = (part.cpu().numpy() for part in codes.ragged())
    return Reading(
        token_ids=np.array(kept, np.int64),
        error=np.concatenate([[0.0], missed_T.cpu().numpy()]).astype(np.float32),
        positions=np.repeat(np.arange(1, len(kept)), np.diff(offsets)),
        features=indices_N.astype(np.int64),
        acts=acts_N.astype(np.float32),
        cut=len(text_ids) + 1 > lm.context,
    )


@dataclass(frozen=True)
class Firings:
    """The firings of a reading that are looked at, with all that they are ranked by; (N,) each."""

    positions: np.ndarray
    features: np.ndarray
    acts: np.ndarray
    percentile: np.ndarray
    density: np.ndarray

    def by(self, rank: str) -> np.ndarray:
        """ "activation"; "percentile", the share of the feature's nonzero activations in the index
        that are not larger; or "surprise", activation over density."""
        if rank == "surprise":
            return self.acts / self.density
        return self.percentile if rank == "percentile" else self.acts

    def top_features(self, rank: str, n: int) -> np.ndarray:
        """The `n` features with the largest value anywhere, largest first."""
        values = self.by(rank)
        order = np.argsort(-values, kind="stable")
        features, first = np.unique(self.features[order], return_index=True)
        return features[np.argsort(first)][:n]

    def at(self, position: int, rank: str) -> np.ndarray:
        """Offsets of the firings at a position, largest value first."""
        found = np.flatnonzero(self.positions == position)
        return found[np.argsort(-self.by(rank)[found], kind="stable")]


def firings(index: FeatureIndex, reading: Reading, densest: float = 1.0) -> Firings:
    """The firings of features with a density of at most `densest` in the index.

    A feature that never fires there counts as one with a single firing.
    """
    density_F = index.table["density"].to_numpy()
    kept = density_F[reading.features] <= densest
    positions, features, acts = (
        part[kept] for part in (reading.positions, reading.features, reading.acts)
    )
    percentile = np.zeros(len(acts))
    order = np.argsort(features, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(features[order])) + 1):
        if len(own):
            ranks = Percentiles(index.slices(int(features[own[0]]))[1])
            percentile[own] = ranks(acts[own])
    least = 1 / max(index.tokens_indexed, 1)
    density = np.maximum(density_F[features], least)
    return Firings(positions, features, acts, percentile, density)
