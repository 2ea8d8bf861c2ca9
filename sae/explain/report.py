"""The report of an explaining run, and its readers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.base.errors import UserError
from sae.base.files import read_json
from sae.base.foreign import reading
from sae.base.sums import require_intact
from sae.explain.answers import LONGEST_EXPLANATION
from sae.explain.plan import SHUFFLED, TASKS, Request
from sae.explain.scores import judged

if TYPE_CHECKING:
    from sae.explain.explainer import Explainer

SCHEMA = 1
AGAIN = "delete it: the answers behind it are kept, and cost nothing again"
NUMBERS = ("balanced_accuracy", "f1")
Answered = Sequence[tuple[Request, list[bool] | None]]


def build_report(
    explainer: "Explainer",
    before: Mapping[int, dict[str, Any]],
    explanations: Mapping[int, str | None],
    answered: Mapping[int, Answered],
) -> dict[str, Any]:
    """A record for every feature that was asked about, now or before, and means over those with an
    explanation. One that is whole is not replaced by one that is not."""
    from sae.metrics.estimate import INTERVAL

    records = dict(before)
    for feature, answers in answered.items():
        other = explainer.planner.partner(feature, explanations)
        record = _record(explanations[feature], answers, other)
        if not record["unscored"] or feature not in records:
            records[feature] = record
    return {
        "schema": SCHEMA,
        "coder": explainer.index.meta["coder"],
        "site": explainer.index.meta["site"],
        "settings": explainer.settings,
        "interval": INTERVAL,
        "left_out": explainer.left_out,
        "requests_failed": len(explainer.failed),
        "usage": explainer.usage,
        "summary": _summary(records, explainer.seed),
        "features": {str(feature): records[feature] for feature in sorted(records)},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _record(explanation: str | None, answers: Answered, other: int | None) -> dict[str, Any]:
    def side(prefix: str) -> dict[str, Any]:
        return {
            test: judged(
                [
                    ([passage.truth for passage in request.passages], verdicts)
                    for request, verdicts in answers
                    if request.part == prefix + test
                ]
            )
            for test in TASKS
        }

    own, shuffled = side(""), side(SHUFFLED)
    parts = [found for sides in (own, shuffled) for found in sides.values()]
    unscored = explanation is None or any(found["unscored"] for found in parts)
    record = {"explanation": explanation, "unscored": unscored, **own}
    return record | {"shuffled": {"explanation_of": other, **shuffled}}


def _summary(records: Mapping[int, dict[str, Any]], seed: int) -> dict[str, Any]:
    explained = [record for record in records.values() if record["explanation"]]
    found: dict[str, Any] = {
        "features": len(records),
        "explained": len(explained),
        "passages_unscored": sum(
            part[test]["unscored"]
            for record in explained
            for part in (record, record["shuffled"])
            for test in TASKS
        ),
    }
    for test in TASKS:
        found[test] = {name: _compared(explained, test, name, seed) for name in NUMBERS}
    return found


def _compared(records: Iterable[dict[str, Any]], test: str, name: str, seed: int) -> dict[str, Any]:
    """Means over features of which both sides have the number; intervals resample features."""
    from sae.metrics.estimate import estimate_mean

    pairs = [(r[test][name], r["shuffled"][test][name]) for r in records]
    both = np.array([p for p in pairs if None not in p], np.float64).reshape(-1, 2)
    alone = np.array([own for own, _ in pairs if own is not None], np.float64)
    own = both[:, 0] if len(both) else alone  # of one feature there is no control
    sides = {"explanation": own, "shuffled": both[:, 1], "difference": both[:, 0] - both[:, 1]}
    entries = {side: estimate_mean(values, len(values), seed) for side, values in sides.items()}
    return {side: {"features": entry.pop("tokens"), **entry} for side, entry in entries.items()}


def report_path(run: Path, coder: str) -> Path:
    """Where the report of a coder lies in a run folder."""
    return run / "evaluation" / "mechanisms" / f"{coder}.explanations.json"


@dataclass(frozen=True)
class Explanation:
    """What a page shows of a feature: scores are balanced accuracies, None where there are none."""

    text: str
    model: str
    detection: float | None
    fuzzing: float | None
    shuffled_detection: float | None
    shuffled_fuzzing: float | None


def read_explanations(path: Path | str, coder_hash: str) -> dict[int, Explanation]:
    """The explanations in a report; {} if it is not there, not readable, or of other weights."""
    try:
        _require_intact(Path(path))
        report = read_json(path) if Path(path).is_file() else {}
        settings = report["settings"]
        if settings["coder_hash"] != coder_hash:
            return {}
        return {
            int(feature): _shown(record, str(settings["model"]))
            for feature, record in report["features"].items()
            if record["explanation"]
        }
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _require_intact(path: Path) -> None:
    """By the sums of the folder that `report_path` puts it into."""
    try:
        require_intact(path.parent.parent, [f"{path.parent.name}/{path.name}"])
    except UserError as error:
        raise UserError(f"{path} is not what was written; {AGAIN}.") from error


def _shown(record: dict[str, Any], model: str) -> Explanation:
    sides = (record, record["shuffled"])
    scores = [_share(side[test]["balanced_accuracy"]) for side in sides for test in TASKS]
    return Explanation(str(record["explanation"])[:LONGEST_EXPLANATION], model, *scores)


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, float | int) and math.isfinite(value) else None


def records_before(path: Path | str, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The records of an earlier report of the same settings; {} if there is none.

    Raises:
        UserError: it is damaged, or none.
    """
    if not Path(path).is_file():
        return {}
    _require_intact(Path(path))
    report = read_json(path)
    if not isinstance(report, dict) or report.get("settings") != settings:
        return {}
    with reading(path, AGAIN):
        records = {int(feature): record for feature, record in report["features"].items()}
        for record in records.values():
            _shown(record, "")  # has what a reader needs
            _ = record["unscored"]
        return records
