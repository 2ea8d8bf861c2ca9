"""Every backend against the reference, forward and backward, and by gradcheck."""

import math
import warnings
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.kernels import (
    Support,
    get_kernels,
    select_above,
    select_batchtopk,
    select_positive,
    select_topk,
)
from sae.kernels.adam import AdamStep, RowGradient
from sae.kernels.codes import Codes

B, D, F, K = 24, 6, 20, 3
BACKENDS = ["sparse", "cpu", "triton"]
if find_spec("triton") is None:
    BACKENDS.remove("triton")
    warnings.warn("Triton is not installed: its kernels are not tested.", stacklevel=1)
REFERENCE = get_kernels("reference")


def _inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(B, D), (D,), (F, D), (F,)]
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]


def _supports() -> dict[str, Support]:
    torch.manual_seed(1)
    scores = torch.randn(B, F)
    ragged = Support.of_mask(scores > 1)
    with_empty = scores.clone()
    with_empty[3:6] = -9
    return {
        "fixed": Support.fixed(scores.topk(K, dim=1).indices, F),
        "ragged": ragged,
        "empty rows": Support.of_mask(with_empty > 1),
        "one latent": Support.fixed(torch.full((B, 1), 7), F),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", _supports())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_backend_agrees_with_reference(backend: str, name: str, dtype: torch.dtype) -> None:
    support = _supports()[name]
    results = []
    for kernels in (REFERENCE, get_kernels(backend)):  # pyright: ignore[reportArgumentType]
        x, b_dec, W, b = _inputs(dtype)
        W_dec = torch.randn(F, D, dtype=dtype, generator=torch.Generator().manual_seed(3))
        W_dec.requires_grad_()
        pre = kernels.encode_at(x, b_dec, W, b, support)
        out = kernels.decode(torch.relu(pre), W_dec, support)
        error, residual = kernels.decode_error(torch.relu(pre), W_dec, b_dec, x, support)
        (out.square().sum() + pre.sum() + 3 * error).backward()
        results.append([pre, out, error, residual, *(t.grad for t in (x, b_dec, W, b, W_dec))])
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype is torch.float32 else {}
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, **close)


# Triton's interpreter is too slow for hundreds of evaluations; its sums stand under the same
# autograd functions and agree with the reference's own gradients in float64 (above).
@pytest.mark.parametrize("backend", ["sparse", "cpu"])
@pytest.mark.parametrize("name", _supports())
def test_gradcheck(backend: str, name: str) -> None:
    support, kernels = _supports()[name], get_kernels(backend)  # pyright: ignore
    assert torch.autograd.gradcheck(
        lambda x, d, W, b: kernels.encode_at(x, d, W, b, support), _inputs()
    )
    acts = torch.rand(len(support.indices_N), dtype=torch.float64).requires_grad_()
    W_dec = torch.randn(F, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, W: kernels.decode(a, W, support), (acts, W_dec))
    y, b_dec, _, _ = _inputs()
    given = acts, W_dec, b_dec, y
    assert torch.autograd.gradcheck(lambda *g: kernels.decode_error(*g, support)[0], given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [20, 700, 5000])
@pytest.mark.parametrize("kind", ["random", "ties", "negative", "constant"])
def test_row_topk_is_that_of_the_reference(backend: str, width: int, kind: str) -> None:
    torch.manual_seed(2)
    x, W = torch.randn(30, 8), torch.randn(width, 8)
    b = {"negative": torch.full((width,), -50.0)}.get(kind, torch.randn(width))
    if kind == "ties":
        W[1::2] = W[:-1:2]
        b[1::2] = b[:-1:2]
    if kind == "constant":
        x, b = torch.zeros_like(x), torch.ones(width)
    index, pre = get_kernels(backend).row_topk(x, W, b, 7)  # pyright: ignore
    truth = REFERENCE.row_topk(x, W, b, 7)[1]
    torch.testing.assert_close(pre.sort(1).values, truth.sort(1).values)
    torch.testing.assert_close(pre, (x @ W.T + b).gather(1, index))
    assert all(len(set(row)) == 7 for row in index.tolist())


def adam_step(t: int, unit: bool = False) -> AdamStep:
    """The numbers of step t at a rate of 0.01, gradients halved."""
    return AdamStep(0.5, 0.01 / (1 - 0.9**t), 1 / math.sqrt(1 - 0.999**t), 1e-8, unit, seed=t)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", [True, False])
