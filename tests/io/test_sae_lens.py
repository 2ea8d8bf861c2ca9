"""SAELens's own `SAE.load_from_disk` opens our coder folders and computes the same.

It lives in an environment of its own (`make peer-sae-lens`), below the folder LOUPE_PEERS.
"""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from sae.coders import load_coder, save_coder
from sae.coders.matching_pursuit import MatchingPursuit
from sae.coders.registry import TRAINABLE
from tests.contracts.test_coders import make_trained

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "peers" / "sae_lens_codes.py"
FORMATS = ROOT / "docs" / "formats.md"
KNOWN = {  # what SAELens has a class for, and that class
    "topk": "TopKSAE",
    "batchtopk": "JumpReLUSAE",
    "matryoshka": "JumpReLUSAE",
    "jumprelu": "JumpReLUSAE",
    "gated": "GatedSAE",
    "relu": "StandardSAE",
    "relu_unconstrained": "StandardSAE",
    "matching_pursuit": "MatchingPursuitSAE",
    "transcoder": "JumpReLUTranscoder",
    "skip_transcoder": "JumpReLUSkipTranscoder",
    "relu_transcoder": "Transcoder",
    "relu_skip_transcoder": "SkipTranscoder",
}
TIE = 1e-6  # relative gap between the k-th and the next value below which a choice is arbitrary


@pytest.fixture(scope="module")
def peers() -> str:
    folder = os.environ.get("LOUPE_PEERS", "")
    if not folder:
        pytest.skip("set LOUPE_PEERS to the folder .venv-peers that `make peer-sae-lens` fills")
    return str(Path(folder).absolute() / "sae_lens" / "bin" / "python")


def compare(peers: str, folder: Path, x_BD: torch.Tensor, work: Path) -> tuple[int, float]:
    """(rows with a tie, largest relative difference over the others)."""
    np.save(work / "x.npy", x_BD.numpy())
    command = [peers, str(SCRIPT), str(folder), str(work / "x.npy"), str(work / "out.npz")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    coder = load_coder(folder)
    codes = coder.encode(x_BD)
    ours = codes.dense()
    with np.load(work / "out.npz") as found:
        theirs, x_hat = torch.from_numpy(found["codes"]), torch.from_numpy(found["x_hat"])
    pre = (x_BD - coder.input_centre()) @ coder.W_enc_FD.T + coder.b_enc_F
    k = getattr(coder, "k", None)
    tied = torch.zeros(len(x_BD), dtype=torch.bool)
    if isinstance(coder, MatchingPursuit):
        tied = pursuit_ties(coder, x_BD)
    elif k is not None:
        values = pre.topk(k + 1, dim=1).values
        tied = (values[:, -2] - values[:, -1]).abs() <= TIE * values[:, 0].abs()
    elif coder.architecture == "gated":  # an open gate lets a magnitude through, however large
        tied = (pre.abs() <= TIE * pre.abs().amax(1, True)).any(1)
    elif hasattr(coder, "threshold_F"):
        tied = ((pre - coder.threshold_F).abs() <= TIE * pre.abs().amax(1, True)).any(1)
    differences = [
        ((a - b)[~tied].abs().max() / b.abs().max()).item()
        for a, b in ((ours, theirs), (coder.decode(codes, x_BD), x_hat))
    ]
    return int(tied.sum()), max(differences)


def pursuit_ties(coder: MatchingPursuit, x_BD: torch.Tensor) -> torch.Tensor:
    """(B,) rows in which some step's best and second-best latent are within a rounding error."""
    left_BD = x_BD - coder.b_dec_D
    tied = torch.zeros(len(x_BD), dtype=torch.bool)
    for _ in range(coder.max_iterations):
        best = (left_BD @ coder.W_dec_FD.T).topk(2, dim=1)
        gap = best.values[:, 0] - best.values[:, 1]
        tied |= gap <= 10 * TIE * x_BD.norm(dim=1)
        left_BD = left_BD - best.values[:, :1].relu() * coder.W_dec_FD[best.indices[:, 0]]
    return tied


def test_the_formats_say_of_each_whether_it_opens_there() -> None:
    """Of every architecture of the registry: "yes" for those that are compared here, or "no"."""
    said = {}
    for line in FORMATS.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 4 and cells[3] in ("yes", "no"):
            said |= dict.fromkeys(re.findall(r"`(\w+)`", cells[1]), cells[3] == "yes")
    assert said == {name: name in KNOWN for name in TRAINABLE}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", KNOWN)
def test_sae_lens_agrees(architecture: str, peers: str, tmp_path: Path) -> None:
    coder, x_BD = make_trained(architecture, scale=0.3)
    coder.metadata = {"hook_name": "blocks.0.hook_resid_post", "model_name": "loupe-test"}
    save_coder(coder.folded(0.3), tmp_path / "coder")
    ties, difference = compare(peers, tmp_path / "coder", x_BD, tmp_path)
    print(f"{architecture}: {ties} tied rows of {len(x_BD)}, difference {difference:.1e}")
    assert difference < 1e-5
    with np.load(tmp_path / "out.npz") as found:
        assert str(found["kind"]) == KNOWN[architecture]


@pytest.mark.slow
def test_sae_lens_agrees_on_a_run(peers: str, tmp_path: Path, request) -> None:
    """On coders of a real run, with real activations: `--run runs/demo`."""
    run: Path | None = request.config.getoption("--run")
    if run is None:
        pytest.skip("needs --run FOLDER, a finished run")
    from sae.store import ActivationStore

    store = ActivationStore.open(run / "activations.zarr")
    rows = store.rows_of("heldout")
    for folder in sorted((run / "coders").iterdir()):
        if not (folder / "cfg.json").exists():
            continue
        site = load_coder(folder).metadata["hook_name"]
        x = store.read(site, rows.start, rows.start + 4096).astype(np.float32)
        x_BD = torch.from_numpy(x[np.arange(4096) % store.context != 0])
        ties, difference = compare(peers, folder, x_BD, tmp_path)
        print(f"{folder.name}: {ties} tied rows of {len(x_BD)}, difference {difference:.1e}")
        assert difference < 1e-5
