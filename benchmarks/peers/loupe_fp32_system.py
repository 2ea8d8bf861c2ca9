"""Loupe as on a CPU without bfloat16: candidates, too, come from a float32 product."""

import loupe_system
from spec import Spec
from torch import Tensor

ABOUT = loupe_system.ABOUT + ", candidates in float32"


class System(loupe_system.System):
    def __init__(self, spec: Spec, first_BD: Tensor) -> None:
        super().__init__(spec, first_BD)
        self.trainer.candidates = None
