"""A system over a cap, or one that fails, is an outcome with a reason: never a hang."""

import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers.spec import Spec
from benchmarks.train_step import case_name, row, wants_round
from benchmarks.workers import Caps, OverCap, Pool

SMALL = Spec(d=32, width=64, k=4, batch=16, steps=10)


def make_pool(folder: Path, caps: Caps, systems: tuple[str, ...] = ("gemm_fp32",)) -> Pool:
    return Pool(dict.fromkeys(systems, sys.executable), SMALL, 0.0, caps, folder)


def is_stopped(pid: int) -> bool:
    """Within two seconds: a signal takes effect when the system next runs the process."""
    for _ in range(40):
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "T":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_round_of_two_systems(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, Caps(), ("loupe", "gemm_bf16"))
    seconds = {name: [pool.step(name, 1)["seconds"]] for name in ("loupe", "gemm_bf16")}
    stopped = all(is_stopped(worker.process.pid) for worker in pool.running.values())
    pool.close()
    assert stopped  # between turns
    ours = row(SMALL, "loupe", seconds, pool, None)
    assert ours["case"] == "train_step d=32 F=64 K=4 B=16"
    assert ours["tokens_per_s"] == pytest.approx(16 / seconds["loupe"][0])
    assert ours["gemm_ratio"] == pytest.approx(seconds["loupe"][0] / seconds["gemm_bf16"][0])
    assert ours["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("caps", "reason"),
    [(Caps(memory=1 << 20), "memory cap"), (Caps(start_seconds=0.0), "time cap of 0 s")],
)
def test_over_a_cap(tmp_path: Path, caps: Caps, reason: str) -> None:
    pool = make_pool(tmp_path, caps)
    began = time.monotonic()
    with pytest.raises(OverCap, match=reason):
        pool.step("gemm_fp32", 1)
    assert time.monotonic() - began < 20
    empty = row(SMALL, "gemm_fp32", {"gemm_fp32": []}, pool, reason)
    assert empty["seconds"] is None
    assert empty["note"] == reason


def test_a_failure_says_its_last_words(tmp_path: Path) -> None:
    pool = make_pool(tmp_path, Caps(), ("sae_lens",))  # not installed in this environment
    with pytest.raises(OverCap, match="No module named"):
        pool.step("sae_lens", 1)


def test_rounds_end_with_the_time() -> None:
    assert wants_round(0, None, 0.0, 10.0)
    assert wants_round(2, None, 9.0, 10.0)  # three, if the third ends within reason
    assert not wants_round(2, None, 10.0, 10.0)
    assert not wants_round(4, None, 9.0, 10.0)
    assert wants_round(4, None, 7.0, 10.0)
    assert not wants_round(3, 3, 0.0, 10.0)


def test_case_names() -> None:
    spec = Spec(d=768, width=16384, k=32, batch=4096, steps=1, auxk=True)
    assert case_name(spec) == "train_step d=768 F=16384 K=32 B=4096 auxk"
