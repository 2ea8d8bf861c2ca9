"""Triton's compiler takes every kernel: the interpreter shows only that what they do is right."""

import os
import subprocess
import sys
from pathlib import Path

from tests.kernels.places import needs_triton

ROOT = Path(__file__).parents[2]


@needs_triton
def test_every_kernel_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", "-m", "tests.kernels.compile_kernels"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for kernel in ("gathered_dots", "weighted_sums", "decode_residual", "adam_rows", "adam_flat"):
        assert f"_{kernel}" in done.stdout
