"""Recipes fill in what a coder's settings leave open, and every option reaches its architecture."""

from pathlib import Path

import pytest

from pipelines.config import OPTIONS, CoderConfig, RunConfig
from pipelines.recipes import RECIPES
from pipelines.sweep import coder_name
from pipelines.train import settings_of
from sae.base.config import load_config, validate
from sae.base.errors import UserError
from sae.coders import ARCHITECTURES, make_coder
from sae.coders.registry import hyperparameters_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configurations_make_their_coders(file: Path) -> None:
    for coder in load_config(RunConfig, file).train.coders:
        make_coder(coder.architecture, 8, coder.expansion * 8, **coder.options)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_given_wins_over_the_recipe(recipe: str) -> None:
    plain = CoderConfig(name="a", recipe=recipe)
    assert plain.architecture == RECIPES[recipe]["architecture"]
    assert plain.decay == RECIPES[recipe]["decay"]
    assert CoderConfig(name="a", recipe=recipe, decay=0.5).decay == 0.5
    again = validate(CoderConfig, plain.model_dump(mode="json"))
    assert again == plain  # as run.yaml is read back


def test_the_recipe_of_towards_monosemanticity_is_the_papers() -> None:
    """In shares of 976,562 steps: 8 billion inputs in batches of 8,192."""
    given = {"recipe": "towards-monosemanticity", "name": "a"}
    config = validate(RunConfig, {"train": {"coders": [given], "batch": 8192}})
    settings = settings_of(config, config.train.coders[0], steps=976_562)
    assert (settings.centre, settings.grad_clip) == ("geometric_median", 0)
    steps = [round(share * settings.steps, -3) for share in settings.resample]
    assert steps == [25_000, 50_000, 75_000, 100_000]
    assert settings.resample_window * settings.steps == pytest.approx(12_500, rel=1e-3)
    rates = {settings.rate(step, 4096) for step in (0, 1, 500_000, 976_561)}
    assert len(rates) == 1


def test_the_recipe_of_april_2024_clips_the_papers_gradient() -> None:
    """Its loss is summed over dimensions: in the units of the loss per dimension, 1 is 1 / D."""
    given = {"recipe": "anthropic-april-2024", "name": "a"}
    config = validate(RunConfig, {"train": {"coders": [given, {"name": "b"}]}})
    papers, plain = (settings_of(config, coder, steps=1) for coder in config.train.coders)
    assert papers.clipped_at(256) == 1 / 256
    assert plain.clipped_at(256) == 1


def test_a_coder_may_be_clipped_otherwise_than_the_rest() -> None:
    coders = [{"name": "a"}, {"name": "b", "grad_clip": 0}, {"name": "c", "grad_clip": 2}]
    config = validate(RunConfig, {"train": {"coders": coders, "grad_clip": 5}})
    found = [settings_of(config, coder, steps=1).grad_clip for coder in config.train.coders]
    assert found == [5, 0, 2]


def test_an_unknown_recipe_is_a_sentence() -> None:
    with pytest.raises(UserError, match="Did you mean `towards-monosemanticity`"):
        validate(CoderConfig, {"name": "a", "recipe": "toward-monosemanticity"})


def test_every_declared_option_belongs_to_an_architecture() -> None:
    taken = {name for kind in ARCHITECTURES for name in hyperparameters_of(kind)}
    assert set(OPTIONS) <= taken


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_fills_in_is_not_in_the_name_as_well(recipe: str) -> None:
    coder = CoderConfig(name="a", recipe=recipe, width=64)
    assert coder_name(coder) == f"{coder.architecture}-64-recipe{recipe}"
    assert coder_name(coder.model_copy(update={"decay": 0.5})).endswith("-decay0.5")
