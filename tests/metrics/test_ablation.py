"""What is taken out is exactly what the latents wrote."""

import pytest
import torch

from sae.base.errors import UserError
from sae.coders import Coder
from sae.metrics.ablation import Ablation, EqualNorm, RandomError


@pytest.fixture
def x_BD() -> torch.Tensor:
    return torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


def test_ablating_nothing_changes_nothing_and_all_leaves_the_error(
    coder: Coder, x_BD: torch.Tensor
) -> None:
    assert torch.equal(Ablation(coder, [])(x_BD), x_BD)
    everything = Ablation(coder, range(128))(x_BD)
    assert torch.allclose(everything, x_BD - coder(x_BD) + coder.b_dec_D, atol=1e-5)


def test_one_latent_is_taken_out_where_it_fires(coder: Coder, x_BD: torch.Tensor) -> None:
    acts_BF = coder.encode(x_BD).dense()
    latent = int((acts_BF > 0).sum(0).argmax())
    removed = x_BD - Ablation(coder, [latent])(x_BD)
    assert torch.allclose(removed, acts_BF[:, [latent]] * coder.W_dec_FD[latent], atol=1e-5)


def test_a_random_error_of_equal_norm(coder: Coder, x_BD: torch.Tensor) -> None:
    ablation = Ablation(coder, range(40))
    own, random = ablation(x_BD) - x_BD, EqualNorm(ablation, seed=1)(x_BD) - x_BD
    assert torch.allclose(own.norm(dim=1), random.norm(dim=1), atol=1e-5)
    fires = own.norm(dim=1) > 0.1
    assert torch.cosine_similarity(own[fires], random[fires]).abs().mean() < 0.3


def test_every_batch_gets_noise_of_its_own(coder: Coder, x_BD: torch.Tensor) -> None:
    """Else a hundred batches are one draw of noise a hundred times."""
    for method in (EqualNorm(Ablation(coder, range(40)), seed=1), RandomError(coder, seed=1)):
        first, second = method(x_BD) - x_BD, method(x_BD) - x_BD
        assert torch.allclose(first.norm(dim=1), second.norm(dim=1), atol=1e-5)
        long = first.norm(dim=1) > 0.1
        assert torch.cosine_similarity(first[long], second[long]).abs().mean() < 0.3
    same = [RandomError(coder, seed=1)(x_BD) for _ in range(2)]
    assert torch.equal(*same)


def test_a_random_error_is_as_long_as_the_coders_token_by_token(
    coder: Coder, x_BD: torch.Tensor
) -> None:
    error, random = x_BD - coder(x_BD), RandomError(coder, seed=1)(x_BD) - x_BD
    assert torch.allclose(error.norm(dim=1), random.norm(dim=1), rtol=1e-5)
    assert error.norm(dim=1).std() > 0.1  # lengths differ: equal ones would prove little
    assert torch.cosine_similarity(error, random).abs().mean() < 0.3


def test_a_random_error_of_a_perfect_coder_is_none(x_BD: torch.Tensor) -> None:
    assert torch.equal(RandomError(lambda x: x)(x_BD), x_BD)


def test_latents_that_are_not_there_are_refused(coder: Coder) -> None:
    with pytest.raises(UserError, match="128 were to be ablated; this coder has 0 to 127"):
        Ablation(coder, [3, 128])
