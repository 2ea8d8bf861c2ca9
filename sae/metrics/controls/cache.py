"""Controls that take long to fit, kept on disk by the fingerprint of all that decides them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from sae.base.files import atomic_write, sha256_json
from sae.base.locks import Lock
from sae.base.sums import is_sealed, require_intact, seal
from sae.base.tensors import read_safetensors
from sae.coders import Coder, load_coder, save_coder
from sae.coders.folder import CONFIG


@dataclass(frozen=True)
class Cache:
    """A folder, or nothing: then every fit is done anew. `key` is whatever JSON can hold.

    `code` names the code that fits (a hash of it): what other code has fitted is not taken.
    """

    folder: Path | None = None
    code: str = ""

    def tensors(
        self, name: str, key: Any, make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """What `make` returned for this key, now or earlier."""
        path = self._path(name, key, ".safetensors")
        if path is None:
            return _made(make)
        with _alone(path):
            if path.exists() and is_sealed(path):
                require_intact(path.parent, [path.name])
                return read_safetensors(path)
            made = _made(make)
            atomic_write(path, lambda file: file.write(save(made)))
            seal(path.parent, [path.name])
            return made

    def coder(self, name: str, key: Any, make: Callable[[], Coder]) -> Coder:
        """The coder that `make` trained for this key, as it reads from its folder."""
        path = self._path(name, key)
        if path is None:
            return make()
        with _alone(path):
            if not is_sealed(path / CONFIG):  # none, or what a kill left half written
                save_coder(make(), path)
            return load_coder(path)

    def has(self, name: str, key: Any) -> bool:
        """Whether a trained coder is kept under this key."""
        path = self._path(name, key)
        return path is not None and is_sealed(path / CONFIG)

    def _path(self, name: str, key: Any, suffix: str = "") -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{name}-{sha256_json([self.code, name, key])[:16]}{suffix}"


def _made(make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in make().items()}


def _alone(path: Path) -> Lock:
    """Another evaluation that wants the same control waits, and then takes it from here."""
    place = path.parent.parent / ".locks"  # the run's: a lock that a kill leaves is no control
    return Lock(place / f"{path.name}.lock", f"The control {path}", wait=True)
