"""`manifest.json`: what was made, from what, and whether it is still what would be made now."""

import hashlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic's, before Python 3.12

import sae
from sae.base.errors import UserError
from sae.base.files import read_json, read_sealed_json, write_sealed_json, write_text
from sae.base.foreign import is_inside, reading
from sae.base.locks import Lock

SCHEMA = 2
UNSEALED = 1  # the schema before manifests carried their own hash
SHUFFLE = ("sae.store.order", "sae.store.shuffled")  # which rows a step sees
CODE = {
    "harvest": ("pipelines.harvest", "sae.corpus", "sae.lm", "sae.store"),
    "train": ("pipelines.train", "sae.kernels", "sae.coders", "sae.training", *SHUFFLE),
    "evaluate": ("pipelines.evaluate", "sae.metrics"),
    "compare": ("pipelines.compare", "pipelines.alike", "pipelines.sweep", "sae.metrics"),
    "index": ("pipelines.index", "sae.features"),
    "scorecard": ("pipelines.scorecard", "pipelines.alike", "sae.metrics"),
    "export": ("pipelines.export", "sae.io"),
}
"""The source that decides what each stage makes."""
CONTROLS = ("sae.training", "sae.kernels", "sae.coders", "sae.metrics.controls")
"""The source that decides what a control is once it is fitted."""
RECORDED = ("torch", "transformers", "tokenizers", "zarr", "numpy", "safetensors")


class Item(TypedDict):
    """What every reader of the manifest needs of an item; there may be more."""

    fingerprint: str
    outputs: list[str]
    seconds: float
    finished: str


@dataclass(frozen=True)
class Made:
    """An item that is done: from what, where it lies, how long it took, what is worth knowing.

    `identity` is the hash of what it is, where that may stay the same when it is made again.
    """

    fingerprint: str
    outputs: Sequence[Path]
    seconds: float
    facts: Any
    identity: str | None = None


_FORM = TypeAdapter(dict[str, Item], config={"strict": True})


@dataclass
class Manifest:
    """The items that a run folder holds: name -> {"fingerprint", "outputs", "seconds", ...}.

    Several processes may work in one folder: every change is made to the items as they are on
    disk at that moment. `configuration` is the sha256 of the `run.yaml` that was last written.
    """

    path: Path
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    configuration: str | None = None

    @classmethod
    def open(cls, folder: Path) -> "Manifest":
        """Raises `UserError` if the file is damaged, or of another version of Loupe."""
        path = folder / "manifest.json"
        if not path.exists():
            return cls(path)
        content = read_json(path)
        if not isinstance(content, dict) or "sha256" in content or content.get("schema") != 1:
            try:
                content = read_sealed_json(path)
            except UserError as error:
                raise UserError(
                    f"{error} Remove it; `sae run` then does every stage anew."
                ) from None
        if content.get("schema") not in (SCHEMA, UNSEALED):
            raise UserError(f"{path} has schema {content.get('schema')!r}; expected {SCHEMA}.")
        with reading(path, "remove it; `sae run` then does every stage anew"):
            _FORM.validate_python(content["items"])
            outputs = [name for item in content["items"].values() for name in item["outputs"]]
            if outside := [name for name in [*outputs, *content["items"]] if not is_inside(name)]:
                raise ValueError(f"it names `{outside[0]}`, which is not in the run")
            items = content["items"]
        return cls(path, items, content.get("configuration"))

    def is_current(self, name: str, fingerprint: str | None) -> bool:
        """Whether the item was made by exactly this, and its outputs are still there."""
        item = self.items.get(name)
        if item is None or item["fingerprint"] != fingerprint:
            return False
        return all((self.path.parent / output).exists() for output in item["outputs"])

    def record(self, made: Mapping[str, "Made"]) -> None:
        """Notes items that are done, all in one write: a kill leaves all of them or none."""
        items = {
            name: {
                "fingerprint": one.fingerprint,
                "outputs": [str(path.relative_to(self.path.parent)) for path in one.outputs],
                "seconds": round(one.seconds, 3),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "facts": one.facts,
                "versions": versions(),
                **({"identity": one.identity} if one.identity else {}),
            }
            for name, one in made.items()
        }
        with self._changing():
            self.items.update(items)

    def forget(self, names: list[str]) -> None:
        """Drops items whose outputs are about to change: half of them must not pass for whole."""
        with self._changing():
            for name in names:
                self.items.pop(name, None)

    def configured(self, text: str) -> None:
        """Writes `run.yaml` and notes its hash, with no other process in between."""
        file, data = self.path.with_name("run.yaml"), text.encode()
        digest = hashlib.sha256(data).hexdigest()
        if self.configuration == digest and file.exists() and file.read_bytes() == data:
            return
        with self._changing():
            write_text(file, text)
            self.configuration = digest

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Brings in what other processes recorded; writes what the caller changed."""
        with Lock(self.path.with_name(".manifest.lock"), f"{self.path}", wait=True):
            present = Manifest.open(self.path.parent)
            self.items, self.configuration = present.items, present.configuration
            yield
            write_sealed_json(
                self.path,
                {"schema": SCHEMA, "items": self.items, "configuration": self.configuration},
            )


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
