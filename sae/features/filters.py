"""The filter expression of `sae export --features` and of the browser's table.

Terms separated by spaces must all hold; text with spaces is put in double quotes:

    3,17,40-60            these features
    density>1e-4          any numeric column, also of the scorecard, with < <= > >= = !=
    label:"verbs of"      the label holds the text, in any case
    token:" Paris"        fires on the token (one of its ten most frequent)
    promotes:x suppresses:x kind:class tag:x starred
    @saved.json           the filter in {"filter": "<expression>"}, as the browser saves it
"""

import operator
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sae.base.errors import UserError, nearest
from sae.base.files import read_json
from sae.features.scorecard import MEASURED, scored_view

if TYPE_CHECKING:
    from sae.features.index import FeatureIndex

_TERM = re.compile(r'(?:[^\s"]|"[^"]*")+')
_IDS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_COMPARISON = re.compile(r"([A-Za-z_]\w*)(<=|>=|==|!=|<|>|=)(.+)")
_OPERATORS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_LONGEST_ID = 18  # digits
_KEYS = ("label", "token", "promotes", "suppresses", "kind", "tag")
_MOST_NESTED, _NO_FILES = 5, 99


def select(index: "FeatureIndex", expression: str | None, *, files: bool = True) -> np.ndarray:
    """Ids (ascending) of the features that satisfy a filter expression; all for None or "".

    `files`: whether `@saved.json` may be read. A page takes its filter from an address that anybody
    may have written, and must not read files of this machine for it.

    Raises:
        UserError: a term that cannot be read, an unknown column or key (with the nearest), an id
            beyond the dictionary.
    """
    hit_F, view = np.ones(index.width, bool), scored_view(index)
    for term in terms_of(resolved(expression, 0 if files else _NO_FILES)):
        hit_F &= _term(index, view, term)
    return np.flatnonzero(hit_F)


def resolved(expression: str | None, depth: int = 0) -> str:
    """The expression with what its saved filters say in their place.

    Raises:
        UserError: an open quotation mark; a saved filter that is not there, or is none.
    """
    expression = expression or ""
    if expression.count('"') % 2:
        raise UserError(f"The filter `{expression}` has an open quotation mark; close it.")
    terms = terms_of(expression)
    return " ".join(
        resolved(_saved(term[1:].strip('"'), depth), depth + 1) if term.startswith("@") else term
        for term in terms
    )


def terms_of(expression: str) -> list[str]:
    """The terms of an expression; spaces within quotation marks part nothing."""
    return _TERM.findall(expression)


def _saved(path: str, depth: int) -> str:
    if depth >= _NO_FILES:
        raise UserError(f"A page reads no files, such as `@{path}`; paste the filter itself.")
    if depth >= _MOST_NESTED:
        raise UserError(f"The saved filter {path} leads back to itself; mend its `filter`.")
    saved = read_json(Path(path))
    if not isinstance(saved, dict) or not isinstance(saved.get("filter"), str):
        raise UserError(f'{path} is no saved filter; expected {{"filter": "<expression>"}}.')
    return saved["filter"]


def _term(index: "FeatureIndex", view: pd.DataFrame, term: str) -> np.ndarray:
    if _IDS.fullmatch(term):
        return _ids(index, term)
    if term == "starred":
        return view["star"].to_numpy(bool)
    key, colon, text = term.partition(":")
    if colon and re.fullmatch(r"\w+", key):
        return _text_term(index, view, key, text.replace('"', ""))
    comparison = _COMPARISON.fullmatch(term)
    if comparison:
        return _comparison(view, *comparison.groups())
    raise UserError(
        f"The filter's term `{term}` cannot be read; expected ids (3,17,40-60), a comparison "
        "(density>1e-4), label:TEXT, token:TEXT, promotes:TEXT, suppresses:TEXT, kind:NAME, "
        "tag:NAME, starred or @saved.json."
    )


def _ids(index: "FeatureIndex", term: str) -> np.ndarray:
    hit_F = np.zeros(index.width, bool)
    for part in term.split(","):
        first, _, last = part.partition("-")
        if max(len(first), len(last)) > _LONGEST_ID:
            raise UserError(f"The filter's term `{term}` names no feature: it is too long.")
        start, stop = index.check(int(first)), index.check(int(last or first))
        if stop < start:
            raise UserError(f"The range `{part}` runs backwards; write {stop}-{start}.")
        hit_F[start : stop + 1] = True
    return hit_F


def _text_term(index: "FeatureIndex", view: pd.DataFrame, key: str, text: str) -> np.ndarray:
    from sae.features.search import matching_tokens

    if key == "label":
        return view["label"].str.lower().str.contains(text.lower(), regex=False).to_numpy(bool)
    if key == "kind":
        return (view["label_kind"] == text).to_numpy(bool)
    if key == "tag":
        return np.array([text in tags for tags in view["tags"]], bool)
    columns = {"token": "top", "promotes": "promoted", "suppresses": "suppressed"}
    if key not in columns:
        raise UserError(
            f"A filter knows no `{key}:`; give one of {', '.join(_KEYS)}.{nearest(key, _KEYS)}"
        )
    prefix = columns[key]
    column = "top_token_ids" if prefix == "top" else f"{prefix}_ids"
    wanted = set(matching_tokens(index, text).tolist())
    return np.array([not wanted.isdisjoint(ids.tolist()) for ids in view[column]], bool)


def _comparison(view: pd.DataFrame, name: str, symbol: str, number: str) -> np.ndarray:
    numeric = [c for c in view.columns if pd.api.types.is_numeric_dtype(view[c].dtype)]
    if name in MEASURED and name not in numeric:
        raise UserError(
            f"The filter asks for `{name}`, which stands in a scorecard; make one with "
            "`sae scorecard RUN`."
        )
    if name not in numeric:
        raise UserError(
            f"There is no numeric column `{name}` to filter by; there are "
            f"{', '.join(numeric)}.{nearest(name, numeric)}"
        )
    try:
        value = float(number)
    except ValueError:
        raise UserError(
            f"`{name}{symbol}{number}` compares with `{number}`, which is not a number."
        ) from None
    known_F = view[name].to_numpy(np.float64)
    return _OPERATORS[symbol](known_F, value) & ~np.isnan(known_F)  # NaN differs from every number
