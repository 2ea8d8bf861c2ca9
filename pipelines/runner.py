"""Does the stages that are not up to date.

An item's fingerprint covers its part of the configuration, its code, and the fingerprints of the
items that it reads.
"""

import time
from collections.abc import Sequence

import yaml

from pipelines.config import RunConfig
from pipelines.manifest import CODE, Manifest, code_hash
from pipelines.progress import console, listed
from pipelines.stages import STAGES, Stage
from sae.base.errors import UserError, nearest
from sae.base.files import sha256_file, sha256_json, write_text
from sae.base.locks import Lock
from sae.base.sums import seal


class Fingerprints:
    """Fingerprints of items; each is computed once, since a sweep's coders share what they read."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._known: dict[str, str] = {}

    def of(self, stage: Stage, coder: str | None) -> str:
        item = stage.item(coder)
        if item not in self._known:
            upstream = [
                self.of(STAGES[name], read)
                for name in stage.reads
                for read in self._read_by(coder, STAGES[name])
            ]
            self._known[item] = sha256_json(
                [stage.settings(self.config, coder), code_hash(*CODE[stage.name]), upstream]
            )
        return self._known[item]

    def _read_by(self, coder: str | None, read: Stage) -> list[str | None]:
        """A stage of one coder reads that coder's items, one of all coders the items of all."""
        every = read.coders(self.config)
        return [coder] if coder in every else every


def plan(
    config: RunConfig, manifest: Manifest, only: str | None = None, start: str | None = None
) -> list[tuple[Stage, list[str | None]]]:
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
    todo: list[tuple[Stage, list[str | None]]] = []
    for name, stage in STAGES.items():
        if only is not None and only not in (name, stage.part_of):
            continue
        forced = start is not None and names.index(name) >= names.index(start)
        forced |= any(done.name == stage.part_of for done, _ in todo)  # it lost what it made
        stale = [
            coder
            for coder in stage.coders(config)
            if forced or not manifest.is_current(stage.item(coder), fingerprints.of(stage, coder))
        ]
        if stale:
            todo.append((stage, stale))
    return todo


def run_stages(config: RunConfig, todo: Sequence[tuple[Stage, list[str | None]]]) -> None:
    """Does what `plan` said, and writes the resolved configuration beside the results."""
    if any(stage.name in ("harvest", "train") for stage, _ in todo):
        _check_coders(config)  # before the harvest, not after it
    config.folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.open(config.folder)
    fingerprints = Fingerprints(config)
    if todo and not (config.folder / "run.yaml").exists():
        _write_config(config, manifest)  # a run that is killed at once can be named by its folder
    for stage, stale in todo:
        _require_inputs(config, stage, manifest)
        for coders in [stale] if stage.together else [[coder] for coder in stale]:
            at_work = stage.name if stage.together else stage.item(coders[0])
            lock = config.folder / ".locks" / at_work.replace("/", "-")
            with Lock(lock, f"`{at_work}` of {config.folder}"):
                _run_stage(config, stage, coders, manifest, fingerprints)
    _write_config(config, manifest)  # a kill may have come between a stage's end and this


def _run_stage(
    config: RunConfig,
    stage: Stage,
    coders: Sequence[str | None],
    manifest: Manifest,
    fingerprints: Fingerprints,
) -> None:
    """One call of a stage, for the coders that it does together."""
    items = {stage.item(coder): coder for coder in coders}
    forced = any(manifest.is_current(i, fingerprints.of(stage, c)) for i, c in items.items())
    parts = [part for part in STAGES.values() if part.part_of == stage.name]
    undone = [STAGES[name].item(coder) for name in stage.undoes for coder in coders]
    of_parts = [part.item(coder) for part in parts for coder in part.coders(config)]
    manifest.forget([*items, *of_parts, *undone])
    if forced and stage.anew:
        stage.anew(config)
    names = [coder for coder in coders if coder]
    console.print(f"[bold]{stage.name}[/] {listed(names)}".rstrip())
    began = time.perf_counter()
    facts = stage.run(config, names)
    seconds = time.perf_counter() - began
    for item, coder in items.items():
        if stage.seals:
            seal(*stage.seals(config, coder))
        outputs = stage.outputs(config, coder)
        each = seconds / len(coders)
        manifest.record(item, fingerprints.of(stage, coder), outputs, each, facts)
    if stage.recorded:
        stage.recorded(config)
    _write_config(config, manifest)  # only now: settings that were refused change nothing
    console.print(f"  done in {seconds:.1f} s -> {_common(stage, config, coders)}")


def _check_coders(config: RunConfig) -> None:
    from pipelines import train

    train.check_coders(config)


def _write_config(config: RunConfig, manifest: Manifest) -> None:
    """The configuration as it was resolved: a sweep is written out as its coders."""
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
