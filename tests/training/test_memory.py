"""What a training is said to need, against what its step takes, tensor by tensor."""

import gc

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae.coders import Coder, entries, ista, make_coder
from sae.coders.registry import TRAINABLE
from sae.kernels import get_kernels
from sae.training import Settings, bytes_needed
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
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
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


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("chunks", [1, 4])
def test_ista_holds_the_steps_of_one_chunk(
    steps: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, width = 128, 1024
    coder = made("ista", 4, width, steps=steps, l1=5.0)  # few latents, so that codes are small
    whole = coder.dense_values(rows)
    monkeypatch.setattr(ista, "CHUNK_VALUES", whole // chunks)
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
