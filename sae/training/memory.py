"""How much memory a coder's training takes, from its shapes: told before any of it is taken."""

from dataclasses import dataclass

from sae.coders import Coder
from sae.training.dead import COPIES, most_revived
from sae.training.optimizer import moment_dtype
from sae.training.settings import Settings

FLOAT = 4  # bytes of a weight, gradient or score


@dataclass(frozen=True)
class Need:
    """Bytes of one coder: `kept` while it trains, `at_work` in addition within its step."""

    kept: int
    at_work: int


def bytes_needed(coder: Coder, settings: Settings) -> Need:
    """What a training on a CPU takes at most, up to what is small beside it.

    Kept: weights, Adam's two moments, gradients, the average, the encoder in bfloat16 for the
    selection, examples for resampling. At work: dense scores, copies of dead latents' rows. Only
    shapes are looked at: the coder may be on torch's `meta` device, where its weights take no
    memory.
    """
    kept = coder.gradient_values(settings.batch) * FLOAT + 2 * coder.W_enc_FD.numel()
    for name, weight in coder.named_parameters():
        moments = 2 * moment_dtype(name, weight, settings.moments).itemsize
        average = FLOAT if settings.ema else 0
        kept += weight.numel() * (FLOAT + moments + average)
    if settings.resample:  # as many examples as latents may turn out to be dead
        kept += coder.W_enc_FD.numel() * FLOAT
    at_work = coder.dense_values(settings.batch) * FLOAT
    if coder.uses_auxk and settings.auxk_coefficient:  # all latents may be dead at first
        revived = min(coder.d_sae, most_revived(coder))
        at_work += COPIES * revived * max(coder.d_in, coder.d_out) * FLOAT
    return Need(kept, at_work)
