"""Names of the places in a GPT-2 where activations can be read or replaced.

They are TransformerLens's names, so that coders trained here and elsewhere mean the same place.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from sae.base.errors import UserError, nearest

Point = Literal[
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "mlp.hook_post",
]
POINTS: tuple[Point, ...] = get_args(Point)
_ORDER: tuple[Point, ...] = (
    "hook_resid_pre",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)


@dataclass(frozen=True)
class Site:
    """A point of one block. `resid_pre`: the block's input; `resid_mid`: after attention was
    added; `resid_post`: its output; `mlp.hook_post`: the MLP's neurons after their nonlinearity.
    """

    layer: int
    point: Point

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{self.point}"

    @property
    def when(self) -> tuple[int, int]:
        """Orders sites as a forward pass reaches them."""
        return self.layer, _ORDER.index(self.point)

    def width(self, d_model: int, d_mlp: int) -> int:
        return d_mlp if self.point == "mlp.hook_post" else d_model


def parse_site(name: str, layers: int | None = None) -> Site:
    """`"blocks.8.hook_resid_pre"` -> `Site(8, "hook_resid_pre")`.

    Raises `UserError` for an unknown point, or a layer outside [0, `layers`).
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if not found or found[2] not in POINTS:
        guess = nearest(found[2], POINTS) if found else ""
        raise UserError(
            f"Unknown site `{name}`; it must be `blocks.LAYER.POINT` with POINT one of "
            f"{', '.join(POINTS)}.{guess}"
        )
    layer = int(found[1])
    if layers is not None and layer >= layers:
        raise UserError(
            f"Site `{name}` is out of range: the model has {layers} blocks, "
            f"`blocks.0` to `blocks.{layers - 1}`."
        )
    return Site(layer, found[2])  # pyright: ignore[reportArgumentType]
