"""Whether an item is what would be made now.

Its fingerprint covers its part of the configuration, its code, and what it reads: in a plan, what
that will be; on record, what that was when it was read. Of an item that may be made again and stay
the same (a store whose text was only touched), readers see what it is, not how it was asked for.
"""

from collections.abc import Sequence
from typing import Any

from pipelines.config import RunConfig
from pipelines.manifest import CODE, Manifest, code_hash
from pipelines.stages import Stage
from sae.base.files import sha256_json


class Fingerprints:
    """Fingerprints of items, as a manifest has them; each is computed once, since a sweep's coders
    share what they read.
    """

    def __init__(
        self, config: RunConfig, manifest: Manifest, own: dict[str, list[Any]] | None = None
    ) -> None:
        self.config, self.manifest = config, manifest
        self._known: dict[str, str | None] = {}
        self._own = {} if own is None else own  # settings and code, apart from what is read

    def at(self, manifest: Manifest) -> "Fingerprints":
        """The same configuration, beside what is on record now."""
        return Fingerprints(self.config, manifest, self._own)

    def stale(self, stage: Stage, coders: Sequence[str | None]) -> list[str | None]:
        """Those of the coders whose items are not what would be made now."""
        return [
            coder
            for coder in coders
            if not self.manifest.is_current(stage.item(coder), self.of(stage, coder))
        ]

    def of(self, stage: Stage, coder: str | None) -> str | None:
        """Of an item that is made of items as this configuration wants them.

        None: of something that is still to be made, and of which nobody knows yet what it will be.
        """
        item = stage.item(coder)
        if item not in self._known:
            read = [self._wanted(*each) for each in stage.inputs(self.config, coder)]
            self._known[item] = None if None in read else self._of(stage, coder, read)
        return self._known[item]

    def made(self, stage: Stage, coder: str | None) -> str:
        """Of an item that was made of the items that are there."""
        inputs = [read.item(name) for read, name in stage.inputs(self.config, coder)]
        return self._of(stage, coder, [_seen(self.manifest.items[item]) for item in inputs])

    def _wanted(self, stage: Stage, coder: str | None) -> str | None:
        """What a reader of the item will see."""
        fingerprint = self.of(stage, coder)
        if stage.identity is None or fingerprint is None:
            return fingerprint
        item = self.manifest.items.get(stage.item(coder))
        return _seen(item) if item and item["fingerprint"] == fingerprint else None

    def _of(self, stage: Stage, coder: str | None, read: Sequence[str | None]) -> str:
        item = stage.item(coder)
        if item not in self._own:  # a harvest's settings take reading the whole model
            self._own[item] = [stage.settings(self.config, coder), code_hash(*CODE[stage.name])]
        return sha256_json([*self._own[item], read])


def _seen(item: dict[str, Any]) -> str:
    """What the item is, where that was recorded, or else of what it was made."""
    return item.get("identity") or item["fingerprint"]
