"""Sweeps: a grid in the configuration becomes named coders, trained on one stream, compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import RunConfig
from pipelines.progress import listed
from pipelines.recipes import RECIPES
from pipelines.sweep import family_name
from sae.base.config import validate
from sae.base.errors import UserError
from tests.conftest import tiny_settings
from tests.pipelines.test_run import sae

SITES = ["blocks.2.hook_resid_post", "blocks.0.mlp.hook_post"]


def config(**train: Any) -> RunConfig:
    return validate(RunConfig, {"harvest": {"sites": SITES}, "train": train})


def names(**sweep: Any) -> list[str]:
    return [coder.name for coder in config(sweep=sweep).train.coders]


def test_a_grid_is_every_combination() -> None:
    found = config(sweep={"expansion": [8, 16], "k": [16, 32], "seed": [0, 1]}).train.coders
    assert {(c.expansion, c.k, c.seed) for c in found} == {
        (expansion, k, seed) for expansion in (8, 16) for k in (16, 32) for seed in (0, 1)
    }
    assert [c.name for c in found][:3] == ["topk-8x-k16", "topk-8x-k16-s1", "topk-8x-k32"]
    assert {family_name(c) for c in found} == {"topk-8x", "topk-16x"}


def test_a_family_differs_in_sparsity_and_seed_alone() -> None:
    """Another bandwidth is another coder, and no point of the same curve."""
    found = config(
        sweep={
            "architecture": ["jumprelu", "switch", "matching_pursuit"],
            "target_l0": [16, 32],
            "bandwidth": [0.1, 0.2],
            "k": [16, 32],
            "experts": [4, 8],
            "max_iterations": [16, 32],
            "seed": [0, 1],
        }
    ).train.coders
    assert len({c.name for c in found}) == len(found) == 20
    assert {family_name(c) for c in found} == {
        "jumprelu-16x-bandwidth0.1",
        "jumprelu-16x-bandwidth0.2",
        "switch-16x-experts4",
        "switch-16x-experts8",
        "matching_pursuit-16x",
    }


def test_an_architecture_takes_the_hyperparameters_that_it_has() -> None:
    assert names(architecture=["topk", "relu"], k=[16, 32], l1=[5, 0.5]) == [
        "topk-16x-k16",
        "topk-16x-k32",
        "relu-16x-l1-5",
        "relu-16x-l1-0.5",
    ]


def test_names_say_what_is_not_the_default() -> None:
    assert names(width=4096, k=32, learning_rate=[1e-3, 5e-4], site=SITES) == [
        "topk-4096-2.resid_post-lr0.001-k32",
        "topk-4096-2.resid_post-lr0.0005-k32",
        "topk-4096-0.mlp.post-lr0.001-k32",
        "topk-4096-0.mlp.post-lr0.0005-k32",
    ]


def test_a_growing_sweep_keeps_the_names_of_its_coders() -> None:
    small = set(names(k=32))
    for more in ({"seed": [0, 1]}, {"expansion": [16, 32]}, {"architecture": ["topk", "relu"]}):
        assert small < set(names(k=[32, 64], **more))


def test_a_sweep_joins_the_list_and_its_own_coders_are_not_doubled() -> None:
    first = config(sweep={"k": [16, 32]}, coders=[{"name": "mine", "k": 8}])
    assert [c.name for c in first.train.coders] == ["mine", "topk-16x-k16", "topk-16x-k32"]
    written = first.train.model_dump(mode="json")
    assert config(**written).train.coders == first.train.coders
    assert config(coders=written["coders"]).train.coders == first.train.coders


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"sweep": {"sede": [1]}}, "Unknown configuration key `train.sweep.sede`. Did you mean `s"),
        ({"sweep": {"name": ["a"]}}, "Unknown configuration key `train.sweep.name`"),
        ({"sweep": {"k": []}}, "`train.sweep.k` is empty"),
        ({"sweep": {"k": [16, 16]}}, "names 16 twice"),
        ({"sweep": {"k": [0]}}, "`train.sweep.k`: .* greater than or equal to 1"),
        ({"sweep": {"l1": [5]}}, r"`train.sweep.l1` .* none of the sweep's architectures \(topk\)"),
        ({"sweep": {"architecture": ["topkk"]}}, "Did you mean `topk`"),
        ({"sweep": {"width": 512, "expansion": 4}}, "both `width` and `expansion`"),
        ({"sweep": [{"k": 16}]}, "must be a mapping"),
        ({"sweep": {"learning_rate": [1e-3, 1.0000001e-3]}}, "would both be called"),
        ({"sweep": {"site": "blocks.4.hook_resid_post"}}, "not in `harvest.sites`"),
        (
            {"sweep": {"k": [16]}, "coders": [{"name": "topk-16x-k16", "k": 17}]},
            "called `topk-16x-k16` and differ",
        ),
        ({"coders": []}, "at least one coder"),
        ({"coders": [{"name": "Report", "k": 4}]}, "cannot be called `Report`"),
    ],
)
def test_mistakes_get_a_sentence(train: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        config(**train)
    assert "\n" not in str(found.value)
    assert "CoderConfig(" not in str(found.value)


def test_many_names_are_counted_not_listed() -> None:
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed([str(i) for i in range(24)]) == "24 coders"


def _grid(ks: list[int]) -> str:
    return f"train.sweep={{architecture: [topk, batchtopk], expansion: 4, k: {ks}}}"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_corpus: Path) -> Path:
    """Four coders, harvested, trained and evaluated."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    settings = [s for s in tiny_settings(folder, tiny_folder, tiny_corpus) if "coders=" not in s]
    for stage in ("harvest", "train", "evaluate"):
        output = sae(stage, *settings, _grid([3, 6]))
    assert "Pareto front of L0 and FVU" in output
    assert "FVU at equal L0" in output
    return folder


