"""Does the stages that are not up to date."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import yaml

from pipelines.config import RunConfig
from pipelines.fingerprints import Fingerprints
from pipelines.locks import at_work, keep_out, readers, work_of
from pipelines.manifest import Made, Manifest
from pipelines.progress import console, listed
from pipelines.stages import STAGES, Facts, Stage
from sae.base.commands import command
from sae.base.errors import UserError, nearest
from sae.base.open_files import require_open_files
from sae.base.sums import seal

FILES_OF_CODER = 3  # that a training keeps open: two logs, and the way to Weights & Biases


class Task(NamedTuple):
    """A stage with the coders that it has work for (None: all together). `forced`: also where they
    are up to date; `closely`: also where a file is not what was written.
    """

    stage: Stage
    coders: list[str | None]
    forced: bool = False
    closely: bool = False


def plan(
    config: RunConfig, manifest: Manifest, only: str | None = None, start: str | None = None
) -> list[Task]:
    """What has to be done: stages in order, each with the coders that are stale.

    `only` names the one stage to look at, and then closely; `start` the stage from which everything
    is redone. What follows a harvest counts as stale, since nobody knows yet what that will give.
    """
    for name in (only, start):
        if name is not None and name not in STAGES:
            raise UserError(
                f"Unknown stage `{name}`; the stages are {', '.join(STAGES)}."
                + nearest(name, STAGES)
            )
    names = list(STAGES)
    fingerprints = Fingerprints(config, manifest)
    todo: list[Task] = []
    for name, stage in STAGES.items():
        if only is not None and only not in (name, stage.part_of):
            continue
        forced = start is not None and names.index(name) >= names.index(start)
        task = Task(stage, stage.coders(config), forced, closely=only is not None)
        loses = any(other.stage.name == stage.part_of for other in todo)  # what it has made
        if not (forced or loses):
            task = task._replace(coders=list(_stale(task, fingerprints)))
        if task.coders:
            todo.append(task)
    return todo


def _stale(task: Task, fingerprints: Fingerprints) -> dict[str | None, str]:
    """Those of a task's coders that are to be done, and what is damaged, or "" for what is not what
    would be made now.
    """
    found = dict.fromkeys(fingerprints.stale(task.stage, task.coders), "")
    for coder in task.coders if task.closely else ():
        if coder not in found and (damage := task.stage.damage(fingerprints.config, coder)):
            found[coder] = damage[0]
    return {coder: found[coder] for coder in task.coders if coder in found}


def run_stages(config: RunConfig, todo: Sequence[Task]) -> None:
    """Does what `plan` said, and writes the resolved configuration beside the results."""
    _check(config, todo)
    config.folder.mkdir(parents=True, exist_ok=True)
    fingerprints = Fingerprints(config, Manifest.open(config.folder))
    if todo and not (config.folder / "run.yaml").exists():
        _write_config(config)  # a run that is killed at once can be named by its folder
    for task in todo:
        for some in [task.coders] if task.stage.together else [[one] for one in task.coders]:
            with at_work(config.folder, work_of(task.stage, some[0])), ExitStack() as held:
                _run_stage(config, task._replace(coders=some), fingerprints, held)
    _write_config(config)  # a kill may have come between a stage's end and this


def _run_stage(config: RunConfig, task: Task, fingerprints: Fingerprints, held: ExitStack) -> None:
    """One call of a stage, for the coders that it does together. `held`: is closed at its end."""
    stage, coders = task.stage, task.coders
    manifest = Manifest.open(config.folder)
    fingerprints = fingerprints.at(manifest)
    if not task.forced:  # what came before, or another process, may have changed what is to be done
        stale = _stale(task, fingerprints)
        for damage in filter(None, stale.values()):
            console.print(f"{damage}; it is made again", markup=False)
        coders = list(stale)
        if not coders:
            return
    _require_inputs(config, stage, manifest)
    names = [coder for coder in coders if coder]
    if stage.refuse and not task.forced:
        stage.refuse(config, names)
    _require_files(config, stage, coders)
    made_of = {coder: fingerprints.made(stage, coder) for coder in coders}

    def begin() -> None:
        """The stage is about to change what it has made before."""
        for lock in keep_out(config, stage, coders):
            held.enter_context(lock)
        parts = [part for part in STAGES.values() if part.part_of == stage.name]
        of_parts = [part.item(coder) for part in parts for coder in part.coders(config)]
        undone = [STAGES[name].item(coder) for name in stage.undoes for coder in coders]
        manifest.forget([*map(stage.item, coders), *of_parts, *undone])
        if task.forced and stage.anew:
            stage.anew(config)

    console.print(f"[bold]{stage.name}[/] {listed(names)}".rstrip())
    began = time.perf_counter()
    facts = stage.run(config, names, begin)
    _record(config, stage, made_of, time.perf_counter() - began, facts)


def _record(
    config: RunConfig,
    stage: Stage,
    made_of: Mapping[str | None, str],
    seconds: float,
    facts: Facts,
) -> None:
    """Seals what a stage has made of these coders, and puts it on record."""
    coders = list(made_of)
    if stage.seals:
        for coder in coders:
            seal(*stage.seals(config, coder))
    each, identity = seconds / len(coders), stage.identity(config) if stage.identity else None
    Manifest.open(config.folder).record(
        {
            stage.item(coder): Made(of, stage.outputs(config, coder), each, facts, identity)
            for coder, of in made_of.items()
        }
    )
    if stage.recorded:
        stage.recorded(config)
    _write_config(config)  # only now: settings that were refused change nothing
    where = _common(stage, config, coders)
    console.print(f"  done in {seconds:.1f} s -> {where}", markup=False)


def _check(config: RunConfig, todo: Sequence[Task]) -> None:
    """What can be known to be wrong before the hours of the stages in front of it."""
    stages = {task.stage.name for task in todo}
    if stages & {"harvest", "train"}:
        from pipelines import train

        train.check_coders(config)
    if "train" in stages:
        from sae.training.log import require_wandb

        require_wandb(config.train.wandb)
    if "evaluate" in stages:
        from sae.metrics.provenance import check_controls

        check_controls(config.evaluate.controls or ())


def _write_config(config: RunConfig) -> None:
    """The configuration as it was resolved: a sweep is written out as its coders."""
    resolved = config.model_dump(mode="json", exclude={"train": {"sweep"}})
    Manifest.open(config.folder).configured(yaml.safe_dump(resolved, sort_keys=False))


def _require_inputs(config: RunConfig, stage: Stage, manifest: Manifest) -> None:
    for name in stage.reads:
        needed = STAGES[name]
        for coder in needed.coders(config):
            item = needed.item(coder)
            if item not in manifest.items:
                raise UserError(
                    f"{config.folder} is incomplete: `{stage.name}` needs `{item}`; "
                    f"run `{command(name, config.folder)}` first, or `sae run` for all."
                )


def _require_files(config: RunConfig, stage: Stage, coders: Sequence[str | None]) -> None:
    """A lock for each that is kept out, and the logs of coders that are trained together."""
    together = sum(coder is not None for coder in coders) if stage.together else 0
    require_open_files(
        len(readers(config, stage, coders)) + FILES_OF_CODER * together,
        f"`{stage.name}` of {len(config.train.coders)} coders",
        "raise the limit (`ulimit -n`), or give fewer coders at a time",
    )


def _common(stage: Stage, config: RunConfig, coders: Sequence[str | None]) -> str:
    """Where the outputs are: each, or the folder that they share where there are many."""
    paths = [path for coder in coders for path in stage.outputs(config, coder)]
    whole = [path.parent if path.name in ("cfg.json", "index.json") else path for path in paths]
    return ", ".join(map(str, whole)) if len(whole) <= 3 else str(whole[0].parent)
