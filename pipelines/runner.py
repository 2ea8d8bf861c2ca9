"""Does the stages that are not up to date.

An item's fingerprint covers its part of the configuration, its code, and the fingerprints of the
items that it reads: in a plan, those that they will have; on record, those that they had when they
were read.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import yaml

from pipelines.config import RunConfig
from pipelines.manifest import CODE, Made, Manifest, code_hash
from pipelines.progress import console, listed
from pipelines.stages import STAGES, Stage
from sae.base.errors import UserError, nearest
from sae.base.files import sha256_file, sha256_json, write_text
from sae.base.locks import Lock
from sae.base.sums import seal


class Task(NamedTuple):
    """A stage with the coders that it has work for (None: all together). `forced`: also where they
    are up to date.
    """

    stage: Stage
    coders: list[str | None]
    forced: bool = False


class Fingerprints:
    """Fingerprints of items; each is computed once, since a sweep's coders share what they read."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._known: dict[str, str] = {}
        self._own: dict[str, list[Any]] = {}  # settings and code, apart from what is read

    def of(self, stage: Stage, coder: str | None) -> str:
        """Of an item that is made of items as this configuration wants them."""
        item = stage.item(coder)
        if item not in self._known:
            read = [self.of(*each) for each in self._read_by(stage, coder)]
            self._known[item] = self._of(stage, coder, read)
        return self._known[item]

    def made(self, stage: Stage, coder: str | None, manifest: Manifest) -> str:
        """Of an item that was made of the items that are there."""
        inputs = [read.item(name) for read, name in self._read_by(stage, coder)]
        return self._of(stage, coder, [manifest.items[i]["fingerprint"] for i in inputs])

    def _of(self, stage: Stage, coder: str | None, read: list[str]) -> str:
        item = stage.item(coder)
        if item not in self._own:  # a harvest's settings take reading the whole model
            self._own[item] = [stage.settings(self.config, coder), code_hash(*CODE[stage.name])]
        return sha256_json([*self._own[item], read])

    def _read_by(self, stage: Stage, coder: str | None) -> list[tuple[Stage, str | None]]:
        """A stage of one coder reads that coder's items, one of all coders the items of all."""
        reads = [STAGES[name] for name in stage.reads]
        return [
            (read, name)
            for read in reads
            for name in ([coder] if coder in read.coders(self.config) else read.coders(self.config))
        ]


def plan(
    config: RunConfig, manifest: Manifest, only: str | None = None, start: str | None = None
) -> list[Task]:
    """What has to be done: stages in order, each with the coders that are stale.

    `only` names the one stage to look at, `start` the stage from which everything is redone.
    """
    for name in (only, start):
        if name is not None and name not in STAGES:
            raise UserError(
                f"Unknown stage `{name}`; the stages are {', '.join(STAGES)}."
                + nearest(name, STAGES)
            )
    names = list(STAGES)
    fingerprints = Fingerprints(config)
    todo: list[Task] = []
    for name, stage in STAGES.items():
        if only is not None and only not in (name, stage.part_of):
            continue
        forced = start is not None and names.index(name) >= names.index(start)
        forced |= any(task.stage.name == stage.part_of for task in todo)  # it lost what it made
        coders = stage.coders(config)
        if not forced:
            coders = stale(stage, coders, manifest, fingerprints)
        if coders:
            todo.append(Task(stage, coders, forced))
    return todo


def stale(
    stage: Stage, coders: Sequence[str | None], manifest: Manifest, fingerprints: Fingerprints
) -> list[str | None]:
    """Those of the coders whose items are not what would be made now."""
    return [
        coder
        for coder in coders
        if not manifest.is_current(stage.item(coder), fingerprints.of(stage, coder))
    ]


def run_stages(config: RunConfig, todo: Sequence[Task]) -> None:
    """Does what `plan` said, and writes the resolved configuration beside the results."""
    if any(task.stage.name in ("harvest", "train") for task in todo):
        _check_coders(config)  # before the harvest, not after it
    config.folder.mkdir(parents=True, exist_ok=True)
    fingerprints = Fingerprints(config)
    if todo and not (config.folder / "run.yaml").exists():
        _write_config(config)  # a run that is killed at once can be named by its folder
    for stage, coders, forced in todo:
        for some in [coders] if stage.together else [[coder] for coder in coders]:
            with _at_work(config, stage, some[0]), ExitStack() as readers:
                _run_stage(config, Task(stage, some, forced), fingerprints, readers)
    _write_config(config)  # a kill may have come between a stage's end and this


