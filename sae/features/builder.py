"""Builds a feature index from a coder and a store, in bounded memory (torch).

Pass 1 encodes the chosen rows once and spills the codes in row order; pass 2 scatters them into
feature order. A killed build goes on from its last whole block and ends with the same files.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae import coders
from sae.base.errors import UserError
from sae.base.files import require_free_space, sha256_json, sha256_tree, write_array
from sae.coders import check_fit
from sae.features import layout
from sae.features.assemble import DecoderEffects, Progress, assemble, recover
from sae.features.effects import decoder_effects
from sae.features.selection import Selection, choose, documents_of
from sae.features.spill import Spill, read_progress
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
    before_replacing: Callable[[], object] = lambda: None,
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
        before_replacing: called when the new index is whole, before it takes the old one's place.

    Raises:
        UserError: coder, store and model do not belong together, or too little disk.
    """
    folder = Path(folder)
    site, target_site = check_fit(coder, store, lm)
    selection = choose(store, tokens)
    recover(folder)
    coder_hash = coder_hash or coders.coder_hash(coder)
    fingerprint = _fingerprint(coder_hash, store, site, selection, lm)
    partial = _prepare(layout.partial_folder(folder), fingerprint)
    _require_space(coder, selection, folder)
    with Spill(partial, coder.d_sae, fingerprint) as spill:
        encode(coder, store, site, selection, spill, lm.device, progress)
    sequences = [store.tokens(part.start, part.stop) for part in selection.parts]
    write_array(partial / layout.TOKENS, np.concatenate(sequences))
    meta = {
        "coder": name or folder.name,
        "coder_hash": coder_hash,
        "site": site,
        "target_site": target_site,
        "architecture": coder.architecture,
        "d_in": coder.d_in,
        "bos_id": int(lm.bos_id),
        **_text_facts(store, selection),
    }
    return assemble(
        partial,
        folder,
        spill.codes(),
        _effects(partial, coder, lm, target_site, progress),
        vocabulary_of(lm.tokenizer, lm.vocab_size),
        documents_of(store, selection),
        meta,
        progress,
        before_replacing,
    )


def _fingerprint(
    coder_hash: str, store: "ActivationStore", site: str, selection: Selection, lm: "LanguageModel"
) -> str:
    """Of all that decides an index: a build goes on with nothing else than its own beginning."""
    return sha256_json(
        {
            "coder": coder_hash,
            "store": [store.attributes["model"], store.attributes["corpus"]],
            "site": site,
            "rows": selection.rows,
            "lm": lm.hash,
            "code": _code_hash(),
        }
    )


def _effects(
    partial: Path, coder: "Coder", lm: "LanguageModel", site: str, progress: Progress | None
) -> DecoderEffects:
    """From the partial folder, where a killed build left them whole; else computed, and kept."""
    path = partial / _EFFECTS
    try:
        return DecoderEffects.load(path)
    except UserError:
        decoder_effects(coder, lm, site, progress).save(path)
        return DecoderEffects.load(path)


def _text_facts(store: "ActivationStore", selection: Selection) -> dict[str, Any]:
    """What `index.json` says of the indexed text and of the model that read it."""
    model, corpus = store.attributes["model"], store.attributes["corpus"]
    return {
        "model": model["name"],
        "model_hash": model["hash"],
        "corpus": corpus["description"],
        "corpus_hash": corpus["hash"],
        "rows": selection.rows,
        "splits": selection.splits,
    }


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


def _code_hash() -> str:
    """Of `sae.features`: what one version began, another must not finish."""
    return sha256_tree(Path(__file__).parent, "*.py")


def _prepare(partial: Path, fingerprint: str) -> Path:
    """The partial folder: as it is if it belongs to this very build, else empty."""
    if partial.exists() and read_progress(partial, fingerprint) is None:
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    return partial


def _require_space(coder: "Coder", selection: Selection, folder: Path) -> None:
    """Refuses early what the disk cannot hold; of coders without a fixed L0 a guess, 64."""
    firings = selection.sequences * (selection.context - 1) * int(getattr(coder, "k", 64) or 64)
    per_firing = 2 * layout.features_dtype(coder.d_sae).itemsize + 4 + 2 + 2
    require_free_space(folder.parent, firings * per_firing, "The feature index")
