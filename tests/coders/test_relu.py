"""The penalties of both ReLU coders, their warm-up, and the folding of free decoder norms."""

import pytest
import torch

from sae.base.errors import UserError
from sae.coders import make_coder
from sae.coders.relu_unconstrained import DECODER_NORM
from sae.kernels import get_kernels


@pytest.mark.parametrize("architecture", ["relu", "relu_unconstrained"])
def test_penalty_follows_its_formula_and_warm_up(architecture: str) -> None:
    torch.manual_seed(0)
    coder = make_coder(architecture, 6, 20, l1=2.0, l1_warmup=0.1).double()
    coder.initialise(torch.randn(6), torch.Generator().manual_seed(1))
    coder.W_dec_FD.data *= torch.rand(20, 1, dtype=torch.float64) + 0.5
    x = torch.randn(50, 6, dtype=torch.float64)
    acts = ((x - coder.b_dec_D) @ coder.W_enc_FD.T + coder.b_enc_F).relu()
    norms = coder.W_dec_FD.norm(dim=1) if architecture == "relu_unconstrained" else 1.0
    wanted = (acts * norms).sum() / x.numel()
    for progress, factor in ((0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.9, 1.0)):
        coder.progress = progress
        penalty = coder.training_forward(x, get_kernels()).penalty
        torch.testing.assert_close(penalty, 2.0 * factor * wanted)


def test_the_scale_of_a_latent_does_not_change_the_unconstrained_loss() -> None:
    """Decoder row times c, encoder row and bias over c: nothing to gain, by construction."""
    torch.manual_seed(0)
    coder = make_coder("relu_unconstrained", 6, 20).double()
    coder.initialise(torch.randn(6), torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        coder.W_dec_FD.detach().norm(dim=1), torch.full((20,), DECODER_NORM, dtype=torch.float64)
    )
    x = torch.randn(50, 6, dtype=torch.float64)
    before = coder.training_forward(x, get_kernels())
    factors = torch.rand(20, dtype=torch.float64) + 0.5
    coder.W_dec_FD.data *= factors[:, None]
    coder.W_enc_FD.data /= factors[:, None]
    coder.b_enc_F.data /= factors
    after = coder.training_forward(x, get_kernels())
    torch.testing.assert_close(after.x_hat_BD, before.x_hat_BD)
    torch.testing.assert_close(after.penalty, before.penalty)


def test_folded_decoder_rows_have_unit_norm() -> None:
    coder = make_coder("relu_unconstrained", 6, 20)
    coder.initialise(torch.zeros(6), torch.Generator().manual_seed(1))
    coder.W_dec_FD.data[3] = 0
    folded = coder.folded(0.3)
    assert folded.architecture == "relu"
    norms = folded.W_dec_FD.norm(dim=1)
    assert norms[3] == 0
    torch.testing.assert_close(norms[4:], torch.ones(16))


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(UserError, match="l1 is -1"):
        make_coder("relu_unconstrained", 8, 16, l1=-1)
    with pytest.raises(UserError, match="share of the training"):
        make_coder("gated", 8, 16, l1_warmup=5)
