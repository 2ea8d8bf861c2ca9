"""`train.sweep`: a grid of coders, written as one value or a list for each key of a coder.

    sweep: {architecture: [topk, batchtopk, relu], expansion: [8, 16], k: [16, 32], l1: [5, 10]}

Every combination is a coder. An architecture takes the hyperparameters that it has: `k` makes no
copies of a ReLU coder, nor `l1` of a TopK one. A coder's name depends on nothing but itself, so
that a sweep that grows finds its finished coders again.
"""

import re
from collections.abc import Iterable
from itertools import product
from typing import Any

from pipelines.config import CoderConfig
from pipelines.recipes import RECIPES
from sae.base.config import validate
from sae.base.errors import UserError, nearest
from sae.coders.registry import hyperparameters_of

KEY = "train.sweep"
KEYS = tuple(key for key in CoderConfig.model_fields if key != "name")
SIZES = ("width", "expansion")
SHORT = {"learning_rate": "lr", "seed": "s"}
SPARSITY = ("k", "l1", "target_l0", "l0_penalty", "max_iterations", "residual_threshold")
"""What moves a coder along its curve over L0; whatever else differs makes it another coder."""


def expand(sweep: Any) -> list[CoderConfig]:
    """The coders of a sweep. Raises `UserError` for what is no grid."""
    axes = _axes(sweep)
    coders: dict[str, CoderConfig] = {}
    used: set[str] = set()
    architectures: set[str] = set()
    for values in product(*axes.values()):
        given = dict(zip(axes, values, strict=True))
        made = _coder(given)
        foreign = set(made.options) - set(hyperparameters_of(made.architecture))
        architectures.add(made.architecture)
        given = {key: value for key, value in given.items() if key not in foreign}
        used |= set(given)
        coder = _coder(given)
        coder = coder.model_copy(update={"name": coder_name(coder)})
        if coders.setdefault(coder.name, coder) != coder:
            raise UserError(
                f"Two coders of `{KEY}` would both be called `{coder.name}`; "
                "take values that differ in their first six digits."
            )
    for key in axes:
        if key not in used:
            raise UserError(
                f"`{KEY}.{key}` is given, but none of the sweep's architectures "
                f"({', '.join(sorted(architectures))}) has a `{key}`; leave it out, or add one."
            )
    return list(coders.values())


def coder_name(coder: CoderConfig) -> str:
    """`topk-8x-k32-s1`: architecture, size and sparsity; the rest where it is not the default."""
    options = _parts(coder, coder.options)
    return "-".join([*_stem(coder), *options, *_parts(coder, ["seed"])])


def family_name(coder: CoderConfig) -> str:
    """The name without sparsity and seed: what the coders of one curve over L0 share."""
    shared = [key for key in coder.options if key not in SPARSITY]
    return "-".join([*_stem(coder), *_parts(coder, shared)])


def _stem(coder: CoderConfig) -> list[str]:
    """The parts of its name that are no hyperparameters of its architecture."""
    size = str(coder.width) if coder.width else f"{coder.expansion}x"
    named = {"architecture", "seed", *SIZES, *coder.options}
    return [coder.architecture, size, *_parts(coder, [k for k in KEYS if k not in named])]


def _axes(sweep: Any) -> dict[str, list[Any]]:
    """Each key's values, in the order in which the keys of a coder are declared."""
    if not isinstance(sweep, dict):
        raise UserError(f"`{KEY}` is {sweep!r}; it must be a mapping such as {{k: [16, 32]}}.")
    for key, values in sweep.items():
        if key not in KEYS:
            hint = nearest(str(key), KEYS) or f" Valid keys: {', '.join(KEYS)}."
            raise UserError(f"Unknown configuration key `{KEY}.{key}`.{hint}")
        if values is None or values == []:
            raise UserError(f"`{KEY}.{key}` is empty; give it at least one value, or leave it out.")
    if all(size in sweep for size in SIZES):
        raise UserError(f"`{KEY}` has both `width` and `expansion`; give one of them.")
    listed = {key: v if isinstance(v, list) else [v] for key, v in sweep.items()}
    if "recipe" not in listed:  # which brings its own
        listed.setdefault("architecture", [CoderConfig.model_fields["architecture"].default])
    for key, values in listed.items():
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise UserError(f"`{KEY}.{key}` names {twice[0]!r} twice; give each value once.")
    return {key: listed[key] for key in KEYS if key in listed}


def _coder(given: dict[str, Any]) -> CoderConfig:
    return validate(CoderConfig, {"name": "unnamed", **given}, within=KEY)


def _parts(coder: CoderConfig, keys: Iterable[str]) -> list[str]:
    """`k32`, `l1-5`, `lr0.001`, `4.resid_post`: short, and fit for the name of a folder."""
    parts, defaults = [], RECIPES.get(coder.recipe or "", {})  # its recipe is named already
    for key in keys:
        value = getattr(coder, key)
        if value == defaults.get(key, CoderConfig.model_fields[key].default):
            continue
        if key == "site":
            parts.append(re.sub(r"blocks\.|hook_", "", value))
            continue
        short = SHORT.get(key, key)
        text = f"{value:g}" if isinstance(value, int | float) else str(value)
        parts.append(f"{short}-{text}" if short[-1].isdigit() else f"{short}{text}")
    return [re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in parts]
