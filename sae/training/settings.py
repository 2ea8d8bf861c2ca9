"""The few numbers that decide a training, and the rules behind their defaults."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sae.base.errors import UserError
from sae.training.centre import Centre

Moments = Literal["auto", "float32", "bfloat16"]
Loss = Literal["per_dimension", "summed"]


@dataclass(frozen=True)
class Settings:
    """How a coder is trained. Lengths of training are in steps of `batch` tokens.

    `learning_rate=None` follows the n^(-1/2) rule of Gao et al. 2024 (section 2.3): the best
    rate falls with the square root of the number of latents.
    """

    steps: int
    batch: int = 1024
    learning_rate: float | None = None
    warmup: float = 0.05  # share of steps, linear from 0
    decay: float = 0.3  # share of steps at the end, linear to 0
    auxk_coefficient: float = 1 / 32  # Gao et al. 2024, appendix A.2
    auxk_k: int | None = None  # latents that model the residual; None: D / 2
    dead_after: int | None = None  # silent tokens that make a latent dead; None: `dead_tokens`
    grad_clip: float = 1.0  # largest norm of a coder's gradient; 0: it is not clipped
    grad_clip_of: Loss = "per_dimension"  # whose gradient: ‖x − x̂‖² / D (trained on), ‖x − x̂‖²
    centre: Centre = "mean"  # where b_dec starts
    ema: float | None = None  # of the weights, per step; the average is what is saved
    moments: Moments = "auto"  # dtype of Adam's; auto: bfloat16 for more than 2^28 weights
    resample: tuple[float, ...] = ()  # when dead latents start again, in shares of the training
    resample_window: float = 0.0125  # share of the training without firing that makes one dead
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "dead_after"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        for name in ("learning_rate", "auxk_k"):
            value = getattr(self, name)
            if value is not None and not value > 0:  # NaN is not
                raise UserError(f"`{name}` is {value}; it must be above 0.")
        if not self.grad_clip >= 0:
            raise UserError(
                f"`grad_clip` is {self.grad_clip}; it is the largest norm of a gradient, above 0, "
                "or 0 for none."
            )
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise UserError(
                f"`warmup` {self.warmup} and `decay` {self.decay} are shares of the training; "
                "together they must not exceed 1."
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(
                f"`ema` is {self.ema}; it is the share of the average that stays at each step, "
                "between 0 and 1 (0.999, say)."
            )
        for name, kind in (("moments", Moments), ("centre", Centre), ("grad_clip_of", Loss)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(
                    f"`{name}` is `{getattr(self, name)}`; it must be one of "
                    f"{', '.join(get_args(kind))}."
                )
        if not all(0 < share < 1 for share in self.resample) or not 0 < self.resample_window <= 1:
            raise UserError(
                f"`resample` {list(self.resample)} and `resample_window` {self.resample_window} "
                "are shares of the training, above 0, the former below 1 (who starts again at the "
                "end is not trained) and the latter at most 1."
            )

    def clipped_at(self, d_out: int) -> float:
        """The largest norm of the gradient of the loss per dimension; 0: it is not clipped."""
        return self.grad_clip / (d_out if self.grad_clip_of == "summed" else 1)

    @property
    def dead_tokens(self) -> int:
        """`dead_after`, or by default a tenth of the training, at most 10 million tokens.

        The latter is the window of Gao et al. 2024; a short training would never come to it, and
        revive nothing.
        """
        if self.dead_after is not None:
            return self.dead_after
        return max(1, min(LONGEST_SILENCE, self.steps * self.batch // 10))

    def peak_rate(self, d_sae: int) -> float:
        """The learning rate after warm-up."""
        if self.learning_rate is not None:
            return self.learning_rate
        return BASE_RATE * math.sqrt(BASE_WIDTH / d_sae)

    def rate(self, step: int, d_sae: int) -> float:
        """The learning rate of a step: linear warm-up, plateau, linear decay to 0."""
        rise = (step + 1) / max(1.0, self.warmup * self.steps)
        fall = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.peak_rate(d_sae) * max(0.0, min(1.0, rise, fall))


LONGEST_SILENCE = 10_000_000
BASE_WIDTH = 2**14
BASE_RATE = 1e-3  # at BASE_WIDTH; docs/training.md has the comparison that chose it
