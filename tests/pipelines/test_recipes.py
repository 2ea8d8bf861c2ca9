"""Recipes fill in what a coder's settings leave open, and every option reaches its architecture."""

from pathlib import Path

import pytest

from pipelines.config import OPTIONS, CoderConfig, RunConfig
from pipelines.recipes import RECIPES
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


def test_an_unknown_recipe_is_a_sentence() -> None:
    with pytest.raises(UserError, match="Did you mean `towards-monosemanticity`"):
        validate(CoderConfig, {"name": "a", "recipe": "toward-monosemanticity"})


def test_every_declared_option_belongs_to_an_architecture() -> None:
    taken = {name for kind in ARCHITECTURES for name in hyperparameters_of(kind)}
    assert set(OPTIONS) <= taken
