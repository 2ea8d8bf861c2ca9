"""What only a GPU can show of the kernels: `make test-gpu`."""

import pytest
import torch

from sae.kernels import Support, get_kernels
from sae.kernels.adam import RowGradient
from tests.kernels.places import needs_gpu
from tests.kernels.test_adam import adam_step

pytestmark = [pytest.mark.gpu, needs_gpu]


@pytest.mark.parametrize("backend", ["triton", "sparse"])
def test_offsets_beyond_31_bits(backend: str) -> None:
    """The last rows of a matrix of more than 2^31 weights (9 GB, and moments of 9 GB in all)."""
    D = 768
    F = 2**31 // D + 1000
    if torch.cuda.get_device_properties("cuda").total_memory < 36e9:
        pytest.skip("needs 36 GB of GPU memory")
    torch.manual_seed(0)
    kernels = get_kernels(backend, "cuda")  # pyright: ignore[reportArgumentType]
    few = torch.randn(500, D, device="cuda")
    W = torch.zeros(F, D, device="cuda")
    W[-500:] = few
    x = torch.randn(16, D, device="cuda")
    index = torch.randint(500, (16, 4), device="cuda")
    near, far = Support.fixed(index, 500), Support.fixed(index + F - 500, F)
    acts = torch.rand(64, device="cuda")
    dots = kernels.gathered_dots(x, few, near)
    torch.testing.assert_close(kernels.gathered_dots(x, W, far), dots)
    torch.testing.assert_close(kernels.rows_sum(acts, W, far), kernels.rows_sum(acts, few, near))
    given = x[0], x, far
    for ours, truth in zip(
        kernels.decode_residual(acts, W, *given),
        kernels.decode_residual(acts, few, x[0], x, near),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth)
    sums = kernels.latents_sum(acts, x, far)
    torch.testing.assert_close(sums[-500:], kernels.latents_sum(acts, x, near))
    del sums
    rows = torch.arange(500, device="cuda")
    state, small = (
        [w, *(torch.zeros_like(w, dtype=torch.bfloat16) for _ in range(2))] for w in (W, few)
    )
    for weights, first in ((state, F - 500), (small, 0)):
        gradient = RowGradient(torch.ones(500, D, device="cuda"), rows + first)
        kernels.adam_rows(weights[0], gradient, *weights[1:], adam_step(1))
    torch.testing.assert_close(W[-500:], few)


def test_kernels_work_on_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    kernels = get_kernels("triton", "cuda:1")
    W, x = torch.randn(50, 8, device="cuda:1"), torch.randn(6, 8, device="cuda:1")
    support = Support.fixed(torch.randint(50, (6, 3), device="cuda:1"), 50)
    expected = (x[:, None] * W[support.indices_N.view(6, 3)]).sum(2).flatten()
    torch.testing.assert_close(kernels.gathered_dots(x, W, support), expected)


@pytest.mark.parametrize("backend", ["triton", "sparse"])
def test_sums_per_latent_are_the_same_every_time(backend: str) -> None:
    """Of thousands of entries of one latent, where atomics would add in another order."""
    torch.manual_seed(0)
    kernels = get_kernels(backend, "cuda")  # pyright: ignore[reportArgumentType]
    index = torch.randint(8, (20000, 4), device="cuda")
    support, values = Support.fixed(index, 8), torch.randn(80000, device="cuda")
    first = kernels.latent_totals(values, support)
    for _ in range(20):
        assert torch.equal(kernels.latent_totals(values, support), first)
    exact = torch.zeros(8, dtype=torch.float64, device="cuda")
    exact.index_add_(0, index.flatten(), values.double())
    torch.testing.assert_close(first.double(), exact, rtol=1e-4, atol=1e-2)
