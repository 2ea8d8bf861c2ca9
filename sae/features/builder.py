"""Builds a feature index from a coder and a store, in bounded memory (torch).

Pass 1 encodes the chosen rows once and spills the codes in row order; pass 2 scatters them into
feature order. A killed build goes on from its last whole block and ends with the same files.
"""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save

from sae.base.errors import UserError
from sae.base.files import read_json, require_free_space, sha256_json
from sae.features import layout
from sae.features.assemble import DecoderEffects, Progress, assemble, recover
from sae.features.effects import decoder_effects
from sae.features.selection import Selection, choose, documents_of
from sae.features.spill import PROGRESS, Spill
from sae.features.tokenizer_bytes import vocabulary_of

if TYPE_CHECKING:
    from sae.coders import Coder
    from sae.lm import LanguageModel
    from sae.store import ActivationStore

TOKENS = 2_000_000
BLOCK_ROWS = 2**16
"""Rows between two points from which a killed build can go on."""
BATCH_BYTES = 2**27
"""Of pre-activations (B, F) in float32 at a time."""
_EFFECTS = "effects.npz"


def build_index(
    coder: "Coder",
    store: "ActivationStore",
    folder: Path | str,
    *,
    lm: "LanguageModel",
    tokens: int = TOKENS,
    progress: Progress | None = None,
    name: str | None = None,
    coder_hash: str | None = None,
) -> Path:
    """Encodes a prefix of the store with `coder` and writes the index into `folder`.

    Args:
        coder: takes raw activations of the site in `coder.metadata["hook_name"]`.
        folder: is replaced when the new index is whole; the notes in it stay.
        lm: the model that the store was harvested from; its unembedding gives the logit effects.
        tokens: budget; 0.2 of it goes to held-out text, on which labels are scored.
        progress: called as progress(what, done, total).
        name: of the coder; default the folder's name.
        coder_hash: sha256 of the coder's weights file (`sae.coders.coder_hash`); default that
            of the file that Loupe itself writes for these weights.

    Raises:
        UserError: the coder's site is not in the store, widths do not agree, too little disk.
    """
    folder = Path(folder)
    site = _site(coder, store)
    target_site = coder.target_site or site
    selection = choose(store, tokens)
    recover(folder)
    coder_hash = coder_hash or weights_hash(coder)
    what = {
        "coder": coder_hash,
        "store": [store.attributes["model"], store.attributes["corpus"]],
        "site": site,
        "rows": selection.rows,
    }
    partial = _prepare(layout.partial_folder(folder), sha256_json(what))
    _require_space(coder, selection, folder)
    with Spill(partial, coder.d_sae, sha256_json(what)) as spill:
        encode(coder, store, site, selection, spill, lm.device, progress)
    codes = spill.codes()
    effects_path = partial / _EFFECTS
    if not effects_path.exists():
        decoder_effects(coder, lm, target_site, progress).save(effects_path.with_suffix(".tmp"))
        effects_path.with_suffix(".tmp").replace(effects_path)
    sequences = [store.tokens(part.start, part.stop) for part in selection.parts]
    np.save(partial / layout.TOKENS, np.concatenate(sequences))
    corpus = store.attributes["corpus"]
    meta = {
        "coder": name or folder.name,
        "coder_hash": coder_hash,
        "site": site,
        "target_site": target_site,
        "model": store.attributes["model"]["name"],
        "model_hash": store.attributes["model"]["hash"],
        "architecture": coder.architecture,
        "corpus": corpus["description"],
        "corpus_hash": corpus["hash"],
        "d_in": coder.d_in,
        "rows": selection.rows,
        "bos_id": int(lm.bos_id),
        "splits": selection.splits,
    }
    return assemble(
        partial,
        folder,
        codes,
        DecoderEffects.load(effects_path),
        vocabulary_of(lm.tokenizer, lm.vocab_size),
        documents_of(store, selection),
        meta,
        progress,
    )


@torch.no_grad()
def encode(
    coder: "Coder",
    store: "ActivationStore",
    site: str,
    selection: Selection,
    spill: Spill,
    device: torch.device | str,
    progress: Progress | None = None,
) -> None:
    """Pass 1: the rows that `spill` does not hold yet, block by block, in float32."""
    context = selection.context
    block = max(1, BLOCK_ROWS // context)
    batch = int(np.clip(BATCH_BYTES // (4 * coder.d_sae), 64, 8192))
    was_on = coder.W_dec_FD.device
    coder.to(device)
    for start in range(spill.rows // context, selection.sequences, block):
        stop = min(start + block, selection.sequences)
        parts = selection.store_sequences(start, stop)
        x_RD = np.concatenate(
            [store.read(site, part.start * context, part.stop * context) for part in parts]
        )
        data_R = np.arange(len(x_RD)) % context > 0  # position 0 is not data
        counts_R = np.zeros(len(x_RD), np.uint32)
        counts_R[data_R], features_N, acts_N = _codes(coder, x_RD[data_R], batch, device)
        spill.append(counts_R, features_N, acts_N)
        if progress is not None:
            progress("encoding", stop * (context - 1), selection.sequences * (context - 1))
    coder.to(was_on)


def _codes(coder: "Coder", x_RD: np.ndarray, batch: int, device: torch.device | str):
    """(firings per row, features, activations) in row order."""
    counts, features, acts = [], [], []
    for start in range(0, len(x_RD), batch):
        x_BD = torch.from_numpy(x_RD[start : start + batch]).to(device).float()
        acts_N, indices_N, offsets_B1 = coder.encode(x_BD).ragged()
        fires_N = acts_N > 0
        if not bool(fires_N.all()):
            raise UserError(
                f"The coder `{coder.architecture}` gives activations under 0 or NaN; an index "
                "holds positive ones: check the coder with `sae verify`."
            )
        counts.append(offsets_B1.diff().cpu().numpy())
        features.append(indices_N.cpu().numpy())
        acts.append(acts_N.float().cpu().numpy())
    return np.concatenate(counts), np.concatenate(features), np.concatenate(acts)


def weights_hash(coder: "Coder") -> str:
    """sha256 of the weights file that `save_coder` writes for this coder."""
    tensors = {name: tensor.cpu() for name, tensor in coder.saved_tensors().items()}
    return hashlib.sha256(save(tensors)).hexdigest()


def _site(coder: "Coder", store: "ActivationStore") -> str:
    site = coder.site
    if site is None or site not in store.sites:
        raise UserError(
            f"The coder belongs to `{site}`, but {store.path} holds {', '.join(store.sites)}; "
            "harvest that site or choose another coder."
        )
    if coder.d_in != store.width[site]:
        raise UserError(
            f"The coder takes activations of width {coder.d_in}, `{site}` in {store.path} has "
            f"{store.width[site]}; choose the coder that was trained on this store's model."
        )
    return site


def _prepare(partial: Path, fingerprint: str) -> Path:
    """The partial folder: as it is if it belongs to this very build, else empty."""
    progress = partial / PROGRESS
    if partial.exists() and not (
        progress.exists() and read_json(progress)["fingerprint"] == fingerprint
    ):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    return partial


def _require_space(coder: "Coder", selection: Selection, folder: Path) -> None:
    """Refuses early what the disk cannot hold; of coders without a fixed L0 a guess, 64."""
    firings = selection.sequences * (selection.context - 1) * int(getattr(coder, "k", 64) or 64)
    per_firing = 2 * layout.features_dtype(coder.d_sae).itemsize + 4 + 2 + 2
    require_free_space(folder.parent, firings * per_firing, "The feature index")
