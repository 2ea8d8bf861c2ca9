"""The evaluation against `sae_lens.evals`: equal where definitions are, different where not.

SAELens lives in an environment of its own (`make peer-sae-lens`), below the folder LOUPE_PEERS.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sae.coders import Coder, load_coder, save_coder
from sae.lm import LanguageModel
from sae.metrics import evaluate
from tests.metrics.conftest import END, HELD, TRAIN, build_store

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers" / "sae_lens_evals.py"
Found = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def peers() -> str:
    folder = os.environ.get("LOUPE_PEERS", "")
    if not folder:
        pytest.skip("set LOUPE_PEERS to the folder .venv-peers that `make peer-sae-lens` fills")
    return str(Path(folder).absolute() / "sae_lens" / "bin" / "python")


@pytest.fixture
def both(
    peers: str, trained: Coder, lm: LanguageModel, tmp_path: Path
) -> tuple[dict[str, float], Found]:
    """Ours and theirs, of one coder on rows in which only position 0 is a special token."""
    store = build_store(tmp_path / "a.zarr", lm, 10**9)
    tokens = store.tokens(TRAIN, TRAIN + HELD)
    assert not (tokens[:, 1:] == END).any()
    trained.metadata |= {
        "sae_lens_version": "6.54.12",
        "model_name": "random",
        "model_class_name": "HookedTransformer",
        "hook_head_index": None,
        "prepend_bos": True,
    }
    folder = save_coder(trained, tmp_path / "coder")
    lm.model.save_pretrained(tmp_path / "model")
    np.save(tmp_path / "tokens.npy", tokens)
    out = tmp_path / "out.json"
    given = [folder, tmp_path / "model", tmp_path / "tokens.npy", END, out]
    command = [peers, str(SCRIPT), *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    coder = load_coder(folder)
    ours = evaluate(coder, store, lm, tokens=10**6, loss_tokens=10**6, controls=())
    values = {name: float(entry["value"] or 0.0) for name, entry in ours["metrics"].items()}
    return values, json.loads(out.read_text())


def test_core_metrics_agree(both: tuple[dict[str, float], Found]) -> None:
    ours, theirs = both
    same = theirs["without_bos"]
    for name, other in {
        "ev": "explained_variance",
        "l0": "l0",
        "l1": "l1",
        "mse": "mse",
        "cosine": "cossim",
        "shrinkage": "l2_ratio",
        "gamma": "relative_reconstruction_bias",
    }.items():  # a store keeps half precision, and a near-tie may select another latent
        assert ours[name] == pytest.approx(same[other], rel=2e-3), name
    for name, other in {
        "ce_clean": "ce_loss_without_sae",
        "ce_spliced": "ce_loss_with_sae",
    }.items():
        assert ours[name] == pytest.approx(same[other], abs=1e-4), name
    everything = theirs["with_bos"]["explained_variance"]
    assert 1 - ours["fvu_with_position_0"] == pytest.approx(everything, abs=2e-3)


def test_and_differ_where_the_formulas_do(both: tuple[dict[str, float], Found]) -> None:
    """Their legacy EV is a mean of ratios, their ablation takes position 0 as well, and their KL
    counts the last position, whose next token nobody knows.
    """
    ours, theirs = both
    same = theirs["without_bos"]
    assert same["explained_variance_legacy"] != pytest.approx(ours["ev"], abs=1e-3)
    assert same["explained_variance_legacy"] == pytest.approx(ours["ev_legacy"], abs=2e-2)
    assert same["ce_loss_with_ablation"] != pytest.approx(ours["ce_ablated_zero"], abs=1e-3)
    assert same["kl_div_with_sae"] != pytest.approx(ours["kl"], rel=1e-6)
    assert same["kl_div_with_sae"] == pytest.approx(ours["kl"], rel=0.1)
