"""What a training is said to need, against what its step takes, tensor by tensor."""

import gc

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae.coders import Coder, entries, make_coder
from sae.coders.registry import TRAINABLE
from sae.kernels import chunks as bounds
from sae.kernels import get_kernels
from sae.training import Settings, bytes_needed
from sae.training.dead import COPIES, MOST_VALUES, most_revived
from tests.contracts.test_coders import FREE_L0, OPTIONS

SLACK, SMALL = 1.1, 64  # a share, and bytes for each row and latent: what is small beside (F, D)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within it take at once."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: kept for key, kept in self.live.items() if not kept[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))
        return out


def step_bytes(coder: Coder, rows: int) -> tuple[int, int]:
    """(most bytes at once, bytes saved for the backward pass) of forward and backward."""
    torch.manual_seed(0)
    x_BD, y_BD = torch.randn(rows, coder.d_in), torch.randn(rows, coder.d_out)
    coder.initialise(x_BD.mean(0), torch.Generator().manual_seed(1))
    saved: dict[int, int] = {}
    peak = Peak([x_BD, y_BD, *coder.parameters(), *coder.buffers()])

    def note(tensor: Tensor) -> Tensor:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage._cdata not in peak.known:
                saved[storage._cdata] = storage.nbytes()
        return tensor

    gc.collect()
    with peak, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward = coder.training_forward(x_BD, get_kernels("cpu"))
        square, _ = forward.error(y_BD)
        kept = sum(saved.values())
        (square + (0 if forward.penalty is None else forward.penalty)).backward()
    return peak.bytes, kept


def made(architecture: str, d: int, width: int, **options: object) -> Coder:
    given = {**OPTIONS.get(architecture, {}), **options}
    if "d_out" in given:
        given["d_out"] = d
    return make_coder(architecture, d, width, **given)


@pytest.mark.parametrize("architecture", TRAINABLE)
@pytest.mark.parametrize(("rows", "d", "width"), [(256, 4, 2048), (8, 256, 2048), (64, 64, 1024)])
def test_a_step_takes_no_more_than_was_said(
    architecture: str, rows: int, d: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where scores rule, where weights rule, and between. Where L0 is free, in the dense form."""
    monkeypatch.setattr(entries, "DENSE_ABOVE", 0.0)
    coder = made(architecture, d, width)
    said = 4 * (coder.dense_values(rows) + coder.gradient_values(rows))
    most, saved = step_bytes(coder, rows)
    assert saved <= most <= SLACK * said + SMALL * (rows + width)
    if architecture in FREE_L0 and d < 64:
        assert most > 0.5 * said  # nor much less: memory that is there is not refused


def test_scores_of_the_largest_k_are_counted_by_the_chunk_that_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A very wide dictionary's chunk has 256 rows all the same."""
    with torch.device("meta"):
        wide = make_coder("topk", 8, 1 << 20)
        assert wide.dense_values(4096) == 256 << 20
        assert make_coder("switch", 8, 1 << 20, experts=2).dense_values(4096) == 256 << 19
        pursuit = make_coder("matching_pursuit", 8, 1 << 20)
        assert pursuit.dense_values(4096) == bounds.SCORES
    rows, width = 256, 2048
    monkeypatch.setattr(bounds, "CPU_SCORES", 0)
    monkeypatch.setattr(bounds, "CPU_SCORE_ROWS", 64)
    coder = made("topk", 4, width)
    assert coder.dense_values(rows) == 64 * width
    said = 4 * (coder.dense_values(rows) + coder.gradient_values(rows))
    most, _ = step_bytes(coder, rows)
    assert 0.5 * said < most <= SLACK * said + SMALL * (rows + width)


def test_rows_of_dead_latents_are_as_wide_as_the_wider_matrix() -> None:
    with torch.device("meta"):
        narrow, wide = (make_coder("transcoder", 8, 1 << 24, d_out=d, k=4) for d in (4, 32))
    assert most_revived(narrow) == MOST_VALUES // 8
    assert most_revived(wide) == MOST_VALUES // 32
    off = bytes_needed(wide, Settings(steps=9, auxk_coefficient=0)).at_work
    on = bytes_needed(wide, Settings(steps=9)).at_work
    assert on - off == 4 * COPIES * MOST_VALUES


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka", "transcoder"])
def test_the_form_for_inference_takes_no_memory_of_its_own(architecture: str) -> None:
    """Matrices are the trained coder's; none is made only to be thrown away."""
    coder = made(architecture, 16, 2048)
    with Peak([*coder.parameters(), *coder.buffers()]) as peak:
        form = coder.for_inference()
    assert peak.bytes < coder.W_enc_FD.nbytes
    assert form.W_dec_FD.data_ptr() == coder.W_dec_FD.data_ptr()
    assert not any(t.is_meta for t in [*form.parameters(), *form.buffers()])


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("chunks", [1, 4])
def test_ista_holds_the_steps_of_one_chunk(
    steps: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, width = 128, 1024
    coder = made("ista", 4, width, steps=steps, l1=5.0)  # few latents, so that codes are small
    whole = coder.dense_values(rows)
    monkeypatch.setattr(bounds, "UNROLLED", whole // chunks)
    assert coder.dense_values(rows) == pytest.approx(whole / chunks, rel=0.02)
    most, saved = step_bytes(coder, rows)
    said = 4 * (coder.dense_values(rows) + coder.gradient_values(rows))
    assert saved <= most <= SLACK * said + SMALL * (rows + width)
    if chunks == 1:  # of the first guess two, of each step three, of the last no look ahead
        assert saved / (4 * rows * width) == pytest.approx(3 * steps + 1, abs=0.1)


def test_what_is_kept_is_counted_from_the_weights() -> None:
    """Weights, two moments, gradients, bfloat16 encoder; then the average, and the examples."""
    coder = make_coder("relu", 8, 100)
    weights = sum(weight.numel() for weight in coder.parameters())
    plain = bytes_needed(coder, Settings(steps=9, batch=4))
    assert plain.kept == 12 * weights + 4 * 1600 + 2 * 800
    assert bytes_needed(coder, Settings(steps=9, ema=0.9)).kept - plain.kept == 4 * weights
    again = bytes_needed(coder, Settings(steps=9, resample=(0.5,)))
    assert again.kept - plain.kept == 4 * 800
    half = bytes_needed(coder, Settings(steps=9, moments="bfloat16"))
    assert plain.kept - half.kept == 4 * 1600


def test_few_active_latents_have_few_rows_of_gradients() -> None:
    for architecture, whole in (("topk", 0), ("batchtopk", 0), ("matryoshka", 2)):
        coder = make_coder(architecture, 8, 1000, k=2)
        assert coder.gradient_values(10) == 20 * (8 if whole else 16) + whole * 8000
        assert coder.gradient_values(10_000) == 8000 * (1 + (whole or 1))


def test_shapes_alone_are_enough() -> None:
    with torch.device("meta"):
        shapes = {name: made(name, 8, 1 << 20) for name in TRAINABLE}
    for name, coder in shapes.items():
        need = bytes_needed(coder, Settings(steps=9, batch=1024))
        assert need.kept > 12 * 8 * (1 << 20), name
        assert need.at_work >= 4 * (1 << 26), name
