"""Coders of a run that differ in some of their settings alone."""

from collections.abc import Sequence
from functools import cache

from pipelines.config import CoderConfig
from sae.base.files import sha256_json

SEED = ("seed",)


def alike(coders: Sequence[CoderConfig], keys: Sequence[str]) -> list[list[CoderConfig]]:
    """Groups of coders that are equal in all but their names and these keys."""
    return [list(group) for group in _groups(tuple(coders), tuple(keys))]


@cache  # asked for each coder of a sweep
def _groups(
    coders: tuple[CoderConfig, ...], keys: tuple[str, ...]
) -> tuple[tuple[CoderConfig, ...], ...]:
    groups: dict[str, list[CoderConfig]] = {}
    for coder in coders:
        key = sha256_json(coder.model_dump(mode="json", exclude={"name", *keys}))
        groups.setdefault(key, []).append(coder)
    return tuple(map(tuple, groups.values()))


def other_seeds(coders: Sequence[CoderConfig], name: str) -> list[CoderConfig]:
    """The coders that differ from the named one in their seed alone, in the order given."""
    own = next(group for group in alike(coders, SEED) if any(c.name == name for c in group))
    seed = next(coder.seed for coder in own if coder.name == name)
    return [coder for coder in own if coder.seed != seed]
