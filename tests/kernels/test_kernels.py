"""The sums of every backend against the reference, forward and backward, and by gradcheck."""

import pytest
import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.kernels import Support, get_kernels
from sae.kernels.codes import Codes
from tests.kernels.places import PLACES, REFERENCE, kernels_at, moved

B, D, F, K = 24, 6, 20, 3
HALF = (torch.bfloat16, torch.float16)
AT_PLACES = pytest.mark.parametrize(("backend", "device"), PLACES)


def make_inputs(dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    """x, b_dec, W and b, with gradients."""
    torch.manual_seed(0)
    drawn = [torch.randn(shape, dtype=torch.float64) for shape in [(B, D), (D,), (F, D), (F,)]]
    return [t.to(device, dtype).requires_grad_() for t in drawn]


def make_decoder(dtype: torch.dtype, device: str) -> Tensor:
    drawn = torch.randn(F, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return drawn.to(device, dtype).requires_grad_()


def make_supports() -> dict[str, Support]:
    torch.manual_seed(1)
    scores = torch.randn(B, F)
    with_empty = scores.clone()
    with_empty[3:6] = -9
    return {
        "fixed": Support.fixed(scores.topk(K, dim=1).indices, F),
        "ragged": Support.of_mask(scores > 1),
        "empty rows": Support.of_mask(with_empty > 1),
        "one latent": Support.fixed(torch.full((B, 1), 7), F),
        "no rows": Support.of_mask(scores[:0] > 1),
    }


@AT_PLACES
@pytest.mark.parametrize("name", make_supports())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_backend_agrees_with_reference(
    backend: str, device: str, name: str, dtype: torch.dtype
) -> None:
    support = moved(make_supports()[name], device)
    results = []
    for kernels in (REFERENCE, kernels_at(backend, device)):
        x, b_dec, W, b = make_inputs(dtype, device)
        x = x[: support.rows].detach().requires_grad_()
        W_dec = make_decoder(dtype, device)
        pre = kernels.encode_at(x, b_dec, W, b, support)
        own = kernels.of_latents(b, support)
        out = kernels.decode(torch.relu(pre), W_dec, support)
        error, residual = kernels.decode_error(torch.relu(pre), W_dec, b_dec, x, support)
        (out.square().sum() + (pre * own).sum() + 3 * error).backward()
        results.append([pre, own, out, error, residual, *(t.grad for t in (x, b_dec, W, b, W_dec))])
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype is torch.float32 else {}
    for truth, ours in zip(*results, strict=True):
        ours = ours.to_dense() if ours.is_sparse else ours
        torch.testing.assert_close(ours, truth, **close)


@AT_PLACES
@pytest.mark.parametrize("name", make_supports())
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_rounded_once_or_refused(
    backend: str, device: str, name: str, dtype: torch.dtype
) -> None:
    """Sums are those of the same half-precision numbers in float32, rounded at their end."""
    support = moved(make_supports()[name], device)
    kernels = kernels_at(backend, device)
    x, b_dec, W, b = (t.detach() for t in make_inputs(dtype, device))
    x, b_dec = x[: support.rows], torch.zeros_like(b_dec)
    acts = torch.rand(len(support.indices_N), device=device).to(dtype)
    if dtype not in kernels.dtypes:
        with pytest.raises(UserError, match="Choose the backend `gather`"):
            kernels.encode_at(x, b_dec, W, b, support)
        with pytest.raises(UserError, match="float32 and float64"):
            kernels.decode(acts, W, support)
        return
    pairs = []
    for own, cast in ((kernels, dtype), (REFERENCE, torch.float32)):
        rounded = [t.to(cast) for t in (x, b_dec, W, torch.zeros_like(b))]
        pre = own.encode_at(*rounded, support)
        out = own.decode(acts.to(cast), rounded[2], support)
        pairs.append((pre.float(), out.float()))
    for ours, truth in zip(*pairs, strict=True):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ours, truth, rtol=eps, atol=eps)


# Triton's interpreter is too slow for hundreds of evaluations; its sums stand under the same
# autograd functions and agree with the reference's own gradients in float64 (above).
@pytest.mark.parametrize("backend", ["sparse", "cpu", "gather"])
@pytest.mark.parametrize("name", ["fixed", "ragged", "empty rows", "one latent"])
def test_gradcheck(backend: str, name: str) -> None:
    support, kernels = make_supports()[name], kernels_at(backend, "cpu")
    x, *others = make_inputs()
    assert torch.autograd.gradcheck(
        lambda x, d, W, b: kernels.encode_at(x, d, W, b, support), (x, *others)
    )
    assert torch.autograd.gradcheck(lambda b: kernels.of_latents(b, support), others[-1:])
    acts = torch.rand(len(support.indices_N), dtype=torch.float64).requires_grad_()
    W_dec = torch.randn(F, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, W: kernels.decode(a, W, support), (acts, W_dec))
    given = acts, W_dec, others[0], x
    assert torch.autograd.gradcheck(lambda *g: kernels.decode_error(*g, support)[0], given)


@AT_PLACES
def test_a_batch_that_touches_few_latents_gives_their_rows_alone(backend: str, device: str) -> None:
    torch.manual_seed(7)
    rows, k, width, d = 6, 3, 500, 8
    x = torch.randn(rows, d).to(device)
    W_enc, W_dec = (torch.randn(width, d).to(device) for _ in range(2))
    index = torch.stack([torch.randperm(40)[:k] + 100 for _ in range(rows)])
    found = []
    for kernels in (kernels_at(backend, device), REFERENCE):
        weights = [w.clone().requires_grad_() for w in (W_enc, W_dec)]
        bias = torch.zeros(width, device=device, requires_grad=True)
        support = Support.fixed(index.to(device), width)
        pre = kernels.encode_at(x, torch.zeros_like(x[0]), weights[0], bias, support)
        out = kernels.decode(torch.relu(pre), weights[1], support)
        (out - x).square().sum().backward()
        found.append([*(w.grad for w in weights), bias.grad])
    for ours, truth in zip(*found, strict=True):
        if ours.ndim == 2:
            assert ours.is_sparse
            assert ours._indices()[0].tolist() == sorted(set(index.flatten().tolist()))
        torch.testing.assert_close(ours.to_dense(), truth, rtol=1e-4, atol=1e-4)


@AT_PLACES
def test_the_gradient_of_b_dec_reads_touched_rows_alone(backend: str, device: str) -> None:
    """What is in a row that no entry names would show: 0 times NaN is NaN."""
    torch.manual_seed(8)
    width, d = 3000, 8
    x, W = torch.randn(6, d).to(device), torch.randn(width, d)
    index = torch.stack([torch.randperm(width)[:70] for _ in range(6)])
    unnamed = torch.ones(width, dtype=torch.bool)
    unnamed[index.flatten()] = False
    support = moved(Support.fixed(index, width), device)
    found = []
    for kernels, fill in ((kernels_at(backend, device), torch.nan), (REFERENCE, 0.0)):
        weight = torch.where(unnamed[:, None], fill, W).to(device)
        b_dec = torch.zeros(d, device=device, requires_grad=True)
        pre = kernels.encode_at(x, b_dec, weight, torch.zeros(width, device=device), support)
        pre.square().sum().backward()
        found.append(b_dec.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-2)


def test_sums_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the backend `gather`, which holds the rows of some entries at a time."""
    support, kernels = make_supports()["ragged"], get_kernels("gather")
    x, _, W, _ = (t.detach() for t in make_inputs())
    values = torch.rand(len(support.indices_N), dtype=torch.float64)

    def sums() -> list[Tensor]:
        return [
            kernels.gathered_dots(x, W, support),
            kernels.rows_sum(values, W, support),
            kernels.latents_sum(values, x, support),
        ]

    whole = sums()
    monkeypatch.setattr("sae.kernels.chunks.GATHERED", 5 * D)
    for part, all_at_once in zip(sums(), whole, strict=True):
        torch.testing.assert_close(part, all_at_once)


def test_codes_forms_agree() -> None:
    for support in make_supports().values():
        acts = torch.rand(len(support.indices_N)) - 0.2
        acts[acts < 0] = 0
        codes = Codes(acts, support)
        dense = codes.dense()
        assert codes.l0().equal((dense != 0).sum(1))
        values, indices, offsets = codes.ragged()
        again = Codes(values, Support(indices, offsets, F)).dense()
        torch.testing.assert_close(again, dense)
        padded = torch.zeros(support.rows, F).scatter_add(1, codes.indices_BK, codes.acts_BK)
        torch.testing.assert_close(padded, dense)


@AT_PLACES
@pytest.mark.parametrize("name", ["fixed", "ragged"])
def test_rows_may_lie_otherwise_in_memory(backend: str, device: str, name: str) -> None:
    """Column-major activations and targets, as a transposed array has them."""
    support = moved(make_supports()[name], device)
    results = []
    for turned in (False, True):
        kernels = kernels_at(backend, device)
        x, b_dec, W, b = (t.detach() for t in make_inputs(torch.float32, device))
        W_dec = make_decoder(torch.float32, device).detach().requires_grad_()
        if turned:
            x = x.T.contiguous().T
        pre = kernels.encode_at(x, b_dec, W, b, support)
        error, residual = kernels.decode_error(torch.relu(pre), W_dec, b_dec, x, support)
        error.backward()
        results.append([pre, error, residual, W_dec.grad])
    for plain, other in zip(*results, strict=True):
        plain, other = (t.to_dense() if t.is_sparse else t for t in (plain, other))
        torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-5)


@AT_PLACES
@pytest.mark.parametrize("candidates", HALF)
def test_candidates_of_either_half_precision(
    backend: str, device: str, candidates: torch.dtype
) -> None:
    x, _, W, b = (t.detach() for t in make_inputs(torch.float32, device))
    found, pre = kernels_at(backend, device).row_topk(x, W, b, K, candidates)
    truth, _ = REFERENCE.row_topk(x, W, b, K)
    assert torch.equal(found.sort(dim=1).values.cpu(), truth.sort(dim=1).values.cpu())
    torch.testing.assert_close(pre, (x @ W.T + b).gather(1, found))
