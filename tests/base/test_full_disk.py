"""Writers on a disk that is full at an awkward moment: an `OSError`, and nothing that looks whole.

A limit on the size of files stands in for the disk, in a child, since it cannot be lifted again.
"""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import resource, signal, sys
from pathlib import Path
import numpy as np
import torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from sae.base.files import atomic_write, write_array
from sae.base.tensors import write_safetensors, write_state
from sae.io.hdf5_file import new_file

def hdf5(path, rows):
    with new_file(path) as file:
        for number in range(4):
            data = np.random.default_rng(0).random((rows, 8))
            file.create_dataset(f"d{{number}}", data=data, chunks=(64, 8), compression="gzip")

writers = {{
    "array": lambda path, rows: write_array(path, np.zeros((rows, 128))),
    "safetensors": lambda path, rows: atomic_write(
        path, lambda file: write_safetensors({{"a": torch.zeros(rows, 128)}}, file)
    ),
    "state": lambda path, rows: atomic_write(
        path, lambda file: write_state({{"a": torch.zeros(rows, 128)}}, file)
    ),
    "hdf5": hdf5,
}}
path = Path(sys.argv[1])
write = writers["{kind}"]
write(path.with_name("small"), 64)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    write(path, {rows})
except OSError as error:
    print("refused", error.errno)
"""


@pytest.mark.parametrize("kind", ["array", "safetensors", "state", "hdf5"])
@pytest.mark.parametrize(("rows", "limit"), [(8, 8192), (4096, 100_000), (4096, 4096)])
def test_what_does_not_fit_is_an_error(tmp_path: Path, kind: str, rows: int, limit: int) -> None:
    """(8, 8192): only the last bytes of the array do not fit."""
    if kind != "array" and rows == 8:
        pytest.skip("as above")
    path = tmp_path / "file"
    code = CHILD.format(kind=kind, rows=rows, limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "27"]), done.stderr
    assert "Traceback" not in done.stderr
    assert kind == "hdf5" or not path.exists()
