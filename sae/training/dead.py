"""Latents that have stopped firing, and the auxiliary loss that brings them back."""

import torch
from torch import Tensor

from sae.coders import Coder, Codes
from sae.kernels import Kernels, Support


class DeadLatents:
    """Counts, for each latent, the tokens since it last fired."""

    def __init__(self, width: int, after: int, device: torch.device | None = None) -> None:
        self.after = after
        self.silent_F = torch.zeros(width, dtype=torch.int64, device=device)

    def update(self, codes: Codes) -> None:
        """Counts a batch of tokens. An entry with activation 0 is not a firing."""
        self.silent_F += codes.rows
        self.silent_F[codes.support.indices_N[codes.acts_N.detach() > 0]] = 0

    @property
    def dead(self) -> Tensor:
        """Latent numbers, ascending."""
        return (self.silent_F >= self.after).nonzero()[:, 0]


def auxk_loss(
    coder: Coder,
    x_BD: Tensor,
    x_hat_BD: Tensor,
    dead: Tensor,
    k: int,
    kernels: Kernels,
    target_BD: Tensor | None = None,
) -> Tensor:
    """How badly the k best dead latents of each token model what the living ones left over.

        ‖e − ê‖² / ‖e‖²,   e = x − x̂ (a constant),   ê = Σ_{top-k dead} relu(pre_i) · W_dec[i]

    For a coder of two sites x̂ is to be compared with `target_BD`.

    Gao et al. 2024, appendix A.2. Only dead latents are ranked, ê has no bias, and the gradient
    reaches the encoder and the decoder of the dead latents alone.
    """
    with torch.no_grad():
        residual_BD = (x_BD if target_BD is None else target_BD) - x_hat_BD
        centre_D = coder.input_centre().detach()
        centred_BD = x_BD - centre_D
        pre_Bd = torch.addmm(coder.b_enc_F[dead], centred_BD, coder.W_enc_FD[dead].T)
        best = pre_Bd.topk(min(k, len(dead)), dim=1, sorted=False).indices
        support = Support.fixed(dead[best], coder.d_sae)
    pre_N = kernels.encode_at(x_BD, centre_D, coder.W_enc_FD, coder.b_enc_F, support)
    estimate_BD = kernels.decode(torch.relu(pre_N), coder.W_dec_FD, support)
    left = (residual_BD - estimate_BD).square().sum()
    return left / residual_BD.square().sum().clamp_min(torch.finfo(left.dtype).tiny)
