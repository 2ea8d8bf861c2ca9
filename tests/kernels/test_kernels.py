"""Every backend against the reference, forward and backward, and by gradcheck."""

import pytest
import torch
from torch import Tensor

from sae.base.errors import UserError
from sae.kernels import Support, get_kernels, select_batchtopk, select_positive, select_topk
from sae.kernels.codes import Codes

B, D, F, K = 24, 6, 20, 3
BACKENDS = ["sparse", "cpu"]
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
        (out.square().sum() + pre.sum()).backward()
        results.append([pre, out, *(t.grad for t in (x, b_dec, W, b, W_dec))])
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", _supports())
def test_gradcheck(backend: str, name: str) -> None:
    support, kernels = _supports()[name], get_kernels(backend)  # pyright: ignore
    assert torch.autograd.gradcheck(
        lambda x, d, W, b: kernels.encode_at(x, d, W, b, support), _inputs()
    )
    acts = torch.rand(len(support.indices_N), dtype=torch.float64).requires_grad_()
    W_dec = torch.randn(F, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, W: kernels.decode(a, W, support), (acts, W_dec))


def test_topk_selects_the_largest() -> None:
    x, _, W, b = (t.detach() for t in _inputs())
    support = select_topk(x, W, b, K)
    wanted = (x @ W.T + b).topk(K, dim=1).indices
    assert support.indices_N.view(B, K).sort(1).values.equal(wanted.sort(1).values)


def test_low_precision_candidates_give_the_same_choice() -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(512, 64), torch.randn(2048, 64), torch.randn(2048) * 0.1
    exact = select_topk(x, W, b, 16).indices_N.view(512, 16)
    fast = select_topk(x, W, b, 16, torch.bfloat16).indices_N.view(512, 16)
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
