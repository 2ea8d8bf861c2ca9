"""What the system refuses, memory or a path, is one sentence."""

import errno
import os
import re

import numpy as np
import pytest
import torch

from tests.pipelines.command import sae
from tests.pipelines.test_mistakes import one_sentence

OUT_OF_MEMORY = [
    (MemoryError(), "main memory ran out"),
    (np._core._exceptions._ArrayMemoryError((9,), np.dtype("f4")), "main memory ran out"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "main memory ran out"),
    (torch.OutOfMemoryError("CUDA out of memory."), "GPU's memory ran out.*model.device=cpu"),
]


@pytest.mark.parametrize(("error", "message"), OUT_OF_MEMORY)
def test_memory_that_runs_out(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.cli.config_of", fail)
    said = one_sentence(sae("run", code=1))
    assert re.search(message, said), said
    assert "lower `train.batch`" in said


def test_another_error_of_torch_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("pipelines.cli.config_of", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        sae("run")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EMFILE, r"Too many files are open at a time \(/there\); raise the limit"),
        (errno.ENFILE, "Too many files are open at a time"),
        (errno.EIO, r"The disk could not be read or written \(/there\)"),
        (errno.ENOSPC, r"The disk is full \(/there\)"),
    ],
)
def test_what_the_system_has_no_more_of(
    code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code), "/there")

    monkeypatch.setattr("pipelines.cli.config_of", fail)
    said = one_sentence(sae("run", code=1))
    assert re.search(message, said), said
    assert "give the same command again" in said


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP])
def test_a_path_that_the_system_refuses(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code), "/there")

    monkeypatch.setattr("pipelines.cli.config_of", fail)
    assert "(/there); give a path that can be read and written" in one_sentence(sae("run", code=2))
