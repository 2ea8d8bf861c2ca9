"""What the evaluations of a run say, on pages that need nothing else.

One page has everything about one coder; `report.html` leads to the pages of a run's coders, and
`comparison.html` sets them against each other. `write_tables` is for whatever else was measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from sae.base.errors import UserError
from sae.base.files import write_text
from sae.base.results import won_by
from sae.metrics.bootstrap import MIN_UNITS
from sae.metrics.ladder import is_few
from sae.metrics.wins import wins

Evaluation = Mapping[str, Any]

HEADLINE = (
    ("ev", "EV", "explained variance"),
    ("fvu", "FVU", "variance unexplained"),
    ("l0", "L0", "active latents per token"),
    ("alive", "alive(N)", "latents that fired"),
    ("gamma", "γ", "1: no shrinkage"),
    ("delta_ce", "ΔCE", "nats lost per token"),
    ("kl", "KL", "nats from the clean model"),
    ("ce_recovered_mean", "recovered, mean", "of the loss, against mean-ablation"),
    ("ce_recovered_zero", "recovered, zero", "of the loss, against zero-ablation"),
)
COMPARED = ("ev", "fvu", "l0", "delta_ce", "kl", "ce_recovered_mean", "ce_recovered_zero")
PAIRED = ("fvu_ratio", "delta_ce_lift")
ERROR_LABELS = {"fvu": "FVU", "delta_ce": "ΔCE, nats per token"}
NAMES = {
    "coder": "coder",
    "pca": "PCA",
    "random_dictionary": "random dictionary",
    "linear_map": "linear map of the same rank",
    "linear_map_full": "linear map of full rank",
    "shuffled_decoder": "shuffled decoder",
    "frozen_decoder": "frozen decoder",
    "raw_neurons": "raw neurons",
    "random_model": "coder of a random model",
    "train_rows": "train rows as dictionary",
    "independent_components": "independent components",
    "dictionary_learning": "scikit-learn's dictionary, OMP",
}
PARTS = {
    "shrinkage": "shrinkage",
    "amounts": "amortisation: amounts",
    "choice": "amortisation: choice",
    "dead_width": "dead width",
    "linear": "linearly predictable",
    "rest": "rest",
}
BREAKDOWNS = {
    "position": "By position",
    "frequency": "By the next token's share of the train split",
    "repetition": "By repetition in the context",
}


@dataclass(frozen=True)
class ReadTable:
    """A table with the sentences that say how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    reading: str


def write_report(
    name: str, evaluation: Evaluation, path: Path | str, whole: str | None = None
) -> Path:
    """Writes the page of one coder, from its evaluation as `evaluate` returns it.

    `whole` is the command that makes the whole evaluation, for the page of a quick one. Raises
    `UserError` for an evaluation of another schema.
    """
    _require_schema({name: evaluation})
    return _write_page(
        path,
        "report.html.j2",
        coder=_coder(name, evaluation),
        headline=HEADLINE,
        compared=[n for n in COMPARED if n in evaluation["metrics"]],
        paired=list(PAIRED),
        names=NAMES,
        whole=whole,
    )


def write_report_index(
    evaluations: Mapping[str, Evaluation], path: Path | str, comparison: str | None = None
) -> Path:
    """Writes the page that leads to those of the coders, `<name>.html` beside it.

    `comparison` is where the page of `write_comparison` lies, relative to this one. Raises
    `UserError` if there is no evaluation, or one of another schema.
    """
    if not evaluations:
        raise UserError("There is no evaluation to report on; run `sae evaluate` first.")
    _require_schema(evaluations)
    return _write_page(
        path,
        "report_index.html.j2",
        evaluations=evaluations,
        won={name: won_by(evaluation["ladder"]) for name, evaluation in evaluations.items()},
        headline=HEADLINE,
        comparison=comparison,
    )


def _require_schema(evaluations: Mapping[str, Evaluation]) -> None:
    for name, evaluation in evaluations.items():
        if evaluation.get("schema") != 1:
            raise UserError(
                f"The evaluation of `{name}` has schema {evaluation.get('schema')!r}, not 1; "
                "run `sae evaluate` again."
            )


def write_comparison(comparison: Mapping[str, Any], path: Path | str) -> Path:
    """Writes what `compare` found: fronts as figures, all coders by L0, errors at equal L0."""
    from sae.metrics import plots

    pages = []
    for group in comparison["groups"]:
        coders = group["coders"]
        families = {name: coder["family"] for name, coder in coders.items()}
        figures = {}
        for error, label in ERROR_LABELS.items():
            front, behind = group["fronts"][error], group["behind"][error]
            points = [(n, coders[n]["l0"], coders[n][error]) for n in [*front, *behind]]
            if points:
                figures[error] = plots.front(points, label, front, families)
        by_l0 = sorted(coders, key=lambda n, c=coders: (c[n]["l0"]["value"] or 0.0, n))
        pages.append({**group, "figures": figures, "by_l0": by_l0})
    return _write_page(
        path,
        "compare.html.j2",
        groups=pages,
        labels=ERROR_LABELS,
        stability=comparison.get("stability", []),
    )


