"""Random sequences shown twice, and what copying them costs a model with anything spliced in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sae.coders import Coder
from sae.metrics.ablation import Ablation, EqualNorm
from sae.metrics.continuation import Continuation, Replace
from sae.metrics.estimate import estimate_mean, estimate_ratio
from sae.metrics.steps import Step, no_step

if TYPE_CHECKING:
    from sae.lm import LanguageModel

RANDOM_SETS = 4  # of other latents, for each size and kind
RUNS = 2 + 2 * RANDOM_SETS  # through the model, for each size: the features, the sets, equal norm
NEIGHBOURS = 20  # the random features are drawn from so many that are nearest in density
BATCH_TOKENS = 4096  # run through the model at a time
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Repeats:
    """[BOS, s, s]: S random sequences s of length L, each shown twice: `tokens_ST`, T = 2L + 1.

    `other_ST` is [BOS, s', s] with other sequences s', `another_ST` [BOS, s'', s]: nothing repeats
    in either, and they differ by chance alone. Read are positions 1 … L − 1 (the first occurrence)
    and L + 1 … 2L − 1 (the second): the same tokens before the same next tokens, which can be
    foreseen only in the second of `tokens_ST`.
    """

    tokens_ST: Tensor
    other_ST: Tensor
    another_ST: Tensor
    length: int

    @classmethod
    def draw(cls, lm: "LanguageModel", sequences: int, length: int, seed: int) -> "Repeats":
        special = {lm.bos_id, getattr(lm.tokenizer, "eos_token_id", None)}
        ordinary = np.setdiff1d(np.arange(lm.vocab_size), [i for i in special if i is not None])
        drawn = np.random.default_rng(seed).choice(ordinary, (3, sequences, length))
        other_SL, chosen_SL, another_SL = drawn
        bos_S1 = np.full((sequences, 1), lm.bos_id)
        twice, once, again = (
            torch.from_numpy(np.concatenate([bos_S1, before_SL, chosen_SL], axis=1))
            for before_SL in (chosen_SL, other_SL, another_SL)
        )
        return cls(twice, once, again, length)

    @property
    def first(self) -> slice:
        return slice(1, self.length)

    @property
    def second(self) -> slice:
        return slice(self.length + 1, 2 * self.length)

    @property
    def predictions(self) -> int:
        """Tokens that are predicted in each half, over all sequences."""
        return len(self.tokens_ST) * (self.length - 1)

    @property
    def at_once(self) -> int:
        """Sequences that are run through the model together."""
        return max(1, BATCH_TOKENS // self.tokens_ST.shape[1])


def equal_density(
    features: npt.NDArray[np.int64],
    density_F: Floats,
    pool: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """For each feature, one of the latents of `pool` nearest to it in log density; none twice."""
    left, chosen = list(pool), []
    for feature in features:
        if not left:
            break
        distance = np.abs(np.log(density_F[left]) - np.log(density_F[feature]))
        near = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        chosen.append(left.pop(int(rng.choice(near))))
    return np.array(chosen, np.int64)


def equal_firing(
    features: npt.NDArray[np.int64],
    density_F: Floats,
    pool: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Latents of `pool` that fire as often as the features do in sum; all of it, if too few."""
    order = rng.permutation(pool)
    before = np.cumsum(density_F[order]) - density_F[order]
    return np.asarray(order[before < density_F[features].sum()])


class CopyingBench:
    """Losses of copying, with anything spliced in, per sequence."""

    def __init__(
        self,
        coder: Coder,
        lm: "LanguageModel",
        site: str,
        repeats: Repeats,
        seed: int,
        step: Step = no_step,
    ) -> None:
        self.coder, self.repeats, self.seed, self._step = coder, repeats, seed, step
        self.rest = Continuation(lm, site)
        parts = repeats.tokens_ST.split(repeats.at_once)
        self.batches = [(part, self.rest.start(part)) for part in parts]
        self.plain = self.run(None)

    @torch.inference_mode()
    def run(self, replace: Replace | None) -> dict[str, Floats]:
        """Per sequence: mean loss (nats) of the first and second half, share copied right."""
        found: dict[str, list[Tensor]] = {"first": [], "second": [], "copied": []}
        head = self.rest.lm.model.lm_head
        halves = {"first": self.repeats.first, "second": self.repeats.second}
        for tokens_ST, x_STD in self.batches:
            hidden_STD = self.rest.finish(tokens_ST, x_STD, replace)
            for name, part in halves.items():
                logits_STV = head(hidden_STD[:, part]).float()
                target_ST = tokens_ST[:, part.start + 1 : part.stop + 1].to(logits_STV.device)
                losses = F.cross_entropy(logits_STV.mT, target_ST, reduction="none")
                found[name].append(losses.cpu().double().mean(1))
                if name == "second":
                    right = (logits_STV.argmax(-1) == target_ST).cpu()
                    found["copied"].append(right.double().mean(1))
        self._step()
        return {name: torch.cat(parts).numpy() for name, parts in found.items()}

    def clean(self) -> dict[str, Any]:
        plain, tokens = self.plain, self.repeats.predictions
        return {
            "loss_first": estimate_mean(plain["first"], tokens, self.seed),
            "loss_second": estimate_mean(plain["second"], tokens, self.seed),
            "copied": estimate_mean(plain["copied"], tokens, self.seed),
        }

    def ablate(
        self,
        features: npt.NDArray[np.int64],
        density_F: Floats,
        pool: npt.NDArray[np.int64],
    ) -> dict[str, Any]:
        """One set of features, random sets that fire alike, and random errors of equal norm."""
        rng = np.random.default_rng([self.seed, len(features)])
        sets = {
            way.__name__: [way(features, density_F, pool, rng) for _ in range(RANDOM_SETS)]
            for way in (equal_density, equal_firing)
        }
        ablation = Ablation(self.coder, features)
        runs = {
            "features": [ablation],
            **{way: [Ablation(self.coder, s) for s in drawn] for way, drawn in sets.items()},
            "equal_norm": [EqualNorm(ablation, self.seed)],
        }
        return {
            "latents": len(features),
            "firing": float(density_F[features].sum()),
            "random_sets": {
                way: {
                    "latents": float(np.mean([len(s) for s in drawn])),
                    "firing": float(np.mean([density_F[s].sum() for s in drawn])),
                }
                for way, drawn in sets.items()
            },
            **{name: self.effect(ways) for name, ways in runs.items()},
        }

    def effect(self, ways: Sequence[Replace]) -> dict[str, Any]:
        """Mean over several ways of ablating, with the interval over sequences."""
        runs = [self.run(way) for way in ways]
        mean = {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}
        plain, tokens = self.plain, self.repeats.predictions
        lost = mean["second"] - plain["second"]
        return {
            "delta_second": estimate_mean(lost, tokens, self.seed),
            "delta_first": estimate_mean(mean["first"] - plain["first"], tokens, self.seed),
            "copied": estimate_mean(mean["copied"], tokens, self.seed),
            "removed": estimate_ratio(lost, plain["first"] - plain["second"], tokens, self.seed),
            "copied_removed": estimate_ratio(
                plain["copied"] - mean["copied"], plain["copied"], tokens, self.seed
            ),
        }
