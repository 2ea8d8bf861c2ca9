"""Every request of an explaining run, as a pure function of what is asked of which features.

explanation            one a feature, from train passages
detection, fuzzing     held-out passages, judged by the feature's own explanation
shuffled ...           the same passages, judged by another feature's explanation (the control)
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sae.base.files import sha256_json
from sae.explain.answers import LONGEST_EXPLANATION
from sae.explain.passages import Material, Passage
from sae.explain.prompts import (
    DETECT,
    FUZZ,
    Messages,
    estimated_tokens,
    explain_messages,
    judge_messages,
)

Test = Literal["detection", "fuzzing"]
TASKS: dict[Test, str] = {"detection": DETECT, "fuzzing": FUZZ}
PER_REQUEST = 10
"""Passages judged in one answer."""
SHUFFLED = "shuffled "
STAND_IN = "x" * LONGEST_EXPLANATION
"""For an explanation that is not there yet, when its requests are counted."""


@dataclass(frozen=True)
class Request:
    """One question. `passages`: those that are judged; none where an explanation is asked for."""

    key: str
    feature: int
    part: str
    messages: Messages
    passages: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """What is still to be asked. Prompt tokens are estimated (explanations at their longest),
    completion tokens their cap."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def cost(self, price_in: float, price_out: float) -> float:
        """For prices of a million tokens, if every answer is as long as it may be."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


class Planner:
    """`asked_of`: the endpoint and the model, which are a part of what makes two questions one."""

    def __init__(self, asked_of: tuple[str, str], seed: int = 0) -> None:
        self.asked_of, self.seed = asked_of, seed

    def explaining(self, material: Material) -> Request:
        return self._request(material.feature, "explanation", explain_messages(material.shown))

    def judging(self, material: Material, explanation: str, prefix: str = "") -> Iterator[Request]:
        """The requests of both tests; `prefix` `SHUFFLED` for another feature's explanation."""
        for test, task in TASKS.items():
            passages = getattr(material, test)
            parts = math.ceil(len(passages) / PER_REQUEST)
            for number in range(parts):
                some = tuple(passages[number::parts])
                messages = judge_messages(task, explanation, some)
                yield self._request(material.feature, prefix + test, messages, some)

    def scoring(
        self, material: Material, explanations: Mapping[int, str | None]
    ) -> Iterator[Request]:
        """All of a feature's tests; none if it has no explanation (None) to be tested."""
        own = explanations[material.feature]
        if own is None:
            return
        yield from self.judging(material, own)
        other = self.partner(material.feature, explanations)
        if other is not None:
            yield from self.judging(material, explanations[other] or "", SHUFFLED)

    def partner(self, feature: int, explanations: Mapping[int, str | None]) -> int | None:
        """The feature whose explanation is the control; None if no other has one.

        By lot: of each pair a number is made, and the smallest wins, so that few partners change
        when features are added.
        """
        others = np.array([f for f, text in explanations.items() if text and f != feature], int)
        if not len(others):
            return None
        lots = others.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        lots ^= np.uint64((feature * 0xBF58476D1CE4E5B9 + self.seed) % 2**64)
        lots = (lots ^ (lots >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        return int(others[np.argmin(lots ^ (lots >> np.uint64(32)))])

    def _request(
        self, feature: int, part: str, messages: Messages, passages: tuple[Passage, ...] = ()
    ) -> Request:
        return Request(sha256_json([*self.asked_of, messages]), feature, part, messages, passages)


def estimate(requests: Iterable[Request], answer_tokens: int) -> Estimate:
    sizes = [estimated_tokens(request.messages) for request in requests]
    return Estimate(len(sizes), sum(sizes), answer_tokens * len(sizes))
