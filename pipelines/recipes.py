"""Published recipes: settings of a coder that `recipe: NAME` fills in; what is given wins.

Lengths are shares of the training, so that a recipe scales with it.
"""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # Bricken et al. 2023, "Towards Monosemanticity": b_dec starts at the geometric median, and dead
    # latents are resampled after 25, 50, 75 and 100 thousand steps; dead is who was silent for
    # 12,500. Of 8 billion activations in batches of 8,192, which are 976,562 steps; a constant
    # learning rate, and no clipping. configs/towards-monosemanticity.yaml has what differs still.
    "towards-monosemanticity": {
        "architecture": "relu",
        "resample": (0.0256, 0.0512, 0.0768, 0.1024),
        "resample_window": 0.0128,
        "centre": "geometric_median",
        "grad_clip": 0.0,
        "warmup": 0.0,
        "decay": 0.0,
    },
    # Anthropic, Circuits Updates, April 2024, "Update on how we train SAEs": free decoder norms,
    # the penalty rises over the first 5 % of steps, the rate falls over the last 20 %, the gradient
    # of the summed loss is clipped at norm 1. docs/training.md has what differs still.
    "anthropic-april-2024": {
        "architecture": "relu_unconstrained",
        "l1": 5.0,
        "l1_warmup": 0.05,
        "grad_clip": 1.0,
        "grad_clip_of": "summed",
        "warmup": 0.0,
        "decay": 0.2,
    },
}
