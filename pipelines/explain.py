"""`sae explain`: features explained by a language model behind an endpoint, and the test of that.

    sae explain runs/demo --features 'density>1e-4' --endpoint http://localhost:8000/v1 --model NAME

No stage calls it. Says what would be sent and what it may cost, and sends nothing before it is told
to. Answers are kept in `explanations/<coder>.jsonl` as they come; the report is
`evaluation/mechanisms/<coder>.explanations.json`.
"""

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.markup import escape
from rich.table import Table

from pipelines.locks import at_work
from pipelines.progress import console, steps_progress, with_interval
from sae.base.errors import UserError
from sae.base.files import write_json
from sae.base.sums import seal
from sae.explain import Endpoint, Explainer
from sae.explain.plan import Estimate
from sae.explain.report import report_path
from sae.features import FeatureIndex, select


def explain(
    run: Path,
    coder: str,
    *,
    features: str | None,
    most: int,
    passages: int,
    price_in: float | None,
    price_out: float | None,
    seed: int,
    ask_again: bool,
    yes: bool,
    **asked: Any,
) -> None:
    """Estimates, asks for consent, asks the endpoint, writes and prints the report.

    `asked`: see `_endpoint`.
    """
    endpoint = _endpoint(**asked)
    with at_work(run, f"explain-{coder}"):
        index = FeatureIndex.open(run / "features" / coder)
        report = report_path(run, coder)
        explainer = Explainer(
            index,
            _chosen(index, features, most, seed),
            endpoint,
            run / "explanations" / f"{coder}.jsonl",
            passages=passages,
            seed=seed,
            before=report,
            ask_again=ask_again,
        )
        estimate = explainer.estimate()
        _say(explainer, estimate, price_in, price_out)
        if estimate.requests and not (yes or _consent()):
            console.print("Nothing was sent.")
            return

        def keep(found: dict[str, Any]) -> None:
            write_json(report, found)
            seal(run / "evaluation", [f"{report.parent.name}/{report.name}"])

        with steps_progress(f"explain {coder}") as tell:
            found = explainer.run(tell, keep)
        _print(found)
        console.print(f"{report}")


def _endpoint(
    endpoint: str | None, model: str | None, key_variable: str, **patience: Any
) -> Endpoint:
    if not endpoint or not model:
        raise UserError(
            "An explainer needs an endpoint and a model; give --endpoint URL (such as "
            "http://localhost:8000/v1) and --model NAME."
        )
    variable = None if key_variable.lower() == "none" else key_variable
    return Endpoint(endpoint, model, variable, **patience)


def _chosen(index: FeatureIndex, features: str | None, most: int, seed: int) -> list[int]:
    """A random sample of the living features that the filter selects."""
    found = select(index, features)
    living = found[index.table["count"].to_numpy()[found] > 0]
    if not len(living) or most < 1:
        raise UserError(
            f"No feature that fires is chosen by `{features or ''}` and --most {most}; choose some."
        )
    return np.sort(np.random.default_rng(seed).permutation(living)[:most]).tolist()


def _say(
    explainer: Explainer, estimate: Estimate, price_in: float | None, price_out: float | None
) -> None:
    to_ask, whole, out = len(explainer.materials), len(explainer.before), len(explainer.left_out)
    console.print(
        f"{to_ask} features to explain; {whole} are in the report already, {out} fire in too few "
        "held-out contexts, or in nearly all."
    )
    console.print(
        f"to send    {estimate.requests:,} requests to {escape(explainer.endpoint.name)} (model "
        f"{escape(explainer.endpoint.model)}), with text of the corpus"
    )
    console.print(
        f"about      {estimate.prompt_tokens:,} prompt tokens (more where text is not English), at "
        f"most {estimate.completion_tokens:,} completion tokens; retries apart"
    )
    if price_in is not None or price_out is not None:
        cost = estimate.cost(price_in or 0.0, price_out or 0.0)
        console.print(
            f"costs      about {cost:,.2f} at most, at {price_in or 0:g} and {price_out or 0:g}"
        )


def _consent() -> bool:
    if not sys.stdin.isatty():
        raise UserError(
            "Nothing was sent: this is no terminal where you could agree to it; give --yes to send."
        )
    return click.confirm("Send?", default=False)


def _print(report: dict[str, Any]) -> None:
    summary = report["summary"]
    table = Table(title=f"Explanations: {summary['explained']} of {summary['features']} features")
    for column in ("held-out", "explanation", "of another feature", "difference"):
        table.add_column(column, justify="left" if column == "held-out" else "right")
    for test in ("detection", "fuzzing"):
        for name, entries in summary[test].items():
            sides = ("explanation", "shuffled", "difference")
            title = f"{test}: {name.replace('_', ' ')}"
            table.add_row(title, *(with_interval(entries[side]) for side in sides))
    console.print(table)
    if summary["passages_unscored"] or report["requests_failed"]:
        console.print(
            f"{summary['passages_unscored']:,} passages unscored (answers that could not be read, "
            f"or none: {report['requests_failed']:,} requests failed)"
        )