def test_adam_is_that_of_torch_and_of_the_reference(backend: str, unit: bool) -> None:
    torch.manual_seed(4)
    start = torch.nn.functional.normalize(torch.randn(50, 9), dim=1)
    theirs = start.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.01)
    kernels = get_kernels(backend)  # pyright: ignore[reportArgumentType]
    ours, truth = (
        [start.clone(), torch.zeros_like(start), torch.zeros_like(start)] for _ in range(2)
    )
    for t in range(1, 6):
        grad = torch.randn(50, 9)
        gradient = RowGradient(grad)
        expected = (grad.square().sum(1) - (grad * ours[0]).sum(1).square()).sum()
        if unit:
            found = kernels.tangent_square(gradient, ours[0])
            assert found == pytest.approx(float(expected), rel=1e-4)
        kernels.adam_rows(ours[0], gradient, *ours[1:], adam_step(t, unit))
        REFERENCE.adam_rows(truth[0], gradient, *truth[1:], adam_step(t, unit))
        theirs.grad = grad * 0.5
        adam.step()
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)
    if unit:
        torch.testing.assert_close(ours[0].norm(dim=1), torch.ones(50))
    else:
        torch.testing.assert_close(ours[0], theirs.detach())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unit", [True, False])
def test_adam_on_some_rows_is_that_of_the_reference(backend: str, unit: bool) -> None:
    torch.manual_seed(5)
    kernels = get_kernels(backend)  # pyright: ignore[reportArgumentType]
    start = torch.nn.functional.normalize(torch.randn(50, 9), dim=1)
    state = [start, torch.randn(50, 9) * 0.1, torch.rand(50, 9) * 0.1]
    ours, truth = ([t.clone() for t in state] for _ in range(2))
    rows = torch.tensor([0, 3, 17, 49])
    slept = torch.tensor([0, 1, 40, 5000], dtype=torch.int32)
    gradient = RowGradient(torch.randn(4, 9), rows, slept)
    if unit:
        square = kernels.tangent_square(gradient, ours[0])
        assert square == pytest.approx(REFERENCE.tangent_square(gradient, ours[0]), rel=1e-4)
    kernels.adam_rows(ours[0], gradient, *ours[1:], adam_step(9, unit))
    REFERENCE.adam_rows(truth[0], gradient, *truth[1:], adam_step(9, unit))
    others = torch.ones(50, dtype=torch.bool)
    others[rows] = False
    for a, b, before in zip(ours, truth, state, strict=True):
        torch.testing.assert_close(a, b)
        assert torch.equal(a[others], before[others])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("unit", [True, False])
