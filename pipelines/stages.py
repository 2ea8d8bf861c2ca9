"""The stages, what each depends on, and the runner that does only what is not up to date.

An item is a stage, or a stage of one coder (`evaluate/topk`). Its fingerprint covers its part
of the configuration, its code, and the fingerprints of the items that it reads.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from pipelines.alike import other_seeds
from pipelines.config import RunConfig
from pipelines.manifest import CODE, Manifest, code_hash
from pipelines.progress import console, listed
from sae.base.errors import UserError, nearest
from sae.base.files import sha256_file, sha256_json, sha256_tree, write_text
from sae.base.locks import Lock
from sae.base.sums import seal
from sae.corpus import open_corpus
from sae.features.layout import SCORECARD

Facts = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """`run(config, coders)` makes the outputs of the named coders, or of the stage as a whole.

    `seals` gives the folder and the patterns of the files that it wrote, whose sums are taken then
    (harvest and index do it themselves, as they write). `anew` removes what it would find complete
    when it is to be redone; `recorded` removes what is not needed once its end is on record.
    """

    name: str
    reads: tuple[str, ...]
    settings: Callable[[RunConfig, str | None], Any]
    outputs: Callable[[RunConfig, str | None], list[Path]]
    run: Callable[[RunConfig, Sequence[str]], Facts]
    per_coder: bool = True
    together: bool = False  # its coders share one run (one stream of data)
    part_of: str | None = None  # the stage with which it is done, where that one is asked for alone
    seals: Callable[[RunConfig, str | None], tuple[Path, list[str]]] | None = None
    anew: Callable[[RunConfig], None] | None = None
    recorded: Callable[[RunConfig], None] | None = None
    undoes: tuple[str, ...] = ()  # stages whose outputs go with the old ones of this


def _runs(stage: str) -> Callable[[RunConfig, Sequence[str]], Facts]:
    """`run` of the stage's module, which is imported only then: of the run, or of one coder."""

    def run(config: RunConfig, coders: Sequence[str]) -> Facts:
        return import_module(f"pipelines.{stage}").run(config, *coders[:1])

    return run


def _train(config: RunConfig, coders: Sequence[str]) -> Facts:
    from pipelines import train

    return train.run(config, coders)


def _forget_checkpoints(config: RunConfig) -> None:
    from sae.training.checkpoint import remove_checkpoints

    remove_checkpoints(config.folder / "coders")


def _harvest_settings(config: RunConfig, _coder: str | None) -> Any:
    source = open_corpus(config.corpus.source, config.corpus.column).description
    parts = [config.corpus, config.harvest.model_copy(update={"batch": 1}), config.model]
    return [part.model_dump() for part in parts], source, _model_identity(config.model.name)


def _train_settings(config: RunConfig, name: str | None) -> Any:
    coder = next(c for c in config.train.coders if c.name == name)
    return config.train.recipe, coder.model_dump(), config.site_of(coder)


def _scorecard_settings(config: RunConfig, name: str | None) -> Any:
    others = other_seeds(config.train.coders, name or "")
    return config.scorecard.model_dump(), [_train_settings(config, o.name) for o in others]


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "harvest",
            reads=(),
            settings=_harvest_settings,
            outputs=lambda c, _: [c.store],
            run=_runs("harvest"),
            per_coder=False,
            anew=lambda c: shutil.rmtree(c.store, ignore_errors=True),
        ),
        Stage(
            "train",
            reads=("harvest",),
            settings=_train_settings,
            outputs=lambda c, n: [c.coder_folder(n or "") / "cfg.json"],
            run=_train,
            together=True,
            seals=lambda c, n: (c.coder_folder(n or ""), ["training.jsonl", "tensorboard/*"]),
            recorded=_forget_checkpoints,
        ),
        Stage(
            "evaluate",
            reads=("harvest", "train"),
            settings=lambda c, _: c.evaluate.model_dump(),
            outputs=lambda c, n: [c.folder / "evaluation" / f"{n}.json"],
            run=_runs("evaluate"),
            seals=lambda c, n: (c.folder / "evaluation", [f"{n}.json"]),
        ),
        Stage(
            "compare",
            reads=("evaluate",),
            settings=lambda c, _: [coder.name for coder in c.train.coders],
            outputs=lambda c, _: [
                c.folder / "evaluation" / "report.html",
                c.folder / "evaluation" / "compare" / "comparison.json",
            ],
            run=_runs("compare"),
            per_coder=False,
            part_of="evaluate",
            seals=lambda c, _: (c.folder / "evaluation", ["report.html", "compare/*"]),
        ),
        Stage(
            "index",
            reads=("harvest", "train"),
            settings=lambda c, _: c.index.model_dump(),
            outputs=lambda c, n: [c.folder / "features" / str(n) / "index.json"],
            run=_runs("index"),
            undoes=("scorecard",),  # which lies in the index
        ),
        Stage(
            "scorecard",
            reads=("train", "index"),
            settings=_scorecard_settings,
            outputs=lambda c, n: [c.folder / "features" / str(n) / SCORECARD],
            run=_runs("scorecard"),
            seals=lambda c, n: (c.folder / "features" / str(n), [SCORECARD]),
        ),
        Stage(
            "export",
            reads=("index",),
            settings=lambda c, _: c.export.model_dump(),
            outputs=lambda c, n: [c.folder / "export" / f"{n}.h5"],
            run=_runs("export"),
            seals=lambda c, n: (c.folder / "export", [f"{n}.h5"]),
        ),
    )
}


class Fingerprints:
    """Fingerprints of items; each is computed once, since a sweep's coders share what they read."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._known: dict[str, str] = {}

    def of(self, stage: Stage, coder: str | None) -> str:
        item = _item(stage, coder)
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
        every = _coders(self.config, read)
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
        stale = [
            coder
            for coder in _coders(config, stage)
            if forced or not manifest.is_current(_item(stage, coder), fingerprints.of(stage, coder))
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
            at_work = stage.name if stage.together else _item(stage, coders[0])
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
    items = {_item(stage, coder): coder for coder in coders}
    forced = any(manifest.is_current(i, fingerprints.of(stage, c)) for i, c in items.items())
    undone = [_item(STAGES[name], coder) for name in stage.undoes for coder in coders]
    manifest.forget([*items, *undone])
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
        for coder in _coders(config, needed):
            item = _item(needed, coder)
            if item not in manifest.items:
                raise UserError(
                    f"{config.folder} is incomplete: `{stage.name}` needs `{item}`; "
                    f"run `sae {name} {config.folder}` first, or `sae run` for all."
                )


def _coders(config: RunConfig, stage: Stage) -> list[str | None]:
    """The coders for which a stage has items of their own; None stands for all of them."""
    return [coder.name for coder in config.train.coders] if stage.per_coder else [None]


def _item(stage: Stage, coder: str | None) -> str:
    return stage.name if coder is None else f"{stage.name}/{coder}"


def _common(stage: Stage, config: RunConfig, coders: Sequence[str | None]) -> str:
    """Where the outputs are: each, or the folder that they share where there are many."""
    paths = [path for coder in coders for path in stage.outputs(config, coder)]
    whole = [path.parent if path.name in ("cfg.json", "index.json") else path for path in paths]
    return ", ".join(map(str, whole)) if len(whole) <= 3 else str(whole[0].parent)


def _model_identity(name: str) -> str:
    """Hash of a local model's files; a hub id stands for itself."""
    from sae.lm.assets import local_model_folder

    folder = local_model_folder(name)
    return name if folder is None else sha256_tree(folder, "*.[jst]*")
