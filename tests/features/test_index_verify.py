import shutil
from pathlib import Path

import numpy as np
import pytest

from sae.base.files import sha256_file
from sae.base.sums import write_sums
from sae.features import verify_index
from sae.features.layout import FILES


@pytest.fixture
def copy(index_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(index_folder, tmp_path / "copy"))


def rehash(folder: Path) -> None:
    """Makes the hashes agree, so that only the checks of content can object."""
    write_sums(folder, {name: sha256_file(folder / name) for name in (*FILES, "index.json")})


def test_a_sound_index_has_no_problems(index_folder: Path) -> None:
    assert verify_index(index_folder) == []


@pytest.mark.parametrize("name", [*FILES, "index.json", "SHA256SUMS"])
def test_a_flipped_byte_is_found_in_every_file(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (copy / name).write_bytes(data)
    assert verify_index(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (problem,) = verify_index(copy)
    assert name in problem


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("rows.npy", lambda a: a[::-1].copy(), "do not ascend"),
        (
            "rows.npy",
            lambda a: np.where(np.arange(len(a)) == 3, 32, a).astype(a.dtype),
            "position 0",
        ),
        ("rows.npy", lambda a: a + np.uint32(10**6), "beyond the last row"),
        ("acts.npy", lambda a: -a, "positive and finite"),
        ("acts.npy", lambda a: a[:-1], "acts.npy has"),
        ("indptr.npy", lambda a: a[::-1].copy(), "does not divide"),
        ("row_features.npy", lambda a: a * 0, "codes by row"),
        ("tokens.npy", lambda a: a + 90, "does not know"),
    ],
)
def test_inconsistent_arrays_are_found(copy: Path, name: str, spoil, message: str) -> None:
    np.save(copy / name, spoil(np.load(copy / name)))
    rehash(copy)
    assert any(message in problem for problem in verify_index(copy)), verify_index(copy)


def test_no_index_is_a_problem_not_an_exception(tmp_path: Path) -> None:
    assert "sae index" in verify_index(tmp_path)[0]
