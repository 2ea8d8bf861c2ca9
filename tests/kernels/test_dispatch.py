"""Which backend is taken, where it works, and what is said where the best one cannot work."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sae.base.errors import UserError
from sae.kernels import Support, dispatch, get_kernels, kernels_for
from tests.kernels.places import CUDA, kernels_at, moved, needs_triton

OWN = ("sae.kernels.triton_launch", "sae.kernels.triton_sums", "sae.kernels.triton_adam")
Patch = pytest.MonkeyPatch


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What is found out once in a process is found out anew in this test, and after it."""
    for remembered in (dispatch._fault_of_triton, dispatch._say):
        remembered.cache_clear()
    yield
    for remembered in (dispatch._fault_of_triton, dispatch._say):
        remembered.cache_clear()


def _kernel_raises(monkeypatch: Patch, _: Path) -> None:
    def probe(device: str) -> None:
        raise RuntimeError("Failed to find C compiler.")

    pytest.importorskip("triton")
    from sae.kernels import triton_launch

    monkeypatch.setattr(triton_launch, "probe", probe)


def _import_raises(monkeypatch: Patch, folder: Path) -> None:
    (folder / "triton.py").write_text("raise OSError('libcuda.so.1: cannot open shared object')\n")
    monkeypatch.syspath_prepend(folder)
    for name in ("triton", *OWN):
        monkeypatch.delitem(sys.modules, name, raising=False)


def _absent(monkeypatch: Patch, _: Path) -> None:
    for name in OWN:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_kernel_raises, "Failed to find C compiler"),
        (_import_raises, "libcuda.so.1: cannot open"),
        (_absent, "not installed .*pip install 'loupe-sae"),
    ],
)
def test_without_triton_one_warning_and_plain_torch(
    spoil: Callable[[Patch, Path], None], said: str, monkeypatch: Patch, tmp_path: Path
) -> None:
    """Needs no GPU: a device that is not there is one on which Triton cannot work."""
    spoil(monkeypatch, tmp_path)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        chosen = [get_kernels("auto", device).name for device in ("cuda", "cuda:0", "cuda", "cuda")]
        half = get_kernels("auto", "cuda", torch.bfloat16).name
    assert chosen == ["sparse"] * 4
    assert half == "gather"
    assert len(heard) == 1
    assert re.search(said, str(heard[0].message))
    with pytest.raises(UserError, match=f"{said}.*choose `auto`"):
        get_kernels("triton", "cuda")


@needs_triton
@pytest.mark.usefixtures("forgetful")
def test_triton_is_taken_where_it_works(monkeypatch: Patch) -> None:
    from sae.kernels import triton_launch

    monkeypatch.setattr(triton_launch, "probe", lambda device: None)
    assert get_kernels("auto", "cuda").name == "triton"
    assert get_kernels("auto", "cuda", torch.bfloat16).name == "triton"


@needs_triton
def test_the_probe_runs_a_kernel() -> None:
    from sae.kernels import triton_launch

    triton_launch.probe("cuda" if CUDA else "cpu")


@pytest.mark.parametrize(
    ("device", "dtype", "name"),
    [
        ("cpu", torch.float32, "cpu"),
        ("cpu", torch.float64, "cpu"),
        ("cpu", torch.bfloat16, "gather"),
        ("mps", torch.float32, "gather"),
    ],
)
def test_the_best_backend_of_a_device_and_dtype(device: str, dtype: torch.dtype, name: str) -> None:
    assert get_kernels("auto", device, dtype).name == name
    if device == "cpu":
        assert kernels_for(torch.zeros(1, dtype=dtype)).name == name


@needs_triton
def test_kernels_are_launched_where_their_tensors_are(monkeypatch: Patch) -> None:
    """On cuda:1 a launch on the current device, cuda:0, would read memory that is not there."""
    from sae.kernels.adam import RowGradient
    from tests.kernels.test_adam import adam_step
    from tests.kernels.test_kernels import make_inputs, make_supports

    device = "cuda" if CUDA else "cpu"
    seen = []
    real = torch.cuda.device_of

    def device_of(tensor: torch.Tensor) -> torch.cuda.device_of:
        seen.append(tensor.device.type)
        return real(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    kernels = kernels_at("triton", device)
    seen.clear()  # of the probe's
    x, b_dec, W, b = (t.detach() for t in make_inputs(torch.float32, device))
    support = moved(make_supports()["fixed"], device)
    acts = torch.ones(len(support.indices_N), device=device)
    kernels.gathered_dots(x, W, support)
    kernels.rows_sum(acts, W, support)
    kernels.latents_sum(acts, x, support)
    kernels.decode_residual(acts, W, b_dec, x, support)
    for weight in (W, b):
        moments = (torch.zeros_like(weight) for _ in range(2))
        kernels.adam_rows(weight, RowGradient(torch.ones_like(weight)), *moments, adam_step(1))
    kernels.tangent_square(RowGradient(torch.ones_like(W)), W)
    assert seen == [device] * 7


@needs_triton
@pytest.mark.parametrize(("d", "warps"), [(768, 4), (2048, 8), (16_384, 16)])
def test_wide_rows_are_shared_by_more_threads(d: int, warps: int, monkeypatch: Patch) -> None:
    """A program that holds four whole rows of 16,384 values in the registers of 128 threads
    would keep most of them in memory instead."""
    from sae.kernels import triton_adam, triton_sums
    from sae.kernels.adam import RowGradient
    from tests.kernels.test_adam import adam_step

    seen = []

    def launch(*_: object, warps: int = 4, **__: object) -> None:
        seen.append(warps)

    for module in (triton_adam, triton_sums):
        monkeypatch.setattr(module, "launch", launch)
    W = torch.zeros(3, d)
    triton_adam.adam_rows(W, RowGradient(W), W, W, adam_step(1))
    triton_adam.tangent_square(RowGradient(W), W)
    triton_sums.decode_residual(torch.zeros(3), W, W[0], W, Support.fixed(torch.zeros(3, 1), 3))
    assert seen == [warps] * 3


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_backend_of_another_device_is_a_sentence(backend: str, monkeypatch: Patch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    device = "cuda" if backend == "cpu" else "cpu"
    with pytest.raises(UserError, match=f"cannot work on `{device}`"):
        get_kernels(backend, device)  # pyright: ignore[reportArgumentType]


def test_unknown_backend_is_a_sentence() -> None:
    with pytest.raises(UserError, match="`sparse`"):
        get_kernels("spars")  # pyright: ignore[reportArgumentType]
