"""Configuration: one validated model, a YAML file, and `key=value` on the command line."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sae.base.errors import UserError, nearest
from sae.base.foreign import LONGEST_REASON, read_bytes

Model = TypeVar("Model", bound=BaseModel)
LARGEST = 2**22
"""Bytes of a configuration; one of a thousand coders has under one million."""
MOST_VALUES = 200_000


class Section(BaseModel):
    """A part of a configuration: unknown keys are errors, values never change once made."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


def load_config(
    kind: type[Model], file: Path | str | None = None, overrides: Sequence[str] = ()
) -> Model:
    """Defaults < the YAML file < the overrides (`train.batch=4096`)."""
    values = read_yaml(file) if file is not None else {}
    for override in overrides:
        key, found, text = override.partition("=")
        if not found:
            raise UserError(f"`{override}` is no setting; give it as key=value or --key value.")
        set_path(values, key.replace("-", "_").split("."), parse_value(text))
    return validate(kind, values)


def read_yaml(file: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file: no tags of Python, no aliases that unfold without end."""
    file = Path(file)
    try:
        values = _parsed(read_bytes(file, LARGEST))
    except FileNotFoundError:
        raise UserError(
            f"The configuration {file} does not exist; give a YAML file, the folder of a run, or "
            "settings as key=value."
        ) from None
    except (OSError, UserError):
        raise
    except Exception as error:  # PyYAML's constructors raise whatever a bad scalar makes of them
        told = " ".join(str(error).split())[:LONGEST_REASON]
        raise UserError(f"{file} is not valid YAML ({told}); mend it.") from None
    if not isinstance(values, dict | None):
        raise UserError(f"{file} holds a {type(values).__name__}; a configuration is a mapping.")
    return values or {}


def _parsed(data: bytes | str) -> Any:
    """As `yaml.safe_load`, but refused before it is unfolded if its aliases make too much of it."""
    loader = yaml.SafeLoader(data)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_modest(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _require_modest(node: yaml.Node) -> None:
    """Counts values as often as aliases repeat them; an alias of itself counts without end."""
    rest, count = [node], 1
    while rest:
        found = rest.pop().value
        if not isinstance(found, list):
            continue
        for item in found:  # nodes of a list, pairs of nodes of a mapping
            rest += item if isinstance(item, tuple) else (item,)
        count += len(found)
        if count > MOST_VALUES:
            raise ValueError(f"its aliases unfold to more than {MOST_VALUES:,} values")


def parse_value(text: str) -> Any:
    """As YAML reads it, and also `1e6`, which YAML takes for a string, and `@file`, which it takes
    for nothing.
    """
    if text.startswith("@"):
        return text
    try:
        value = _parsed(text) if text else None
    except Exception as error:  # as in a file
        problem = str(getattr(error, "problem", None) or error)[:LONGEST_REASON]
        raise UserError(
            f"`{text}` cannot be read as a value ({problem}); it must be YAML, such as 3, text, "
            "[a, b] or {name: x}."
        ) from None
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    return value


def set_path(values: Any, path: list[str], value: Any) -> None:
    """Sets a nested key; a number names an element of a list."""
    for here, key in enumerate(path):
        last = here == len(path) - 1
        if isinstance(values, list):
            if not key.isdigit() or int(key) >= len(values):
                raise UserError(
                    f"`{'.'.join(path)}` names element `{key}` of a list of {len(values)}."
                )
            index: Any = int(key)
        else:
            if not isinstance(values, dict):
                raise UserError(f"`{'.'.join(path)}` asks for a part of what has no parts.")
            index = key
            if not last and not isinstance(values.get(key), dict | list):
                values[key] = {}
        if last:
            values[index] = value
        else:
            values = values[index]


def validate(kind: type[Model], values: dict[str, Any], within: str = "") -> Model:
    """The validated model, or a `UserError` about the first thing that is wrong.

    `within` is the key under which the values stand, for the sentence.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            raise cause from None  # a sentence already
        where = ".".join(map(str, ([within] if within else []) + list(problem["loc"])))
        if problem["type"] == "extra_forbidden":
            name = str(problem["loc"][-1])
            names = _fields_at(kind, problem["loc"][:-1])
            hint = nearest(name, names) or f" Valid keys: {', '.join(names)}."
            raise UserError(f"Unknown configuration key `{where}`.{hint}") from None
        given = "" if problem["type"] == "missing" else f" (given: {_short(problem['input'])})"
        reason = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"Configuration key `{where}`: {reason}{given}.") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "…"


def describe(kind: type[BaseModel], prefix: str = "") -> Iterable[tuple[str, Any, str]]:
    """(key, default, description) of every setting, for `--help`."""
    for name, field in kind.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None:
            many = ".0" if field.annotation is not inner else ""
            yield from describe(inner, f"{prefix}{name}{many}.")
        else:
            yield (
                f"{prefix}{name}",
                field.get_default(call_default_factory=True),
                (field.description or ""),
            )


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        if isinstance(part, int):
            continue
        inner = _model_in(kind.model_fields[part].annotation) if part in kind.model_fields else None
        if inner is None:
            return []
        kind = inner
    return list(kind.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The configuration model inside an annotation such as `tuple[Coder, ...]`, if any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in get_args(annotation) if (m := _model_in(a)) is not None), None)
