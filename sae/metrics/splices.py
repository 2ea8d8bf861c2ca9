"""Checks of the losses: what is spliced in must cost what is known of it beforehand.

Against `LanguageModel`'s own full forward pass, and, of ablations, against a vector that is
spliced in like a coder.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.coders import Coder
from sae.metrics import fidelity
from sae.metrics.continuation import Replace, constant
from sae.metrics.known_answers import SelfTest
from sae.metrics.sample import Sample
from sae.metrics.sums import DocumentSums

if TYPE_CHECKING:
    from sae.lm import LanguageModel

NATS = 1e-5


@torch.inference_mode()
def splices(
    coder: Coder, lm: "LanguageModel", site: str, source: str, few: Sample
) -> list[SelfTest]:
    """Losses with something known spliced in, against `LanguageModel`'s own full forward pass."""
    tokens_ST = torch.from_numpy(few.tokens_ST).to(lm.device)
    scored_ST = torch.from_numpy(few.scored_ST)
    wanted_ST = scored_ST[:, :-1] & scored_ST[:, 1:]

    def loss() -> float:
        return float(lm.token_losses(tokens_ST).cpu()[wanted_ST].double().mean())

    clean = loss()
    captured = lm.capture(tokens_ST, list({site, source}))
    x_ND, given_ND = (captured[s][:, 1:].flatten(0, 1).float() for s in (site, source))
    error_ND = x_ND - coder(given_ND)
    read = source if source != site else None
    with lm.splice(site, lambda rows: coder(rows) + error_ND, read):
        restored = loss()
    with lm.splice(site, coder, read):
        coded = loss()
    methods: dict[str, dict[str, Replace]] = {site: {"identity": lambda x: x.clone()}}
    methods.setdefault(source, {})["coder"] = coder  # by what they read
    sums = {}
    for read_from, same in methods.items():
        sums |= fidelity.language_model_sums(lm, site, same, {}, few, source=read_from)
    found = {name: s.total("ce") / s.total("count") for name, s in sums.items()}
    return [
        SelfTest(
            "splice_error_restored",
            restored - clean,
            NATS,
            "splicing x̂ + e must give the clean loss",
        ),
        SelfTest(
            "splice_identity",
            found["identity"] - clean,
            NATS,
            "splicing x itself must cost ΔCE 0",
        ),
        SelfTest(
            "splice_identity_kl",
            sums["identity"].total("kl") / sums["identity"].total("count"),
            NATS,
            "splicing x itself must have KL 0",
        ),
        SelfTest(
            "splice_agrees",
            found["coder"] - coded,
            10 * NATS,  # a near-tie may select another latent in a batch of another size
            "the loss with the coder must be that of the model's own splice",
        ),
    ]


@torch.inference_mode()
def ablations(
    lm: "LanguageModel", site: str, source: str, few: Sample, mean_D: Tensor
) -> list[SelfTest]:
    """ΔCE and KL of both ablations, against the same vectors spliced in as a coder is.

    An ablation takes a short cut: its KL is found without the logits, and in a residual stream
    one row stands for all. So this checks the KL of coders too, by another formula.
    """
    vectors = {"mean": mean_D, "zero": torch.zeros_like(mean_D)}
    methods: dict[str, Replace] = {name: constant(value) for name, value in vectors.items()}
    sums = fidelity.language_model_sums(lm, site, methods, vectors, few, source=source)
    return [_ablation(name, sums[name]) for name in vectors]


def _ablation(name: str, sums: DocumentSums) -> SelfTest:
    """The larger of how far CE and KL are off, relative to 1 nat or to what they are if more."""
    count, off = sums.total("count"), 0.0
    for term in ("ce", "kl") if count else ():
        spliced, ablated = (sums.total(t) / count for t in (term, f"{term}_{name}"))
        off = max(off, abs(spliced - ablated) / max(1.0, abs(spliced)))
    return SelfTest(
        f"ablation_{name}",
        off if count else None,
        10 * NATS,
        f"ΔCE and KL of the {name}-ablation must be those of that vector spliced in",
        None if count else "none of these sequences has two scored tokens in a row",
    )
