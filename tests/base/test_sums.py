"""Sums and sealed JSON: no byte can change unnoticed, theirs included."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from sae.base.errors import UserError
from sae.base.files import QUIET, atomic_write, partial_of, read_sealed_json, write_sealed_json
from sae.base.sums import (
    SUMS,
    damage_of,
    problems_of,
    read_sums,
    require_intact,
    seal,
    unseal,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "inner" / "b.bin").write_bytes(bytes(range(256)))
    seal(tmp_path, ["a.txt", "inner/*"])
    return tmp_path


def flip(path: Path, at: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= mask
    path.write_bytes(data)


def test_a_sealed_folder_is_sound_to_us_and_to_sha256sum(folder: Path) -> None:
    assert problems_of(folder) == []
    require_intact(folder, ["a.txt", "inner/b.bin"])
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=True)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
@pytest.mark.parametrize("name", ["a.txt", "inner/b.bin", SUMS])
def test_every_byte_counts(folder: Path, name: str, mask: int) -> None:
    for at in range((folder / name).stat().st_size):
        flip(folder / name, at, mask)
        assert problems_of(folder), (name, at, mask)
        flip(folder / name, at, mask)
    assert problems_of(folder) == []


@pytest.mark.parametrize("name", ["a.txt", "inner/b.bin", SUMS])
def test_every_truncation_is_found(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for length in range(len(data)):
        (folder / name).write_bytes(data[:length])
        assert problems_of(folder), (name, length)


def test_what_is_unsealed_is_gone_from_the_folder_and_the_sums(folder: Path) -> None:
    (folder / "inner" / "extra").write_text("never sealed")
    unseal(folder, ["inner/*"])
    assert list(read_sums(folder)) == ["a.txt"]
    assert list((folder / "inner").iterdir()) == []
    (folder / "a.txt").unlink()
    unseal(folder, ["a.txt", "nothing/*"])
    assert problems_of(folder) == []
    unseal(folder / "nowhere", ["*"])


def test_nothing_goes_where_the_sums_cannot_be_read(folder: Path) -> None:
    flip(folder / SUMS, 3, 0x20)
    with pytest.raises(UserError, match="is damaged"):
        unseal(folder, ["a.txt"])
    assert (folder / "a.txt").exists()


def test_damage_is_told_of_the_files_that_are_asked_for(folder: Path) -> None:
    assert damage_of(folder) == []
    flip(folder / "a.txt", 0, 1)
    (folder / "inner" / "b.bin").unlink()
    (folder / "extra").write_text("x")
    missing, changed = f"{folder}/inner/b.bin: missing", f"{folder}/a.txt: not what was written"
    assert [problem.partition(" (")[0] for problem in damage_of(folder)] == [changed, missing]
    assert damage_of(folder, ["inner/*"]) == damage_of(folder, but=["a.txt"]) == [missing]
    assert damage_of(folder, ["nothing"]) == []
    flip(folder / SUMS, 3, 0x20)
    assert "is damaged" in damage_of(folder, ["nothing"])[0]
    (folder / SUMS).unlink()  # who changes a file on purpose deletes them
    assert damage_of(folder) == []


def test_missing_and_extra_files_are_named(folder: Path) -> None:
    (folder / "a.txt").rename(folder / "inner" / "c.txt")
    assert problems_of(folder) == [f"{folder}/a.txt: missing", f"{folder}/inner/c.txt: extra"]
    assert problems_of(folder, ignored=["inner"]) == [f"{folder}/a.txt: missing"]
    assert problems_of(folder, ignored=["inner/*.txt"]) == [f"{folder}/a.txt: missing"]
    (folder / SUMS).unlink()
    assert len(problems_of(folder)) == 1


def test_sealing_one_file_does_not_bless_another(folder: Path) -> None:
    flip(folder / "a.txt", 0, 1)
    (folder / "new").write_text("x")
    seal(folder, ["new"])
    (problem,) = problems_of(folder)
    assert "a.txt" in problem
    with pytest.raises(UserError, match=r"a\.txt is damaged"):
        require_intact(folder, ["a.txt"])


def test_folders_of_other_tools_pass(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    require_intact(tmp_path, ["cfg.json"])
    with pytest.raises(UserError, match="is missing"):
        read_sums(tmp_path)


def test_every_byte_of_sealed_json_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    value = {"items": {"a": [1, 2.5, None]}, "text": "ü"}
    write_sealed_json(path, value)
    assert read_sealed_json(path) == value
    for at in range(path.stat().st_size):
        for mask in (0x01, 0x02, 0x20, 0x80):
            flip(path, at, mask)
            with pytest.raises(UserError):
                read_sealed_json(path)
            flip(path, at, mask)
    assert read_sealed_json(path) == value


def test_what_a_dead_process_left_half_written_goes(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    ours = partial_of(path)
    with subprocess.Popen(["true"]) as process:
        pass
    dead = ours.with_name(ours.name.replace(ours.name.split("-")[-1], f"{process.pid}.partial"))
    alive = dead.with_name(dead.name.replace(f"-{process.pid}.", "-1."))
    for left in (dead, alive):
        left.write_text("half")
    atomic_write(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, alive.name}


def test_what_is_unsealed_is_gone_with_its_line_and_the_rest_stays(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    seal(tmp_path, ["*.txt"])
    unseal(tmp_path, ["a.txt"])
    assert problems_of(tmp_path) == []
    assert list(read_sums(tmp_path)) == ["b.txt"]
    unseal(tmp_path, ["a.txt"])  # which is not there any more
    assert problems_of(tmp_path) == []


def test_what_a_writer_of_another_host_left_goes_and_what_one_holds_stays(tmp_path: Path) -> None:
    """A container that starts again has another host's name."""
    path = tmp_path / "a.json"
    left, fresh, held, other = (
        tmp_path / name
        for name in (
            ".a.json.4f1c-7.partial",
            ".a.json.4f1c-8.partial",
            ".a.json.4f1c-9.partial",
            ".b.json.4f1c-7.partial",
        )
    )

    def write(_file: object) -> None:
        """While this file is written as `held`."""
        partial_of(path).rename(held)
        for partial in (left, fresh, other):
            partial.write_text("half")
        long_ago = time.time() - QUIET - 1
        for partial in (left, held, other):
            os.utime(partial, (long_ago, long_ago))
        partial_of(path)

    with pytest.raises(FileNotFoundError):  # it has lost its name
        atomic_write(path, write)
    assert {p.name for p in tmp_path.iterdir()} == {fresh.name, held.name, other.name}


def test_links_are_named(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What lies behind a link to a folder was not looked at."""
    (folder / "nowhere").symlink_to(folder / "gone")
    (folder / "outside").symlink_to(tmp_path_factory.mktemp("outside"))
    assert problems_of(folder) == [f"{folder}/nowhere: extra", f"{folder}/outside: extra"]
    (folder / "nowhere").unlink()
    (folder / "outside").unlink()
    (folder / "inner").rename(folder.parent / "moved")
    (folder / "inner").symlink_to(folder.parent / "moved")
    assert problems_of(folder) == [f"{folder}/inner: extra"]
