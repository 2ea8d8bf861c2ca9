"""What an HDF5 file says of itself, read in a process that may fail.

The library that reads HDF5 loops or crashes on some files that were made, or damaged, to do so; in
our own process nothing could stop that.
"""

import json
import subprocess
import sys
from pathlib import Path

from sae.base.errors import UserError, one_line
from sae.base.foreign import require_file

SECONDS, MOST_MEMORY, LONGEST = 10, 2**32, 1000
READER = f"""
import contextlib, json, resource, sys
import h5py
with contextlib.suppress(ValueError, OSError):  # there is a lower limit, or none can be set
    resource.setrlimit(resource.RLIMIT_AS, ({MOST_MEMORY}, {MOST_MEMORY}))
with h5py.File(sys.argv[1]) as file:
    found = [(name, str(value)[:{LONGEST}]) for name, value in file.attrs.items()]
json.dump(found, sys.stdout)
"""
"""Run with `-P`: nothing of the folder where it happens to run is imported."""


def read_attributes(path: Path | str) -> list[tuple[str, str]]:
    """(name, value as text) of each attribute of the file; `UserError` if it cannot be read."""
    require_file(path)
    command = [sys.executable, "-P", "-c", READER, str(Path(path).absolute())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        return [(str(name), str(text)) for name, text in json.loads(done.stdout)]
    except (subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or b""
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        how = "it takes too long" if isinstance(error, subprocess.TimeoutExpired) else last
        raise UserError(
            f"{path} cannot be read as HDF5 ({one_line(how, 200) or 'its library crashed'}); make "
            "it again with `sae export`."
        ) from error
