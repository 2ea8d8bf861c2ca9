"""One definition of every number that Loupe reports, and the evaluation that computes them.

found = evaluate(coder, store, lm)                 # the evaluation JSON
write_report("topk", found, "evaluation/topk.html")  # a page of one coder
compare({"topk": found, ...})                      # Pareto fronts, errors at equal L0
"""

from sae.metrics.compare import compare
from sae.metrics.evaluate import evaluate
from sae.metrics.known_answers import SelfTestFailure
from sae.metrics.registry import REGISTRY, Metric, formulas
from sae.metrics.report import write_comparison, write_report, write_report_index

__all__ = [
    "REGISTRY",
    "Metric",
    "SelfTestFailure",
    "compare",
    "evaluate",
    "formulas",
    "write_comparison",
    "write_report",
    "write_report_index",
]
