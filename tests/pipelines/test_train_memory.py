"""What a training is refused for: the main memory's windows and batches, the GPU's coders."""

from pathlib import Path

import pytest
import torch

from pipelines import train
from pipelines.arguments import config_of
from sae.base.errors import UserError
from sae.store import ActivationStore, ShuffledReader

FREE = "sae.base.memory.available_memory"


def check(finished: Path, *settings: str) -> ShuffledReader:
    config = config_of(finished, list(settings))
    store = ActivationStore.open(config.store)
    reader = train._reader(config, store, [config.harvest.sites[0]])
    train._check_memory(config, config.train.coders[:1], reader, steps=10)
    return reader


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 40, 1 << 40))
    return monkeypatch


def test_coders_go_into_the_memory_of_the_gpu(finished: Path, gpu: pytest.MonkeyPatch) -> None:
    check(finished, "model.device=cuda")
    gpu.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 10, 1 << 40))
    with pytest.raises(UserError, match=r"on `cuda` needs about .* 1\.0 KB are available"):
        check(finished, "model.device=cuda")


def test_what_was_freed_on_the_gpu_is_ours(finished: Path, gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 10, 1 << 40))
    gpu.setattr(torch.cuda, "memory_reserved", lambda _: 1 << 40)
    check(finished, "model.device=cuda")


@pytest.mark.parametrize("device", ["cuda", "cpu", "cpu:0"])
def test_main_memory_is_looked_at_for_every_device(
    finished: Path, gpu: pytest.MonkeyPatch, device: str
) -> None:
    gpu.setattr(FREE, lambda: 1 << 10)
    with pytest.raises(UserError, match=r"needs about .* 1\.0 KB are available"):
        check(finished, f"model.device={device}")


def test_batches_that_wait_are_counted(finished: Path, gpu: pytest.MonkeyPatch) -> None:
    """On a GPU nothing else is in main memory."""
    reader = check(finished, "model.device=cuda", "train.window=1", "train.batch=32")
    row = 2 * reader.store.width[reader.sites[0]]
    needed = (2 * reader.order.chunk_rows + (reader.ahead + 2) * 32) * row
    gpu.setattr(FREE, lambda: needed)
    check(finished, "model.device=cuda", "train.window=1", "train.batch=32")
    gpu.setattr(FREE, lambda: needed - 1)
    with pytest.raises(UserError, match="needs about"):
        check(finished, "model.device=cuda", "train.window=1", "train.batch=32")
