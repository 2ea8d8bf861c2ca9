"""From a seed to a case: a valid folder with one to three changes."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.fuzz import odd, rewrite_arrays, rewrite_tables
from tests.fuzz.loaders import Loader
from tests.fuzz.samples import CODER_HASH

TYPED = ("settings.txt", "filter.txt")
"""Hold what a person types, so they are read by the loaders of `tests.fuzz` alone."""
LARGEST = 2**26
Mutate = Callable[[bytes, Random], bytes]
BY_SUFFIX: dict[str, Mutate] = {
    ".json": odd.mutate_json,
    ".jsonl": odd.mutate_json_lines,
    ".yaml": odd.mutate_text,
    ".txt": odd.mutate_text,
    ".md": odd.mutate_text,
    ".csv": odd.mutate_text,
    "": odd.mutate_text,
    ".npy": rewrite_arrays.npy,
    ".npz": rewrite_arrays.npz,
    ".safetensors": rewrite_arrays.safetensors,
    ".pt": rewrite_arrays.checkpoint,
    ".parquet": rewrite_tables.parquet,
    ".sqlite3": lambda data, rng: rewrite_tables.notes(data, rng, CODER_HASH),
    ".h5": rewrite_tables.hdf5,
}


def make_case(loader: Loader, whole: Path, case: Path, seed: str) -> Path:
    """Fills `case` with a variant of the valid files in `whole`, changed; returns its folder."""
    rng = Random(seed)
    variant = rng.choice(sorted(path.name for path in whole.iterdir()))
    shutil.rmtree(case, ignore_errors=True)
    folder = Path(shutil.copytree(whole / variant, case / variant))
    files = sorted(path for path in folder.glob(loader.changed) if path.is_file())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(files)
        if rng.random() < 0.04 and path.name not in TYPED:
            replace(path, rng)
        elif _is_plain(path):
            path.write_bytes(mutated(path, rng, rng.choice(files)))
    if loader.mend is not None and rng.random() < 0.9:
        with suppress(OSError, ValueError):  # what was changed cannot be put right
            loader.mend(folder)
    return folder


def _is_plain(path: Path) -> bool:
    """Not what `replace` put there."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < LARGEST


def mutated(path: Path, rng: Random, neighbour: Path) -> bytes:
    data = path.read_bytes()
    special = BY_SUFFIX.get(path.suffix)
    if "c" in path.parts[-4:-1] and path.name.isdigit():
        special = rewrite_tables.chunk
    if special is not None and rng.random() < 0.75:
        try:
            return special(data, rng)
        except Exception:  # the library that writes it refuses what was made up
            return odd.mutate_bytes(data, rng)
    other = neighbour.read_bytes() if _is_plain(neighbour) else b""
    return odd.mutate_bytes(data, rng, other)


def replace(path: Path, rng: Random) -> None:
    """Something else than a file under its name."""
    path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)
    how = rng.randrange(7)
    if how == 0:
        path.mkdir()
    elif how == 1:
        os.mkfifo(path)
    elif how == 2:
        path.symlink_to("/dev/zero")
    elif how == 3:
        path.symlink_to(path.name)
    elif how == 4:
        path.symlink_to("/nowhere")
    elif how == 5:
        with path.open("wb") as file:
            file.truncate(2**30 + 1)  # a hole, which takes no room on the disk