def _at_work(config: RunConfig, stage: Stage, coder: str | None) -> Lock:
    """Held while a stage is done; those that are done together have one."""
    name = stage.name if stage.together else stage.item(coder)
    lock = config.folder / ".locks" / name.replace("/", "-")
    return Lock(lock, f"`{name}` of {config.folder}")


def _keep_out(config: RunConfig, stage: Stage, coders: Sequence[str | None]) -> Iterator[Lock]:
    """Holds the stages that read what this one is about to change; refuses if one is at work."""
    for reader in STAGES.values():
        if stage.name not in reader.reads or reader.part_of == stage.name:
            continue
        every = reader.coders(config)
        names = [coder for coder in every if coder in coders or None in (coder, *coders)]
        for name in names[:1] if reader.together else names:
            yield _at_work(config, reader, name)


def _run_stage(
    config: RunConfig, task: Task, fingerprints: Fingerprints, readers: ExitStack
) -> None:
    """One call of a stage, for the coders that it does together. `readers`: closed at its end."""
    stage, coders, forced = task
    manifest = Manifest.open(config.folder)
    if not forced:  # another process may have done some since the plan was made
        coders = stale(stage, coders, manifest, fingerprints)
        if not coders:
            return
    _require_inputs(config, stage, manifest)
    names = [coder for coder in coders if coder]
    made_of = {coder: fingerprints.made(stage, coder, manifest) for coder in coders}

    def begin() -> None:
        """The stage is about to change what it has made before."""
        for lock in _keep_out(config, stage, coders):
            readers.enter_context(lock)
        parts = [part for part in STAGES.values() if part.part_of == stage.name]
        of_parts = [part.item(coder) for part in parts for coder in part.coders(config)]
        undone = [STAGES[name].item(coder) for name in stage.undoes for coder in coders]
        manifest.forget([*map(stage.item, coders), *of_parts, *undone])
        if forced and stage.anew:
            stage.anew(config)

    console.print(f"[bold]{stage.name}[/] {listed(names)}".rstrip())
    began = time.perf_counter()
    facts = stage.run(config, names, begin)
    seconds = (time.perf_counter() - began) / len(coders)
    if stage.seals:
        for coder in coders:
            seal(*stage.seals(config, coder))
    manifest.record(
        {
            stage.item(coder): Made(made_of[coder], stage.outputs(config, coder), seconds, facts)
            for coder in coders
        }
    )
    if stage.recorded:
        stage.recorded(config)
    _write_config(config)  # only now: settings that were refused change nothing
    whole = seconds * len(coders)
    console.print(f"  done in {whole:.1f} s -> {_common(stage, config, coders)}")


def _check_coders(config: RunConfig) -> None:
    from pipelines import train

    train.check_coders(config)


def _write_config(config: RunConfig) -> None:
    """The configuration as it was resolved: a sweep is written out as its coders."""
    manifest = Manifest.open(config.folder)
    resolved = config.model_dump(mode="json", exclude={"train": {"sweep"}})
    text, file = yaml.safe_dump(resolved, sort_keys=False), config.folder / "run.yaml"
    if not file.exists() or file.read_bytes() != text.encode():
        write_text(file, text)
    digest = sha256_file(file)
    if manifest.configuration != digest:
        manifest.configured(digest)


def _require_inputs(config: RunConfig, stage: Stage, manifest: Manifest) -> None:
    for name in stage.reads:
        needed = STAGES[name]
        for coder in needed.coders(config):
            item = needed.item(coder)
            if item not in manifest.items:
                raise UserError(
                    f"{config.folder} is incomplete: `{stage.name}` needs `{item}`; "
                    f"run `sae {name} {config.folder}` first, or `sae run` for all."
                )


def _common(stage: Stage, config: RunConfig, coders: Sequence[str | None]) -> str:
    """Where the outputs are: each, or the folder that they share where there are many."""
    paths = [path for coder in coders for path in stage.outputs(config, coder)]
    whole = [path.parent if path.name in ("cfg.json", "index.json") else path for path in paths]
    return ", ".join(map(str, whole)) if len(whole) <= 3 else str(whole[0].parent)
