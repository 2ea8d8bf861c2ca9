"""The choice of active latents: exact, in low precision, over a batch, above a floor."""

import math

import pytest
import torch
from torch import Tensor

from sae.kernels import (
    chunks,
    get_kernels,
    select,
    select_above,
    select_batchtopk,
    select_positive,
    select_topk,
    sparse,
)
from tests.kernels.places import PLACES, REFERENCE, kernels_at
from tests.kernels.test_kernels import B, D, F, K, make_inputs
from tests.training.test_memory import Peak

AT_PLACES = pytest.mark.parametrize(("backend", "device"), PLACES)


@AT_PLACES
@pytest.mark.parametrize("width", [20, 700, 5000])
@pytest.mark.parametrize("kind", ["random", "ties", "negative", "constant"])
def test_row_topk_is_that_of_the_reference(
    backend: str, device: str, width: int, kind: str
) -> None:
    torch.manual_seed(2)
    x, W = torch.randn(30, 8), torch.randn(width, 8)
    b = {"negative": torch.full((width,), -50.0)}.get(kind, torch.randn(width))
    if kind == "ties":
        W[1::2] = W[:-1:2]
        b[1::2] = b[:-1:2]
    if kind == "constant":
        x, b = torch.zeros_like(x), torch.ones(width)
    x, W, b = (t.to(device) for t in (x, W, b))
    index, pre = kernels_at(backend, device).row_topk(x, W, b, 7)
    truth = REFERENCE.row_topk(x, W, b, 7)[1]
    torch.testing.assert_close(pre.sort(1).values, truth.sort(1).values)
    torch.testing.assert_close(pre, (x @ W.T + b).gather(1, index))
    assert all(len(set(row)) == 7 for row in index.tolist())


def _share_agreed(ours: Tensor, truth: Tensor) -> float:
    pairs = zip(ours.tolist(), truth.tolist(), strict=True)
    return sum(len(set(a) & set(b)) for a, b in pairs) / truth.numel()


@AT_PLACES
@pytest.mark.parametrize("far", [0.0, 10.0], ids=["centred", "far from 0"])
@pytest.mark.parametrize("k", [1, 32, 512])
def test_low_precision_candidates_give_the_same_choice(
    backend: str, device: str, k: int, far: float
) -> None:
    """At GPT-2's shape, biases as large as a transcoder's: ≥ 99.9 % are those of float64.

    In Triton's interpreter on few rows: so many programs of it take their time.
    """
    generator = torch.Generator().manual_seed(0)
    rows = 8 if (backend, device) == ("triton", "cpu") else 64
    x, W = (torch.randn(n, 768, generator=generator) for n in (rows, 16384))
    b = 5 * torch.randn(16384, generator=generator)
    mean = far * torch.randn(768, generator=generator)
    x, b = x + mean, b - W @ mean
    truth = (x.double() @ W.double().T + b).topk(k, dim=1)
    given = (t.to(device) for t in (x, W, b))
    index, pre = kernels_at(backend, device).row_topk(*given, k, torch.bfloat16)
    assert index.shape == (rows, k)
    assert _share_agreed(index, truth.indices) >= 0.999
    exact = (x.double() @ W.double().T + b).gather(1, index.cpu())
    torch.testing.assert_close(pre.cpu().double(), exact, rtol=1e-4, atol=2e-3)


@AT_PLACES
def test_runners_up_grow_with_k(backend: str, device: str) -> None:
    """Of 131,072 latents two dozen share one step of bfloat16 at the 512th: more than the eight
    runners-up that a small k is given."""
    assert [sparse.slack(k) for k in (1, 32, 64, 128, 512)] == [8, 8, 8, 8, 32]
    k, width = 512, 131_072
    generator = torch.Generator().manual_seed(0)
    rows = 4 if (backend, device) == ("triton", "cpu") else 32
    x = torch.randn(rows, 64, generator=generator)
    W = 0.1 * torch.randn(width, 64, generator=generator)  # the 512th score is just above 2
    truth = (x.double() @ W.double().T).topk(k, dim=1)
    given = (t.to(device) for t in (x, W, torch.zeros(width)))
    index, _ = kernels_at(backend, device).row_topk(*given, k, torch.bfloat16)
    assert _share_agreed(index, truth.indices) >= 0.999


