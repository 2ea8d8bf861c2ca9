"""A running average of a coder's weights, to be saved in place of the last ones."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sae.coders import Coder
from sae.training.optimizer import has_latents


class WeightAverage:
    """After every step t, average ← d · average + (1 − d) · weights.

    d = min(decay, (1 + t) / (10 + t)): the smaller d of the first steps lets the average forget
    the initial weights. (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", keep such
    an average, too: appendix A.)
    """

    def __init__(self, coder: Coder, decay: float) -> None:
        self.coder, self.decay, self.steps = coder, decay, 0
        self.weights = {n: w.detach().clone() for n, w in coder.named_parameters()}

    def update(self) -> None:
        """Takes in the coder's present weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, weight in self.coder.named_parameters():
                self.weights[name].lerp_(weight, 1 - decay)

    def restart(self, latents: Tensor) -> None:
        """Takes these latents' weights as they are: they were replaced, and what they were before
        has no part in an average of what they are now."""
        with torch.no_grad():
            for name, weight in self.coder.named_parameters():
                if has_latents(name):
                    self.weights[name][latents] = weight[latents]

    def averaged(self) -> Coder:
        """A coder with the averaged weights; decoder rows at unit norm where the coder's are."""
        out = copy.deepcopy(self.coder)
        with torch.no_grad():
            for name, weight in out.named_parameters():
                weight.copy_(self.weights[name])
            if out.unit_decoder:
                out.W_dec_FD.copy_(F.normalize(out.W_dec_FD, dim=1))
        return out

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
