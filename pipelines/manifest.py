"""`manifest.json`: what was made, from what, and whether it is still what would be made now."""

import hashlib
import platform
import time
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sae
from sae.base.errors import UserError
from sae.base.files import read_json, write_json

SCHEMA = 1
RECORDED = ("torch", "transformers", "tokenizers", "zarr", "numpy", "safetensors")


@dataclass
class Manifest:
    """The items that a run folder holds: name -> {"fingerprint", "outputs", "seconds", ...}."""

    path: Path
    items: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> "Manifest":
        path = folder / "manifest.json"
        if not path.exists():
            return cls(path)
        content = read_json(path)
        if content.get("schema") != SCHEMA:
            raise UserError(f"{path} has schema {content.get('schema')!r}; expected {SCHEMA}.")
        return cls(path, content["items"])

    def is_current(self, name: str, fingerprint: str) -> bool:
        """Whether the item was made by exactly this, and its outputs are still there."""
        item = self.items.get(name)
        if item is None or item["fingerprint"] != fingerprint:
            return False
        return all((self.path.parent / output).exists() for output in item["outputs"])

    def record(
        self, name: str, fingerprint: str, outputs: list[Path], seconds: float, facts: Any
    ) -> None:
        self.items[name] = {
            "fingerprint": fingerprint,
            "outputs": [str(path.relative_to(self.path.parent)) for path in outputs],
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "facts": facts,
            "versions": versions(),
        }
        write_json(self.path, {"schema": SCHEMA, "items": self.items})

    def forget(self, names: list[str]) -> None:
        """Drops items, so that a stage that dies in the middle is not taken for whole."""
        if any(self.items.pop(name, None) for name in names):
            write_json(self.path, {"schema": SCHEMA, "items": self.items})


def versions() -> dict[str, str]:
    found = {"loupe": sae.__version__, "python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def code_hash(*modules: str) -> str:
    """Hash of the source of modules or whole packages: changed code makes its outputs stale."""
    digest = hashlib.sha256()
    for module in modules:
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            raise UserError(f"The module `{module}` has no source; reinstall Loupe.")
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
