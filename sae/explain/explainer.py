"""Explains features with a language model and tests what it said; nothing is paid twice.

explainer = Explainer(index, [3, 17], Endpoint(url, model), "runs/demo/explanations/topk.jsonl")
explainer.estimate()      # what would be sent; nothing is
report = explainer.run()  # asks
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sae.base.errors import UserError
from sae.explain.answers import explanation_of, verdicts_of
from sae.explain.endpoint import Client, Endpoint, Unanswered
from sae.explain.journal import Journal, Record
from sae.explain.passages import Gatherer
from sae.explain.plan import STAND_IN, Estimate, Planner, Request, estimate
from sae.explain.report import build_report, records_before
from sae.features.index import FeatureIndex

Tell = Callable[[str, int, int], object]
"""Called as tell(what, done, total)."""
Keep = Callable[[dict[str, Any]], object]
"""Called with the report."""
FAILURES = 3
"""Requests that get no answer one after the other, each after all its tries: then it is no use."""


class Explainer:
    """Of some features of one index.

    Args:
        features: ids; those that fire in too few held-out contexts are left out (`left_out`).
        journal: file of the answers; made if need be.
        passages: in each test of each feature at most, half of them true.
        seed: of the passages that are drawn.
        before: file of an earlier report. If it is of the same settings, what it has of other
            features stays in this one's, and what it has whole is not asked about again.
        ask_again: asks anew where the answer that is kept could not be read.

    Raises:
        UserError: an unknown feature, an index without held-out text, a damaged journal or report.
    """

    def __init__(
        self,
        index: FeatureIndex,
        features: Iterable[int],
        endpoint: Endpoint,
        journal: Path | str,
        *,
        passages: int = 40,
        seed: int = 0,
        before: Path | str | None = None,
        ask_again: bool = False,
    ) -> None:
        if passages < 10:
            raise UserError(f"{passages} passages are too few for a score; give at least 10.")
        self.index, self.endpoint, self.ask_again = index, endpoint, ask_again
        self.passages, self.seed = passages, seed
        self.usage = dict.fromkeys(("requests", "prompt_tokens", "completion_tokens"), 0)
        self._chosen = {index.check(feature) for feature in features}
        self._report_before = before
        self.before = self._records_before()
        self.journal = Journal(journal)
        self.planner = Planner((endpoint.name, endpoint.model), seed)
        gatherer = Gatherer(index, passages, seed)
        wanted = sorted(self._chosen - set(self.before))
        found = {feature: gatherer.material(feature) for feature in wanted}
        self.materials = {f: material for f, material in found.items() if material is not None}
        self.left_out = [f for f, material in found.items() if material is None]
        self.failed: list[str] = []
        self._in_a_row = 0
        self._asked: set[str] = set()

    def estimate(self) -> Estimate:
        """What `run` will send at most, given the answers that are kept."""
        explanations = self._explanations(unknown=STAND_IN)
        missing = [r for r in self._explaining() if self._is_missing(r)]
        missing += [r for r in self._scoring(explanations) if self._is_missing(r)]
        return estimate(missing, self.endpoint.answer_tokens)

    def run(self, tell: Tell | None = None, keep: Keep | None = None) -> dict[str, Any]:
        """Asks what is missing, and returns the report (keys: docs/metrics.md).

        `keep` writes the report in the place of `before`: it is called while no other process can,
        and what others put there since this one began is in the report.

        Raises:
            UserError: the endpoint refuses, or answers no more; what was answered is kept.
        """
        with self.journal:
            _run(self._ask_all(tell or (lambda what, done, total: None)))
            report = self.report()
            if keep is not None:
                keep(report)
        return report

    def report(self) -> dict[str, Any]:
        """From the answers that are kept, and from what is in the earlier report by now."""
        explanations = self._explanations(unknown=None)
        answered = {
            feature: [
                (request, self._kept(request))
                for request in self.planner.scoring(material, explanations)
            ]
            for feature, material in self.materials.items()
        }
        return build_report(self, self.before | self._records_before(), explanations, answered)

    @property
    def settings(self) -> dict[str, Any]:
        """What two reports must share to be parts of one."""
        return {
            "endpoint": self.endpoint.name,
            "model": self.endpoint.model,
            "passages": self.passages,
            "seed": self.seed,
            "coder_hash": self.index.meta["coder_hash"],
            "rows": self.index.meta["rows"],
        }

    def _records_before(self) -> dict[int, dict[str, Any]]:
        """What the earlier report has of features that need not be asked about."""
        path = self._report_before
        found = records_before(path, self.settings) if path else {}
        return {f: r for f, r in found.items() if f not in self._chosen or not r["unscored"]}

    def _explaining(self) -> Iterator[Request]:
        return (self.planner.explaining(material) for material in self.materials.values())

    def _scoring(self, explanations: Mapping[int, str | None]) -> Iterator[Request]:
        for material in self.materials.values():
            yield from self.planner.scoring(material, explanations)

    def _explanations(self, unknown: str | None) -> dict[int, str | None]:
        """Of every feature; `unknown` where there is no answer yet, None where it had none."""
        found: dict[int, str | None] = {f: r["explanation"] for f, r in self.before.items()}
        for feature, material in self.materials.items():
            request = self.planner.explaining(material)
            found[feature] = unknown if self._is_missing(request) else self._kept(request)
        return found

    def _kept(self, request: Request) -> Any:
        """What the kept answer says; None if there is none, or it cannot be read."""
        record = self.journal.answers.get(request.key)
        if record is None:
            return None
        if request.passages:
            return verdicts_of(record.content, len(request.passages))
        return explanation_of(record.content)

    def _is_missing(self, request: Request) -> bool:
        if request.key not in self.journal.answers:
            return True
        again = self.ask_again and request.key not in self._asked
        return again and self._kept(request) is None

    async def _ask_all(self, tell: Tell) -> None:
        async with Client(self.endpoint) as client:
            await self._ask("explanations", client, self._explaining, tell)
            explanations = self._explanations(unknown=None)
            await self._ask("tests", client, lambda: self._scoring(explanations), tell)

    async def _ask(
        self, what: str, client: Client, requests: Callable[[], Iterator[Request]], tell: Tell
    ) -> None:
        """What is missing of the requests, several at a time."""
        total, done = sum(map(self._is_missing, requests())), 0
        queue = (request for request in requests() if self._is_missing(request))

        async def work() -> None:
            nonlocal done
            for request in queue:  # shared: each takes the next
                await self._answer(client, request)
                done += 1
                tell(what, done, total)

        workers = [asyncio.create_task(work()) for _ in range(self.endpoint.concurrency)]
        try:
            for worker in asyncio.as_completed(workers):
                await worker
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _answer(self, client: Client, request: Request) -> None:
        try:
            answer = await client.ask(request.messages)
        except Unanswered as reason:
            self.failed.append(str(reason))
            self._in_a_row += 1
            if self._in_a_row >= FAILURES:
                raise UserError(
                    f"{self.endpoint.name} does not answer ({reason}); the "
                    f"{len(self.journal.answers):,} answers in {self.journal.path} are kept: give "
                    "the same command again when it does."
                ) from None
            return
        self._in_a_row = 0
        self._asked.add(request.key)
        self.usage["requests"] += 1
        self.usage["prompt_tokens"] += answer.prompt_tokens or 0
        self.usage["completion_tokens"] += answer.completion_tokens or 0
        self.journal.add(Record(request.key, request.feature, request.part, **vars(answer)))


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Also from within a notebook, whose own event loop is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()
