"""The evaluation against `sae_lens.evals`: equal where definitions are, different where not.

SAELens lives in an environment of its own (`make peer-sae-lens`), below the folder LOUPE_PEERS.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from sae.coders import Coder, load_coder, save_coder
from sae.lm import LanguageModel
from sae.metrics import evaluate
from sae.metrics.continuation import Continuation
from tests.metrics.conftest import END, HELD, SITE, TRAIN, build_store

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers" / "sae_lens_evals.py"
Values = dict[str, float]


@dataclass(frozen=True)
class Both:
    """Numbers of one coder: `ours`; `theirs` without BOS and with it; `as_theirs`, see there."""

    ours: Values
    theirs: dict[str, Values]
    as_theirs: Values


@pytest.fixture(scope="module")
def peers() -> str:
    folder = os.environ.get("LOUPE_PEERS", "")
    if not folder:
        pytest.skip("set LOUPE_PEERS to the folder .venv-peers that `make peer-sae-lens` fills")
    return str(Path(folder).absolute() / "sae_lens" / "bin" / "python")


@torch.inference_mode()
def as_theirs(coder: Coder, lm: LanguageModel, tokens: np.ndarray) -> Values:
    """Their definitions in our words: an ablation that takes position 0 as well, and a KL that
    counts the last position, whose next token nobody knows (`kl`: that without it).
    """
    tokens_ST = torch.from_numpy(tokens.astype(np.int64))
    rest = Continuation(lm, SITE)
    assert rest.replaces_everything
    x_STD, unembed_DV = rest.start(tokens_ST), lm.model.lm_head.weight.T
    clean, spliced, ablated = (
        (rest.finish(tokens_ST, *given) @ unembed_DV).double().log_softmax(-1)[:, 1:]
        for given in ((x_STD, None), (x_STD, coder), (torch.zeros_like(x_STD), None))
    )
    kl, kl_ablated = ((clean.exp() * (clean - q)).sum(-1) for q in (spliced, ablated))
    next_ST1 = tokens_ST[:, 2:, None]
    return {
        "ce_loss_with_ablation": -float(ablated[:, :-1].gather(2, next_ST1).mean()),
        "kl_div_with_sae": float(kl.mean()),
        "kl_div_with_ablation": float(kl_ablated.mean()),
        "kl": float(kl[:, :-1].mean()),
    }


@pytest.fixture
def both(peers: str, trained: Coder, lm: LanguageModel, tmp_path: Path) -> Both:
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
    return Both(values, json.loads(out.read_text()), as_theirs(coder, lm, tokens))


def test_core_metrics_agree(both: Both) -> None:
    ours, same = both.ours, both.theirs["without_bos"]
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
    everything = both.theirs["with_bos"]["explained_variance"]
    assert 1 - ours["fvu_with_position_0"] == pytest.approx(everything, abs=2e-3)


def test_and_differ_where_the_formulas_do(both: Both) -> None:
    """Their legacy EV is a mean of ratios, their ablation takes position 0 as well, and their KL
    counts the last position; nothing else differs.
    """
    ours, same, known = both.ours, both.theirs["without_bos"], both.as_theirs
    assert same["explained_variance_legacy"] != pytest.approx(ours["ev"], abs=1e-3)
    assert same["explained_variance_legacy"] == pytest.approx(ours["ev_legacy"], abs=2e-2)
    for name in ("ce_loss_with_ablation", "kl_div_with_sae", "kl_div_with_ablation"):
        assert same[name] == pytest.approx(known[name], rel=1e-4), name
    assert ours["kl"] == pytest.approx(known["kl"], rel=1e-4)
    assert same["kl_div_with_sae"] != pytest.approx(ours["kl"], rel=1e-3)
    assert same["ce_loss_with_ablation"] != pytest.approx(ours["ce_ablated_zero"], abs=1e-3)


def test_scores_agree_but_for_what_is_ablated(both: Both) -> None:
    """Their scores are our shares recovered, of a harsher ablation and of one more position."""
    ours, same, known = both.ours, both.theirs["without_bos"], both.as_theirs
    worst = known["ce_loss_with_ablation"]
    share = (worst - ours["ce_spliced"]) / (worst - ours["ce_clean"])
    assert same["ce_loss_score"] == pytest.approx(share, abs=1e-4)
    assert same["ce_loss_score"] != pytest.approx(ours["ce_recovered_zero"], abs=1e-3)
    share = 1 - known["kl_div_with_sae"] / known["kl_div_with_ablation"]
    assert same["kl_div_score"] == pytest.approx(share, abs=1e-4)
    assert same["kl_div_score"] != pytest.approx(ours["kl_recovered_zero"], abs=1e-3)
