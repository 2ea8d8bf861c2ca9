"""Adam on unit-norm decoder rows."""

from typing import Any

import torch
from torch.nn import functional as F

from sae.coders import Coder


class CoderOptimizer:
    """Adam, with decoder rows held at unit norm unless the coder leaves them free.

    The gradient's component along each decoder row is removed before the step, since the
    renormalisation after it would undo that part and only disturb Adam's moments
    (Bricken et al. 2023, "Towards Monosemanticity", appendix).
    """

    def __init__(self, coder: Coder, grad_clip: float) -> None:
        self.coder, self.grad_clip = coder, grad_clip
        parameters = [p for p in coder.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(parameters, lr=0.0, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def step(self, rate: float) -> None:
        """One update from the gradients that are there, which it clears."""
        decoder = self.coder.W_dec_FD
        with torch.no_grad():
            if decoder.grad is not None and self.coder.unit_decoder:
                along_F = torch.einsum("fd,fd->f", decoder.grad, decoder)
                decoder.grad.addcmul_(along_F[:, None], decoder, value=-1)
            torch.nn.utils.clip_grad_norm_(self.coder.parameters(), self.grad_clip)
            self.adam.param_groups[0]["lr"] = rate
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)
            if self.coder.unit_decoder:
                F.normalize(decoder, dim=1, out=decoder.data)

    def forget(self, latents: torch.Tensor) -> None:
        """Sets Adam's moments of these latents to 0, in every parameter with a row per latent."""
        for name, parameter in self.coder.named_parameters():
            by_latent = name.rpartition("_")[2].startswith("F")
            if by_latent and parameter in self.adam.state:
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.adam.state[parameter][moment][latents] = 0

    def state_dict(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state)
