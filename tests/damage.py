"""Damage to one file, taken back afterwards; and which files a run is made of."""

from pathlib import Path
from types import TracebackType

import numpy as np

HOWS = ("flip", "flip", "flip", "cut", "gone", "extra")
KINDS = {
    "activations.zarr": "store",
    "coders": "coder",
    "features": "index",
    "evaluation": "evaluation",
    "export": "export",
    "controls": "control",
}


class Damage:
    """Within it, the file has one flipped bit, is cut, is gone, or has an unknown neighbour."""

    def __init__(self, path: Path, how: str, where: float, bit: int = 3) -> None:
        self.path, self.how, self.where, self.bit = path, how, where, bit
        self.extra = path.with_name("zz-extra")

    @classmethod
    def draw(cls, rng: np.random.Generator, files: list[Path]) -> "Damage":
        path = files[int(rng.integers(len(files)))]
        how = HOWS[int(rng.integers(len(HOWS)))]
        if how == "extra" and path.name in ("run.yaml", "manifest.json"):
            how = "flip"  # a run's own folder may hold other things
        if how == "gone" and path.name.startswith("checkpoint-"):
            how = "cut"  # without this file there is no checkpoint, and nothing is amiss
        return cls(path, how, float(rng.random()), int(rng.integers(8)))

    @property
    def name(self) -> str:
        """What `sae verify` must name; a flip in the list of sums shows as another file's."""
        if self.how == "extra":
            return self.extra.name
        return "" if self.path.name == "SHA256SUMS" else self.path.name

    def __enter__(self) -> "Damage":
        self.data = self.path.read_bytes()
        at = min(int(self.where * len(self.data)), len(self.data) - 1)
        if self.how == "flip":
            spoilt = bytearray(self.data)
            spoilt[at] ^= 1 << self.bit
            self.path.write_bytes(spoilt)
        elif self.how == "cut":
            self.path.write_bytes(self.data[:at])
        elif self.how == "gone":
            self.path.unlink()
        else:
            self.extra.write_bytes(self.data)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.path.write_bytes(self.data)
        self.extra.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"{self.how} {self.path} at {self.where:.3f}, bit {self.bit}"


def kinds_of_files(run: Path) -> dict[str, list[Path]]:
    """Every file of a run, but empty ones and locks, by kind."""
    found: dict[str, list[Path]] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        if not path.is_file() or name.parts[0] == ".locks" or not path.stat().st_size:
            continue
        is_checkpoint = "checkpoint" in name.parts or path.name.startswith("checkpoint-")
        kind = "checkpoint" if is_checkpoint else KINDS.get(name.parts[0], "run")
        if path.suffix != ".lock":
            found.setdefault(kind, []).append(path)
    return found
