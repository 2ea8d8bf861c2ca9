"""The stages, what each depends on, and the runner that does only what is not up to date.

An item is a stage, or a stage of one coder (`evaluate/topk`). Its fingerprint covers its part
of the configuration, its code, and the fingerprints of the items that it reads.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.config import RunConfig
from pipelines.manifest import Manifest, code_hash
from pipelines.progress import console
from sae.base.errors import UserError, nearest
from sae.base.files import sha256_json, sha256_tree, write_text
from sae.corpus import open_corpus

Facts = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """`run(config, coders)` makes the outputs of the named coders, or of the stage as a whole."""

    name: str
    reads: tuple[str, ...]
    code: tuple[str, ...]
    settings: Callable[[RunConfig, str | None], Any]
    outputs: Callable[[RunConfig, str | None], list[Path]]
    run: Callable[[RunConfig, Sequence[str]], Facts]
    per_coder: bool = True
    together: bool = False  # its coders share one run (one stream of data)


def _harvest(config: RunConfig, _coders: Sequence[str]) -> Facts:
    from pipelines import harvest

    return harvest.run(config)


def _train(config: RunConfig, coders: Sequence[str]) -> Facts:
    from pipelines import train

    return train.run(config, coders)


def _evaluate(config: RunConfig, coders: Sequence[str]) -> Facts:
    from pipelines import evaluate

    return evaluate.run(config, coders[0])


def _index(config: RunConfig, coders: Sequence[str]) -> Facts:
    from pipelines import index

    return index.run(config, coders[0])


def _export(config: RunConfig, coders: Sequence[str]) -> Facts:
    from pipelines import export

    return export.run(config, coders[0])


def _harvest_settings(config: RunConfig, _coder: str | None) -> Any:
    source = open_corpus(config.corpus.source, config.corpus.column).description
    parts = [config.corpus, config.harvest.model_copy(update={"batch": 1}), config.model]
    return [part.model_dump() for part in parts], source, _model_identity(config.model.name)


def _train_settings(config: RunConfig, name: str | None) -> Any:
    coder = next(c for c in config.train.coders if c.name == name)
    how = config.train.model_dump(exclude={"coders", "checkpoint_seconds", "wandb"})
    return how, coder.model_dump(), config.site_of(coder)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "harvest",
            reads=(),
            code=("pipelines.harvest", "sae.corpus", "sae.lm", "sae.store"),
            settings=_harvest_settings,
            outputs=lambda c, _: [c.store],
            run=_harvest,
            per_coder=False,
        ),
        Stage(
            "train",
            reads=("harvest",),
            code=("pipelines.train", "sae.kernels", "sae.coders", "sae.training"),
            settings=_train_settings,
            outputs=lambda c, n: [c.coder_folder(n or "") / "cfg.json"],
            run=_train,
            together=True,
        ),
        Stage(
            "evaluate",
            reads=("harvest", "train"),
            code=("pipelines.evaluate", "sae.metrics"),
            settings=lambda c, _: c.evaluate.model_dump(),
            outputs=lambda c, n: [c.folder / "evaluation" / f"{n}.json"],
            run=_evaluate,
        ),
        Stage(
            "index",
            reads=("harvest", "train"),
            code=("pipelines.index", "sae.features"),
            settings=lambda c, _: c.index.model_dump(),
            outputs=lambda c, n: [c.folder / "features" / str(n) / "index.json"],
            run=_index,
        ),
        Stage(
            "export",
            reads=("index",),
            code=("pipelines.export", "sae.io"),
            settings=lambda c, _: c.export.model_dump(),
            outputs=lambda c, n: [c.folder / "export" / f"{n}.h5"],
            run=_export,
        ),
    )
}


def fingerprint(config: RunConfig, stage: Stage, coder: str | None) -> str:
    upstream = [
        fingerprint(config, STAGES[name], coder if STAGES[name].per_coder else None)
        for name in stage.reads
    ]
    return sha256_json([stage.settings(config, coder), code_hash(*stage.code), upstream])


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
    todo: list[tuple[Stage, list[str | None]]] = []
    for name, stage in STAGES.items():
        if only is not None and name != only:
            continue
        forced = start is not None and names.index(name) >= names.index(start)
        coders = [c.name for c in config.train.coders] if stage.per_coder else [None]
        stale = [
            coder
            for coder in coders
            if forced
            or not manifest.is_current(_item(stage, coder), fingerprint(config, stage, coder))
        ]
        if stale:
            todo.append((stage, stale))
    return todo


def run_stages(config: RunConfig, todo: Sequence[tuple[Stage, list[str | None]]]) -> None:
    """Does what `plan` said, and writes the resolved configuration beside the results."""
    config.folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.open(config.folder)
    if todo and not (config.folder / "run.yaml").exists():
        _write_config(config)  # a run that is killed at once can be named by its folder
    for stage, stale in todo:
        _require_inputs(config, stage, manifest)
        for coders in [stale] if stage.together else [[coder] for coder in stale]:
            items = [_item(stage, coder) for coder in coders]
            manifest.forget(items)
            console.print(f"[bold]{stage.name}[/] {', '.join(c for c in coders if c)}")
            began = time.perf_counter()
            facts = stage.run(config, [coder for coder in coders if coder])
            seconds = time.perf_counter() - began
            for coder, item in zip(coders, items, strict=True):
                outputs = stage.outputs(config, coder)
                manifest.record(
                    item, fingerprint(config, stage, coder), outputs, seconds / len(coders), facts
                )
            _write_config(config)  # only now: settings that were refused change nothing
            console.print(f"  done in {seconds:.1f} s -> {_common(stage, config, coders)}")


def _write_config(config: RunConfig) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_text(config.folder / "run.yaml", text)


def _require_inputs(config: RunConfig, stage: Stage, manifest: Manifest) -> None:
    for name in stage.reads:
        needed = STAGES[name]
        for coder in config.train.coders if needed.per_coder else [None]:
            item = _item(needed, coder.name if coder else None)
            if item not in manifest.items:
                raise UserError(
                    f"{config.folder} is incomplete: `{stage.name}` needs `{item}`; "
                    f"run `sae {name} {config.folder}` first, or `sae run` for all."
                )


def _item(stage: Stage, coder: str | None) -> str:
    return stage.name if coder is None else f"{stage.name}/{coder}"


def _common(stage: Stage, config: RunConfig, coders: Sequence[str | None]) -> str:
    paths = [path for coder in coders for path in stage.outputs(config, coder)]
    return ", ".join(
        str(path.parent if path.name in ("cfg.json", "index.json") else path) for path in paths
    )


def _model_identity(name: str) -> str:
    """Hash of a local model's files; a hub id stands for itself."""
    from sae.lm.assets import local_model_folder

    folder = local_model_folder(name)
    return name if folder is None else sha256_tree(folder, "*.[jst]*")
