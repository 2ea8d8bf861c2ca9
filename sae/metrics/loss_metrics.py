"""The numbers that are made of the language model's losses; `fidelity` takes the sums."""

import numpy as np

from sae.metrics.registry import metric
from sae.metrics.sums import Sums


@metric("fidelity", "nats per token", "lower")
def ce_clean(s: Sums) -> np.ndarray:
    """CE = E[−log p(next token)] of the unchanged model."""
    return s["ce_clean"] / s["count"]


@metric("fidelity", "nats per token", "lower")
def ce_spliced(s: Sums) -> np.ndarray:
    """CE with x̂ in the place of x at every position but 0."""
    return s["ce"] / s["count"]


@metric("fidelity", "nats per token", "lower")
def delta_ce(s: Sums) -> np.ndarray:
    """ΔCE = CE(x̂ spliced in) − CE(clean).

    What the model loses by hearing the coder's version: the headline of fidelity.
    """
    return (s["ce"] - s["ce_clean"]) / s["count"]


@metric("fidelity", "nats per token", "lower")
def kl(s: Sums) -> np.ndarray:
    """E KL(p ‖ p̂) = E Σ_v p(v) (log p(v) − log p̂(v)).

    p the clean model's next-token distribution, p̂ with x̂ spliced in; unlike ΔCE it cannot be
    flattered by errors that happen to favour the true token.
    """
    return s["kl"] / s["count"]


@metric("fidelity", "share of loss", "higher")
def ce_recovered_mean(s: Sums) -> np.ndarray:
    """(CE_mean − CE_x̂) / (CE_mean − CE_clean), CE_mean with x replaced by its mean.

    1: nothing lost; 0: no better than the constant mean of the train split.
    """
    return (s["ce_mean"] - s["ce"]) / (s["ce_mean"] - s["ce_clean"])


@metric("fidelity", "share of loss", "higher")
def ce_recovered_zero(s: Sums) -> np.ndarray:
    """(CE_zero − CE_x̂) / (CE_zero − CE_clean), CE_zero with x replaced by 0.

    The most published form; zeros in the residual stream are so harmful that it saturates near
    0.99 and hides differences: read `delta_ce` and `ce_recovered_mean` first.
    """
    return (s["ce_zero"] - s["ce"]) / (s["ce_zero"] - s["ce_clean"])


@metric("fidelity", "share of divergence", "higher")
def kl_recovered_mean(s: Sums) -> np.ndarray:
    """1 − KL(p ‖ p̂) / KL(p ‖ p_mean), p_mean with x replaced by its mean."""
    return 1 - s["kl"] / s["kl_mean"]


@metric("fidelity", "share of divergence", "higher")
def kl_recovered_zero(s: Sums) -> np.ndarray:
    """1 − KL(p ‖ p̂) / KL(p ‖ p_zero), p_zero with x replaced by 0.

    SAELens's `kl_div_score`, there with position 0 replaced as well.
    """
    return 1 - s["kl"] / s["kl_zero"]


@metric("error", "nats per token", "lower")
def kl_random_error(s: Sums) -> np.ndarray:
    """E KL(p ‖ p') with x + ε spliced in, ε of a random direction and of the length of x − x̂."""
    return s["random_kl"] / s["count"]


@metric("error", "nats per token", "lower")
def delta_ce_random_error(s: Sums) -> np.ndarray:
    """ΔCE with x + ε spliced in, ε of a random direction and of the length of x − x̂."""
    return (s["random_ce"] - s["ce_clean"]) / s["count"]


@metric("error", "ratio", "lower")
def kl_error_ratio(s: Sums) -> np.ndarray:
    """KL of the coder's error / KL of a random error of equal length, on the same tokens.

    Above 1 the coder errs in directions that matter more to the model than chance (Gurnee 2024,
    "SAE reconstruction errors are (empirically) pathological").
    """
    return s["kl"] / s["random_kl"]


@metric("comparison", "nats per token", "higher")
def delta_ce_lift(s: Sums) -> np.ndarray:
    """ΔCE of this control − ΔCE of the coder, on the same tokens and resamples.

    Above 0 the coder is better than the control.
    """
    return (s["ce"] - s["coder_ce"]) / s["count"]


@metric("fidelity", "nats per token")
def ce_ablated_mean(s: Sums) -> np.ndarray:
    """CE with the mean of the train split in the place of x."""
    return s["ce_mean"] / s["count"]


@metric("fidelity", "nats per token")
def ce_ablated_zero(s: Sums) -> np.ndarray:
    """CE with 0 in the place of x."""
    return s["ce_zero"] / s["count"]
