"""Every architecture goes the whole way through the same commands, on a tiny model."""

import json
from pathlib import Path

import h5py
import pytest

from sae.coders import load_coder
from tests.conftest import tiny_settings
from tests.pipelines.test_run import sae

TWO = "site: blocks.0.hook_resid_mid, target_site: blocks.0.mlp.hook_post"
CODERS = [
    "{name: ista, architecture: ista, expansion: 4, steps: 3, l1: 2}",
    "{name: pursuit, architecture: matching_pursuit, expansion: 4, max_iterations: 4}",
    "{name: switch, architecture: switch, expansion: 4, experts: 4, k: 4}",
    f"{{name: skip, architecture: skip_transcoder, expansion: 4, k: 4, {TWO}}}",
    "{name: plain, architecture: transcoder, expansion: 4, k: 4,"
    " site: blocks.0.hook_resid_mid, target_site: blocks.0.hook_mlp_out}",
]
SITES = "harvest.sites=[blocks.0.hook_resid_mid, blocks.0.mlp.hook_post, blocks.0.hook_mlp_out]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = tiny_settings(folder, tiny_folder, tiny_corpus)
    kept = [s for s in settings if not s.startswith(("train.coders", "harvest.sites"))]
    sae("run", *kept, SITES, f"train.coders=[{', '.join(CODERS)}]")
    return folder


NAMES = ("ista", "pursuit", "switch", "skip", "plain")


@pytest.mark.parametrize("name", NAMES)
def test_each_is_trained_evaluated_indexed_and_exported(run: Path, name: str) -> None:
    evaluation = json.loads((run / "evaluation" / f"{name}.json").read_text())
    assert all(test["passed"] for test in evaluation["self_tests"].values())
    assert evaluation["metrics"]["ev"]["value"] > 0
    coder = load_coder(run / "coders" / name)
    with h5py.File(run / "export" / f"{name}.h5") as file:
        assert file["encoder"].shape == (coder.d_sae, coder.d_in)  # pyright: ignore
        assert file["decoder"].shape == (coder.d_sae, coder.d_out)  # pyright: ignore
    assert "sound" in sae("verify", str(run / "features" / name))


def test_a_transcoder_says_what_it_predicts(run: Path) -> None:
    assert "blocks.0.mlp.hook_post" in sae("info", str(run / "coders/skip"))
    meta = json.loads((run / "features/skip/index.json").read_text())
    assert (meta["site"], meta["target_site"]) == (
        "blocks.0.hook_resid_mid",
        "blocks.0.mlp.hook_post",
    )
    page = (run / "evaluation/skip.html").read_text()
    assert "linear map" in page
    assert "predicting <code>blocks.0.mlp.hook_post</code>" in page


@pytest.mark.parametrize(
    ("coder", "message"),
    [
        ("{name: a, architecture: transcoder, k: 4}", "name it as `target_site`"),
        (f"{{name: a, architecture: topk, k: 4, {TWO}}}", "only transcoders have a target site"),
        (
            "{name: a, architecture: transcoder, target_site: blocks.1.hook_mlp_out}",
            "predicts `blocks.1.hook_mlp_out`, which is not in `harvest.sites`",
        ),
        ("{name: a, architecture: switch, width: 64, experts: 5}", "must divide"),
    ],
)
def test_a_mistake_is_one_sentence(run: Path, coder: str, message: str) -> None:
    assert message in sae("train", str(run), f"train.coders=[{coder}]", code=2)


def test_an_option_that_an_architecture_lacks_is_told_before_the_harvest(
    tmp_path: Path, tiny_folder: Path, tiny_corpus: Path
) -> None:
    settings = tiny_settings(tmp_path / "run", tiny_folder, tiny_corpus)
    kept = [s for s in settings if not s.startswith("train.coders")]
    output = sae("run", *kept, "train.coders=[{name: a, architecture: relu, k: 4}]", code=2)
    assert "`relu` has no hyperparameter `k`" in output
    assert not (tmp_path / "run").exists()