def _comparison(run: Path) -> dict[str, Any]:
    found = json.loads((run / "evaluation" / "compare" / "comparison.json").read_text())
    (group,) = found["groups"]
    return group


def test_the_front_of_a_sweep_is_on_disk(swept: Path) -> None:
    group = _comparison(swept)
    wanted = ["topk-4x-k3", "topk-4x-k6", "batchtopk-4x-k3", "batchtopk-4x-k6"]
    assert list(group["coders"]) == wanted
    assert set(group["matched"]["fvu"]["families"]) == {"topk-4x", "batchtopk-4x"}
    for error in ("fvu", "delta_ce"):
        assert sorted([*group["fronts"][error], *group["behind"][error]]) == sorted(wanted)
    assert "topk-4x-k6" in (swept / "evaluation" / "compare" / "comparison.html").read_text()
    report = (swept / "evaluation" / "report.html").read_text()
    for name in wanted:  # a page for each, and one that leads to them
        assert f'href="{name}.html"' in report
        assert f"Evaluation of {name}" in (swept / "evaluation" / f"{name}.html").read_text()
    assert "up to date" in sae("evaluate", str(swept))


def test_a_sweep_that_grows_trains_the_new_coders_only(swept: Path) -> None:
    weights = {p: p.read_bytes() for p in swept.glob("coders/*/sae_weights.safetensors")}
    times = {p: p.stat().st_mtime_ns for p in weights}
    grown = _grid([3, 4, 6])
    planned = sae("run", str(swept), grown, "--dry-run").splitlines()
    assert planned[0] == "would do train topk-4x-k4 batchtopk-4x-k4"
    assert planned[1:3] == ["would do evaluate topk-4x-k4 batchtopk-4x-k4", "would do compare"]
    for stage in ("train", "evaluate"):
        output = sae(stage, str(swept), grown)
    assert {p: p.stat().st_mtime_ns for p in weights} == times
    assert {p: p.read_bytes() for p in weights} == weights
    group = _comparison(swept)
    assert len(group["coders"]) == 6
    rows = [line for line in output.splitlines() if "topk-4x-k" in line and " [" in line]
    assert len(rows) == 6  # beyond a few coders, one row each: the controls are in the report


def test_more_coders_than_memory_holds_is_a_sentence(
    swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.base.memory.available_memory", lambda: 1 << 20)
    output = sae("train", str(swept), "train.sweep.k=[7, 8, 9, 10]", code=2)
    (line,) = [line for line in output.splitlines() if line.startswith("sae:")]
    assert "Training 4 coders together needs about" in line
    assert "fewer or narrower" in line


def test_a_coder_that_is_dense_at_first_needs_more_memory(
    swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a fresh ReLU coder's latents fire: several tensors as wide as the dictionary."""
    monkeypatch.setattr("sae.base.memory.available_memory", lambda: 60 << 20)
    for architecture, code in (("relu", 2), ("topk", 0)):
        sweep = f"train.sweep={{architecture: {architecture}, width: 20000}}"
        output = sae("train", str(swept), sweep, "train.batch=128", code=code)
        assert ("a smaller `train.batch`" in output) == (code == 2), output


def test_recipes_bring_their_architectures() -> None:
    found = config(sweep={"recipe": list(RECIPES), "l1": [5, 10]}).train.coders
    made = {(coder.recipe, coder.architecture, coder.l1) for coder in found}
    own = {name: recipe["architecture"] for name, recipe in RECIPES.items()}
    assert made == {(name, own[name], l1) for name in RECIPES for l1 in (5, 10)}