@AT_PLACES
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("latent", [0, 13])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_nan_is_above_all_as_in_torch(
    backend: str, device: str, sign: float, latent: int, dtype: torch.dtype | None
) -> None:
    """Whatever its sign bit, so that a latent that is spoilt shows in what comes out."""
    x, _, W, b = (t.detach().float() for t in make_inputs())
    b[latent] = torch.copysign(torch.tensor(torch.nan), torch.tensor(sign))
    x, W, b = (t.to(device) for t in (x, W, b))
    kernels = kernels_at(backend, device)
    index, pre = kernels.row_topk(x, W, b, K, dtype)
    assert ((index == latent).sum(1) == 1).all()
    assert pre.isnan().equal(index == latent)
    support, smallest = select_batchtopk(x, W, b, K, dtype, kernels)
    assert (support.indices_N == latent).sum() == B
    assert math.isnan(smallest)


@AT_PLACES
def test_as_many_as_there_are_latents_can_be_chosen(backend: str, device: str) -> None:
    x, _, W, b = (t.detach().float().to(device) for t in make_inputs())
    index, _ = kernels_at(backend, device).row_topk(x, W, b, F, torch.bfloat16)
    assert index.sort(1).values.equal(torch.arange(F, device=device).expand(B, F))


def test_topk_selects_the_largest() -> None:
    x, _, W, b = (t.detach() for t in make_inputs())
    support = select_topk(x, W, b, K)
    wanted = (x @ W.T + b).topk(K, dim=1).indices
    assert support.indices_N.view(B, K).sort(1).values.equal(wanted.sort(1).values)


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


@pytest.mark.parametrize("backend", ["reference", "sparse", "cpu", "gather"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_nothing_is_chosen_of_an_empty_batch(backend: str, dtype: torch.dtype | None) -> None:
    kernels = get_kernels(backend)  # pyright: ignore[reportArgumentType]
    x, W, b = torch.randn(0, D), torch.randn(F, D), torch.randn(F)
    supports = [
        select_topk(x, W, b, K, dtype, kernels),
        select_batchtopk(x, W, b, K, dtype, kernels)[0],
        select_positive(x, W, b),
        select_above(x, W, b, 0.0, 1 / 3),
    ]
    for support in supports:
        assert support is not None
        assert (support.rows, len(support.indices_N), support.width) == (0, 0, F)
        assert kernels.decode(torch.zeros(0), W, support).shape == (0, D)


def test_positive_selection_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, W, b = (t.detach() for t in make_inputs())
    whole = select_positive(x, W, b, 0.3)
    monkeypatch.setattr(chunks, "SCORES", 5 * F)
    parts = select_positive(x, W, b, 0.3)
    assert parts.indices_N.equal(whole.indices_N)
    assert parts.offsets_B1.equal(whole.offsets_B1)


@pytest.mark.parametrize(
    "choose",
    [
        lambda x, W, b: sparse.row_topk(x, W, b, 3),
        lambda x, W, b: select_positive(x, W, b, 2.5),
        lambda x, W, b: select_above(x, W, b, 2.5, 0.5),
        lambda x, W, b: select._above_cut(x, W, b, torch.arange(len(x)), 2.5),
    ],
    ids=["top-k", "positive", "above", "above a cut"],
)
def test_scores_of_two_chunks_never_exist_at_once(choose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one do, and masks over them, of a quarter of their size each."""
    width, rows = 4096, 8
    monkeypatch.setattr(chunks, "SCORES", rows * width)
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(n, 4, generator=generator) / 2 for n in (16 * rows, width))
    given = x, W, torch.zeros(width)
    with Peak(list(given)) as peak:
        choose(*given)
    one = 4 * rows * width
    assert one <= peak.bytes < 1.9 * one


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_above_a_floor_is_told_by_the_first_rows(share: float) -> None:
    x, _, W, b = (t.detach() for t in make_inputs())
    scores, floor = x @ W.T + b, b - 0.3
    first = (scores > floor)[: -(-len(x) // 16)].float().mean()
    support = select_above(x, W, b, floor, share)
    assert (support is None) == bool(first > share)
    if support is not None:
        row, latent = (scores > floor).nonzero(as_tuple=True)
        assert support.indices_N.equal(latent)
        assert support.row_of_N.equal(row)
        torch.testing.assert_close(support.pre_N, scores[row, latent])
