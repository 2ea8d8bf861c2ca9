"""Every architecture that trains goes the whole way through the same commands, on a tiny model."""

import json
from itertools import count
from pathlib import Path

import h5py
import pytest

from app.run_folder import ENVIRONMENT
from pipelines.recipes import RECIPES
from sae.coders import load_coder
from sae.coders.registry import TRAINABLE, TWO_SITES
from sae.features import FeatureIndex
from sae.training import run as training_run
from tests.app.pages import open_page, view
from tests.conftest import tiny_settings
from tests.contracts.test_coders import OPTIONS
from tests.pipelines.command import sae

TWO = {"site": "blocks.0.hook_resid_mid", "target_site": "blocks.0.mlp.hook_post"}
SITES = ["blocks.0.hook_resid_mid", "blocks.0.mlp.hook_post"]
SETTINGS = ["evaluate.tokens=1000", "evaluate.loss_tokens=1000", "train.checkpoint_seconds=0.2"]
KILLED_AT = 40  # of 64 steps


pytestmark = pytest.mark.slow


class Killed(BaseException):
    """As `kill -9`: nobody catches it, nothing is saved on the way out."""


NAMES = [*TRAINABLE, *RECIPES]


def coder_settings(architecture: str) -> dict[str, object]:
    options = {k: v for k, v in OPTIONS.get(architecture, {}).items() if k != "d_out"}
    sites = TWO if architecture in TWO_SITES else {}
    return {"name": architecture, "architecture": architecture, "width": 64, **options, **sites}


def settings_of(folder: Path, model: Path, corpus: Path) -> list[str]:
    """Of a run of all architectures and recipes; a new one of the registry is among them."""
    settings = tiny_settings(folder, model, corpus)
    kept = [s for s in settings if not s.startswith(("train.coders", "harvest.sites"))]
    recipes = [{"name": name, "recipe": name, "width": 64, "l1": 1.0} for name in RECIPES]
    coders = json.dumps([*(coder_settings(name) for name in TRAINABLE), *recipes])
    return [*kept, *SETTINGS, f"harvest.sites={json.dumps(SITES)}", f"train.coders={coders}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_corpus: Path) -> Path:
    """Killed in the training of all coders, and started again."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = settings_of(folder, tiny_folder, tiny_corpus)
    steps, step_all = count(1), training_run.step_all

    def killed(trainers, batch):
        if next(steps) == KILLED_AT:
            raise Killed
        return step_all(trainers, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "step_all", killed)
        with pytest.raises(Killed):
            sae("run", *settings)
    assert list((folder / "coders").glob("checkpoint-*.json")), "it was killed before it saved"
    assert not (folder / "coders" / NAMES[0] / "cfg.json").exists()
    output = sae("run", *settings)
    assert not any(line.startswith("harvest") for line in output.splitlines())  # it was done
    return folder


def test_each_was_resumed_to_the_bit(
    run: Path, tmp_path: Path, tiny_folder: Path, tiny_corpus: Path
) -> None:
    undisturbed = tmp_path / "run"
    settings = settings_of(undisturbed, tiny_folder, tiny_corpus)
    for stage in ("harvest", "train"):
        sae("run", *settings, "--only", stage)
    for name in NAMES:
        file = Path("coders") / name / "sae_weights.safetensors"
        assert (run / file).read_bytes() == (undisturbed / file).read_bytes(), name


@pytest.mark.parametrize("name", NAMES)
def test_each_is_trained_evaluated_indexed_and_exported(run: Path, name: str) -> None:
    evaluation = json.loads((run / "evaluation" / f"{name}.json").read_text())
    assert not any(test["passed"] is False for test in evaluation["self_tests"].values())
    assert evaluation["metrics"]["ev"]["value"] > 0
    coder = load_coder(run / "coders" / name)
    with h5py.File(run / "export" / f"{name}.h5") as file:
        assert file["encoder"].shape == (coder.d_sae, coder.d_in)  # pyright: ignore
        assert file["decoder"].shape == (coder.d_sae, coder.d_out)  # pyright: ignore
    assert "sound" in sae("verify", str(run / "features" / name))
    assert str(coder.site) in sae("info", str(run / "coders" / name))


@pytest.mark.parametrize("name", NAMES)
def test_each_is_browsed(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page of every coder, at the feature that fires most often."""
    monkeypatch.setenv(ENVIRONMENT, str(run))
    index = FeatureIndex.open(run / "features" / name)
    feature = int(index.table["count"].argmax())
    tiles = {metric.label for metric in open_page("overview", coder=name).metric}
    assert "Explained variance" in tiles
    assert view(open_page("features", coder=name), "table")["items"]
    page = open_page("feature", coder=name, feature=str(feature))
    shown = view(page, "examples")["items"]
    assert [item["row"] for item in shown] == [e.row for e in index.examples(feature)]
    page = open_page("prompt", coder=name, text="def add(a, b)")
    assert "".join(view(page, "strip")["tokens"]["text"][1:]) == "def add(a, b)"


def test_a_transcoder_says_what_it_predicts(run: Path) -> None:
    assert "blocks.0.mlp.hook_post" in sae("info", str(run / "coders/skip_transcoder"))
    meta = json.loads((run / "features/skip_transcoder/index.json").read_text())
    assert (meta["site"], meta["target_site"]) == (TWO["site"], TWO["target_site"])
    page = (run / "evaluation/skip_transcoder.html").read_text()
    assert "linear map" in page
    assert f"predicting <code>{TWO['target_site']}</code>" in page


@pytest.mark.parametrize(
    ("coder", "message"),
    [
        ({"architecture": "transcoder", "k": 4}, "name it as `target_site`"),
        ({"architecture": "topk", "k": 4, **TWO}, "only transcoders have a target site"),
        (
            {"architecture": "transcoder", "target_site": "blocks.1.hook_mlp_out"},
            "predicts `blocks.1.hook_mlp_out`, which is not in `harvest.sites`",
        ),
        ({"architecture": "switch", "width": 64, "experts": 5}, "must divide"),
        ({"architecture": "relu", "grad_clip": -1}, "greater than or equal to 0"),
        ({"architecture": "relu", "centre": "median"}, "'mean' or 'geometric_median'"),
    ],
)
def test_a_mistake_is_one_sentence(run: Path, coder: dict[str, object], message: str) -> None:
    coders = json.dumps([{"name": "a", **coder}])
    assert message in sae("train", str(run), f"train.coders={coders}", code=2)


def test_an_option_that_an_architecture_lacks_is_told_before_the_harvest(
    tmp_path: Path, tiny_folder: Path, tiny_corpus: Path
) -> None:
    settings = tiny_settings(tmp_path / "run", tiny_folder, tiny_corpus)
    kept = [s for s in settings if not s.startswith("train.coders")]
    output = sae("run", *kept, "train.coders=[{name: a, architecture: relu, k: 4}]", code=2)
    assert "`relu` has no hyperparameter `k`" in output
    assert not (tmp_path / "run").exists()