def test_a_row_that_slept_ends_where_dense_adam_takes_it(backend: str, unit: bool) -> None:
    """At constant rate and bias correction nothing but rounding differs, where rows are free;
    unit rows are renormalised once after their sleep, instead of after each of its steps."""
    torch.manual_seed(6)
    kernels = get_kernels(backend)  # pyright: ignore[reportArgumentType]
    step = replace(adam_step(10_000, unit), step_size=1e-3)
    start = torch.nn.functional.normalize(torch.randn(30, 8), dim=1)
    lazy, dense = ([start.clone(), *torch.zeros(2, 30, 8)] for _ in range(2))
    updated = torch.zeros(30, dtype=torch.int32)
    for t in range(1, 60):
        rows = torch.arange(30) if t == 59 else (torch.rand(30) < 0.2).nonzero()[:, 0]
        grad = torch.zeros(30, 8)
        grad[rows] = torch.randn(len(rows), 8)
        kernels.adam_rows(dense[0], RowGradient(grad), *dense[1:], step)
        slept = t - 1 - updated[rows]
        kernels.adam_rows(lazy[0], RowGradient(grad[rows], rows, slept), *lazy[1:], step)
        updated[rows] = t
    for a, b in zip(lazy, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-4 if unit else 1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_moments_in_bfloat16_are_right_on_average(backend: str) -> None:
    """v falls by a thousandth per step: rounding to nearest would leave it where it is."""
    kernels = get_kernels(backend)  # pyright: ignore[reportArgumentType]
    W = torch.zeros(64, 512)
    m = torch.full((64, 512), 0.3, dtype=torch.bfloat16)
    v = torch.full((64, 512), 0.7, dtype=torch.bfloat16)
    m_exact, v_exact = float(m[0, 0]), float(v[0, 0])
    gradient = RowGradient(torch.full((64, 512), 0.02))
    for t in range(1, 101):
        kernels.adam_rows(W, gradient, m, v, adam_step(t))
        m_exact = 0.9 * m_exact + 0.1 * 0.01
        v_exact = 0.999 * v_exact + 0.001 * 0.01**2
    assert float(m.float().mean()) == pytest.approx(m_exact, rel=2e-3)
    assert float(v.float().mean()) == pytest.approx(v_exact, rel=2e-3)
    assert v.unique().numel() > 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_that_touches_few_latents_gives_their_rows_alone(backend: str) -> None:
    torch.manual_seed(7)
    rows, k, width, d = 6, 3, 500, 8
    x = torch.randn(rows, d)
    W_enc, W_dec = (torch.randn(width, d) for _ in range(2))
    index = torch.stack([torch.randperm(40)[:k] + 100 for _ in range(rows)])
    found = []
    for kernels in (get_kernels(backend), REFERENCE):  # pyright: ignore[reportArgumentType]
        weights = [w.clone().requires_grad_() for w in (W_enc, W_dec)]
        support = Support.fixed(index, width)
        bias = torch.zeros(d), weights[0], torch.zeros(width)
        acts = torch.relu(kernels.encode_at(x, *bias, support))
        (kernels.decode(acts, weights[1], support) - x).square().sum().backward()
        found.append([w.grad for w in weights])
    for ours, truth in zip(*found, strict=True):
        if backend != "reference":
            assert ours.is_sparse
            assert ours._indices()[0].tolist() == sorted(set(index.flatten().tolist()))
        torch.testing.assert_close(ours.to_dense(), truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_backend_of_another_device_is_a_sentence(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    device = "cuda" if backend == "cpu" else "cpu"
    with pytest.raises(UserError, match=f"cannot work on `{device}`"):
        get_kernels(backend, device)  # pyright: ignore[reportArgumentType]


def test_topk_selects_the_largest() -> None:
    x, _, W, b = (t.detach() for t in _inputs())
    support = select_topk(x, W, b, K)
    wanted = (x @ W.T + b).topk(K, dim=1).indices
    assert support.indices_N.view(B, K).sort(1).values.equal(wanted.sort(1).values)


@pytest.mark.parametrize("shift", [0.0, 10.0], ids=["centred", "far from 0"])
def test_low_precision_candidates_give_the_same_choice(shift: float) -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(512, 64), torch.randn(2048, 64), torch.randn(2048) * 0.1
    exact = select_topk(x, W, b, 16).indices_N.view(512, 16)
    moved, b = x + shift, b - shift * W.sum(1)
    fast = select_topk(moved, W, b, 16, torch.bfloat16).indices_N.view(512, 16)
    same = sum(len(set(a.tolist()) & set(e.tolist())) for a, e in zip(fast, exact, strict=True))
    assert same / exact.numel() >= 0.999


@pytest.mark.parametrize("skew", [0.0, 5.0], ids=["even rows", "rows far over 2k"])
def test_batchtopk_is_a_global_topk(skew: float) -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(B, D), torch.randn(F, D), torch.randn(F)
    x[:2] *= 1 + skew
    support, threshold = select_batchtopk(x, W, b, K)
    scores = x @ W.T + b
    values = scores.flatten().topk(B * K).values
    assert len(support.indices_N) == B * K
    assert threshold == pytest.approx(float(values.min()))
    chosen = scores[support.row_of_N, support.indices_N]
    torch.testing.assert_close(chosen.sort().values, values.sort().values)


def test_batchtopk_never_takes_negative_scores() -> None:
    x, W = torch.randn(B, D), torch.randn(F, D)
    support, threshold = select_batchtopk(x, W, torch.full((F,), -100.0), K)
    assert len(support.indices_N) == 0
    assert threshold == 0
    assert support.rows == B


def test_positive_selection_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, W, b = (t.detach() for t in _inputs())
    whole = select_positive(x, W, b, 0.3)
    monkeypatch.setattr("sae.kernels.select.CHUNK_VALUES", 5 * F)
    parts = select_positive(x, W, b, 0.3)
    assert parts.indices_N.equal(whole.indices_N)
    assert parts.offsets_B1.equal(whole.offsets_B1)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_above_a_floor_is_told_by_the_first_rows(share: float) -> None:
    x, _, W, b = (t.detach() for t in _inputs())
    scores, floor = x @ W.T + b, b - 0.3
    first = (scores > floor)[: -(-len(x) // 16)].float().mean()
    support = select_above(x, W, b, floor, share)
    assert (support is None) == bool(first > share)
    if support is not None:
        row, latent = (scores > floor).nonzero(as_tuple=True)
        assert support.indices_N.equal(latent)
        assert support.row_of_N.equal(row)
        torch.testing.assert_close(support.pre_N, scores[row, latent])


def test_codes_forms_agree() -> None:
    for support in _supports().values():
        acts = torch.rand(len(support.indices_N)) - 0.2
        acts[acts < 0] = 0
        codes = Codes(acts, support)
        dense = codes.dense()
        assert codes.l0().equal((dense != 0).sum(1))
        values, indices, offsets = codes.ragged()
        again = Codes(values, Support(indices, offsets, F)).dense()
        torch.testing.assert_close(again, dense)
        padded = torch.zeros(B, F).scatter_add(1, codes.indices_BK, codes.acts_BK)
        torch.testing.assert_close(padded, dense)


def test_unknown_backend_is_a_sentence() -> None:
    with pytest.raises(UserError, match="`sparse`"):
        get_kernels("spars")  # pyright: ignore[reportArgumentType]
