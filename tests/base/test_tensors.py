"""Writing tensors: safetensors' own bytes, through one file, with the file's own errors."""

import errno
import io
import os
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import save, save_file

from sae.base import tensors
from sae.base.errors import UserError
from sae.base.files import atomic_write
from sae.base.tensors import read_safetensors, read_state, write_safetensors, write_state

ODD = {
    "b": torch.arange(6.0).reshape(2, 3),
    'a"é': torch.ones(3, dtype=torch.bfloat16),
    "a": torch.tensor(7.0),
    "empty": torch.zeros(0, 4),
    "half": torch.ones(2, dtype=torch.float16),
    "double": torch.ones(2, dtype=torch.float64),
    "short": torch.ones(3, dtype=torch.int16),
    "int": torch.ones(3, dtype=torch.int32),
    "long": torch.ones(3, dtype=torch.int64),
    "small": torch.ones(5, dtype=torch.int8),
    "byte": torch.ones(5, dtype=torch.uint8),
    "truth": torch.tensor([True, False, True]),
}


@pytest.mark.parametrize("tensors", [ODD, {}, {"W": torch.randn(8, 4), "W_dec": torch.ones(4)}])
def test_bytes_are_those_of_safetensors(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path = atomic_write(tmp_path / "ours", lambda file: write_safetensors(tensors, file))
    save_file(tensors, tmp_path / "theirs")
    assert path.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert path.read_bytes() == save(tensors)
    for name, tensor in read_safetensors(path).items():
        assert torch.equal(tensor, tensors[name])


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_a_transposed_tensor_is_written_by_rows(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of them at a time, so that it is not copied as a whole."""
    monkeypatch.setattr(tensors, "LARGEST_COPY", most)
    file, turned = _Parts(), torch.arange(30.0).reshape(6, 5).T
    write_safetensors({"a": turned, "none": torch.zeros(4, 0).T}, file)
    assert file.getvalue() == save({"a": turned.contiguous(), "none": torch.zeros(0, 4)})
    assert max(file.sizes) <= 4 * max(most, 6)


class _Parts(io.BytesIO):
    """Notes the sizes of what is written: the header's first, as 0."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, data: Any) -> int:
        self.sizes.append(memoryview(data).nbytes if self.sizes else 0)
        return super().write(data)


def test_the_file_that_is_synced_is_the_one_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []

    def fsync(number: int) -> None:
        synced.append((os.fstat(number).st_ino, os.fstat(number).st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    path = atomic_write(tmp_path / "weights", lambda file: write_safetensors(ODD, file))
    plain = tmp_path / "plain"
    plain.touch()
    assert synced[0] == (path.stat().st_ino, path.stat().st_size)  # then its folder
    assert path.stat().st_mode == plain.stat().st_mode


class _Full(io.BytesIO):
    """A disk with room for a megabyte."""

    def write(self, data: object) -> int:
        if self.tell() > 1 << 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)  # pyright: ignore[reportArgumentType]


def test_a_full_disk_is_not_hidden_by_torch() -> None:
    state = {name: torch.zeros(1 << 19) for name in "abcd"}
    with pytest.raises(OSError, match="No space left") as caught:
        write_state(state, _Full())
    assert caught.value.errno == errno.ENOSPC


def test_a_part_that_is_read_whole_must_be_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of tensors may be large, and are mapped; what stands beside them may not."""
    path = tmp_path / "state.pt"
    torch.save({"weights": torch.zeros(4096)}, path)
    monkeypatch.setattr("sae.base.tensors.LARGEST_PART", 4096)
    assert read_state(path)["weights"].shape == (4096,)
    with ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/note", "1" * 5000)
    with pytest.raises(UserError, match="its part state/note has 5,000 bytes"):
        read_state(path)
