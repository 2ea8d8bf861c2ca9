"""Evaluations as they are read back: by the tables, the reports, the comparison, the browser.

The file is Loupe's own, but may come from anybody; who reads it through here finds numbers where
numbers are expected. `docs/metrics.md` has its keys.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from sae.base.errors import UserError
from sae.base.files import read_json_object
from sae.base.foreign import reading

SCHEMA = 1


class Number(BaseModel):
    """A number with its 95 % interval; None where it does not exist."""

    model_config = ConfigDict(strict=True)
    value: FiniteFloat | int | None
    low: FiniteFloat | int | None = None
    high: FiniteFloat | int | None = None
    tokens: int | None = Field(default=None, ge=0)


class Evaluation(BaseModel):
    """What every reader of an evaluation needs of it; there may be more."""

    model_config = ConfigDict(strict=True)
    metrics: dict[str, Number]
    controls: dict[str, dict[str, Number]] = {}


def read_evaluation(path: Path | str) -> dict[str, Any]:
    """`evaluation/<coder>.json`. Raises `UserError` if it is none, or of another schema."""
    found = read_json_object(path)
    if found.get("schema") != SCHEMA:
        raise UserError(
            f"The evaluation {path} has schema {found.get('schema')!r}, not {SCHEMA}; run "
            "`sae evaluate` again."
        )
    with reading(f"The evaluation {path}", "run `sae evaluate` again"):
        Evaluation.model_validate(found)
    return found


def won_by(ladder: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The controls that are at least as good as the coder, of each metric that any of them wins."""
    return {name: list(rung["won_by"]) for name, rung in ladder.items() if rung["won_by"]}
