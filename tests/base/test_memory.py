"""How much memory there is, in folder trees such as containers and clusters have; what is kept."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sae.base import memory
from sae.base.large_pages import LEAST, zeros_on_large_pages

GB = 1 << 30
V1, V2 = memory.VERSION_1, memory.VERSION_2


def group(folder: Path, files: tuple[str, str], limit: int | str, used: int, **stat: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(f"{limit}\n")
    (folder / files[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text("".join(f"{k} {v}\n" for k, v in stat.items()))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_of_machine", lambda: 100 * GB)
    return tmp_path / "cgroup"


def within(root: Path, text: str) -> int:
    root.with_name("own").write_text(text)
    return memory.available_memory()


def test_no_control_groups_leave_the_machine(root: Path) -> None:
    assert memory.available_memory() == 100 * GB
    assert within(root, "0::/\n") == 100 * GB


def test_cached_files_are_free(root: Path) -> None:
    group(root, V2, 8 * GB, 7 * GB, anon=1 * GB, inactive_file=4 * GB, active_file=2 * GB)
    assert within(root, "0::/\n") == 7 * GB
    group(root, V2, 8 * GB, 7 * GB, anon=7 * GB)
    assert within(root, "0::/\n") == 1 * GB


def test_the_narrowest_of_nested_limits_holds(root: Path) -> None:
    group(root / "slurm" / "job", V2, 6 * GB, 1 * GB)
    group(root / "slurm" / "job" / "step", V2, "max", 1 * GB)
    assert within(root, "0::/slurm/job/step\n") == 5 * GB
    group(root / "slurm", V2, 4 * GB, 3 * GB)
    assert within(root, "0::/slurm/job/step\n") == 1 * GB
    assert within(root, "0::/other\n") == 100 * GB


def test_version_1(root: Path) -> None:
    sizes = {"inactive_file": 0, "total_inactive_file": 2 * GB, "total_active_file": 1 * GB}
    group(root / "memory" / "slurm" / "job", V1, 6 * GB, 4 * GB, **sizes)
    lines = "9:name=systemd:/\n4:cpuset,memory:/slurm/job\n1:cpu:/slurm\n0::/\n"
    assert within(root, lines) == 5 * GB


def test_a_container_sees_its_own_group_as_the_root(root: Path) -> None:
    """Without a namespace of its own, its path is the host's, which it does not see."""
    group(root / "memory", V1, 3 * GB, 1 * GB)
    assert within(root, "4:memory:/docker/0123\n") == 2 * GB
    assert within(root, "4:memory:/../elsewhere\n") == 2 * GB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize("most", [2**31 - 1, 2**25, 0])
def test_an_older_allocator_is_told_what_it_takes(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """glibc once refused thresholds above 32 MB; each setting counts without the other."""
    told: dict[int, int] = {}

    def mallopt(what: int, value: int) -> int:
        taken = what != memory.M_MMAP_THRESHOLD or value <= most
        if taken:
            told[what] = value
        return int(taken)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert memory.keep_freed_memory.__wrapped__() is (most > 0)
    assert told[memory.M_TRIM_THRESHOLD] == memory.LARGEST
    assert told.get(memory.M_MMAP_THRESHOLD, 0) == most


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux what is in memory")
def test_zeros_on_large_pages_take_no_memory_before_they_are_used() -> None:
    like = torch.empty(64 << 20, dtype=torch.float32)
    before = _resident_pages()
    zeros = zeros_on_large_pages(like, torch.bfloat16)
    assert (_resident_pages() - before) * 4096 < 16 << 20
    assert zeros.shape == like.shape
    assert zeros.dtype is torch.bfloat16
    assert not zeros[:: 1 << 20].any()
    zeros += 1  # it can be written, and so can those that are too small for a mapping
    small = zeros_on_large_pages(torch.ones(3), torch.float32)
    assert small.numel() * small.element_size() < LEAST
    assert small.tolist() == [0, 0, 0]


def _resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])