def write_tables(
    title: str, tables: Sequence[ReadTable], provenance: Mapping[str, Any], path: Path | str
) -> Path:
    """Writes a page of tables; `provenance` is of the form of `describe_report`."""
    return _write_page(path, "tables.html.j2", title=title, tables=tables, p=provenance)


def _write_page(path: Path | str, template: str, **content: Any) -> Path:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    from sae.metrics import plots

    environment = Environment(
        loader=FunctionLoader(lambda name: (files("sae.metrics") / name).read_text()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        interval=interval,
        named=named,
        described=described,
        count=plots.count,
        moment=moment,
    )
    return write_text(path, environment.get_template(template).render(**content))


def _coder(name: str, evaluation: Evaluation) -> dict[str, Any]:
    """What the template needs of one coder: its figures, and the metrics that a control wins."""
    from sae.metrics import plots, plots_error

    histograms, ladder = evaluation["histograms"], evaluation["ladder"]
    figures = {
        "fvu": _ladder(name, evaluation, "fvu", "FVU: variance left unexplained"),
        "delta_ce": _ladder(name, evaluation, "delta_ce", "ΔCE: nats lost per token"),
        "density": plots.density(histograms["log_density"]),
        "alive": plots.alive({name: evaluation["curves"]["alive"]}),
        "active": plots.active(histograms["l0"]),
    }
    intervals = evaluation["error_budget_details"]["intervals"]
    figures["budget"] = plots_error.budget(evaluation["error_budget"], intervals, PARTS)
    for group, rows in evaluation["breakdown"].items():
        figures[group] = plots_error.groups(rows, BREAKDOWNS[group])
    if "max_decoder_cosine" in histograms:
        figures["angles"] = plots.angles(histograms["max_decoder_cosine"], histograms["random"])
    if "encoder_decoder" in histograms:
        figures["alignment"] = plots.alignment(histograms["encoder_decoder"])
    return {
        "name": name,
        "evaluation": evaluation,
        "figures": figures,
        "won": won_by(ladder),
        "wins": wins(ladder),
        "by_value": {control for rung in ladder.values() for control in rung["by_value"]},
        "few": [name for name, rung in ladder.items() if is_few(rung.get("units"))],
        "fewest": MIN_UNITS,
        "parts": PARTS,
        "breakdowns": BREAKDOWNS,
    }


def _ladder(name: str, evaluation: Evaluation, metric: str, label: str) -> str | None:
    """The coder first, then its controls from best to worst, on the same tokens; ΔCE with the
    ablations as well.
    """
    from sae.metrics import plots

    metrics = evaluation["coder_beside_controls"] or evaluation["metrics"]
    controls = evaluation["controls"].items()
    others = [(NAMES.get(c, c), v[metric]) for c, v in controls if metric in v]
    if metric == "delta_ce":
        for ablation in ("mean", "zero"):
            ablated, clean = (metrics[n]["value"] for n in (f"ce_ablated_{ablation}", "ce_clean"))
            if ablated is not None and clean is not None:
                others.append((f"{ablation}-ablation", {"value": ablated - clean}))
    others = [row for row in others if row[1]["value"] is not None]
    if metrics[metric]["value"] is None:
        return None
    rows = [(name, metrics[metric]), *sorted(others, key=lambda row: row[1]["value"])]
    return plots.ladder(rows, label)


def number(value: float | None) -> str:
    """Four significant digits, no exponent where a person reads easily without one."""
    if value is None:
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 4 if value == 0 else max(0, 3 - math.floor(math.log10(abs(value))))
        text = f"{value:.{min(digits, 4)}f}"
        return text.rstrip("0").rstrip(".") if float(text) == int(float(text)) else text
    return f"{value:.2e}"


def interval(found: Mapping[str, Any]) -> str:
    low, high = found.get("low"), found.get("high")
    if low is None or high is None:
        return "no interval"
    return f"{number(low)} – {number(high)}"


def named(controls: Sequence[str]) -> str:
    """Controls as the pages call them."""
    return ", ".join(NAMES.get(control, control) for control in controls)


def described(corpus: Mapping[str, Any]) -> str:
    """A corpus in a few words: of a description that is a mapping, what is no list of its own."""
    said = corpus.get("description", "")
    if not isinstance(said, Mapping):
        return str(said)
    return ", ".join(str(value) for value in said.values() if not isinstance(value, Mapping))


def moment(value: str) -> str:
    return datetime.fromisoformat(value).strftime("%d %B %Y, %H:%M UTC")
