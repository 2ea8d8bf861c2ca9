"""Who is at work in a run folder, on what: one lock for each stage, or each stage of one coder.

What others read is not changed under their hands: who begins to change it holds their locks, and is
refused if one of them is at work.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipelines.config import RunConfig
from pipelines.stages import STAGES, Stage
from sae.base.errors import UserError
from sae.base.locks import Lock

OUTSIDE = {"mechanisms": ("harvest", "train", "index"), "explain": ("index",)}
"""Commands that are no stages and read a run for minutes, one coder at a time: what each reads."""


def at_work(folder: Path, name: str) -> Lock:
    """Held while the work `name` is done in a run folder: a stage whose coders are done together
    (`train`), a stage of one coder (`evaluate-topk`), or a command of `OUTSIDE` (`explain-topk`).

    Raises:
        UserError: another process is at it, or about to change what it reads; there is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"There is no run folder {folder}; give the folder of a run.")
    item = name.replace("-", "/", 1)  # as the manifest calls it; a coder's name may hold more
    return Lock(folder / ".locks" / item.replace("/", "-"), f"`{item}` of {folder}")


def work_of(stage: Stage, coder: str | None) -> str:
    """The name of a stage's work on one coder; those that are done together have one."""
    return stage.name if stage.together else stage.item(coder).replace("/", "-")


def keep_out(config: RunConfig, stage: Stage, coders: Sequence[str | None]) -> Iterator[Lock]:
    """Holds what reads the things that this stage is about to change; refuses if it is at work."""
    for name in readers(config, stage, coders):
        yield at_work(config.folder, name)


def readers(config: RunConfig, stage: Stage, coders: Sequence[str | None]) -> list[str]:
    """Names of the work that reads what a stage of these coders makes.

    Not what is done as a part of that very stage: a comparison of evaluations that change meanwhile
    is stale on record, and to wait for it, or for who keeps it out, could cost an evaluation.
    """
    found: list[str] = []
    for reader in STAGES.values():
        if stage.name not in reader.reads or reader.part_of == stage.name:
            continue
        if reader.together or not reader.per_coder:
            found.append(reader.name)
            continue
        kin = reader.kin if stage.name == "train" else None
        others = [other for coder in coders if kin for other in kin(config, str(coder))]
        found += _of_coders(config, reader.name, [*coders, *others], foreign=kin is not None)
    for name, reads in OUTSIDE.items():
        if stage.name in reads:
            found += _of_coders(config, name, coders)
    return list(dict.fromkeys(found))


def _of_coders(
    config: RunConfig, work: str, coders: Sequence[str | None], *, foreign: bool = False
) -> list[str]:
    """The work on these coders, with None on all there are. With `foreign`, or None, also on coders
    that this configuration does not name: what they have to do with these it cannot say.
    """
    named = [coder.name for coder in config.train.coders] if None in coders else coders
    found = [f"{work}-{coder}" for coder in named]
    if foreign or None in coders:
        own = {coder.name for coder in config.train.coders}
        locks = sorted((config.folder / ".locks").glob(f"{work}-*"))
        found += [lock.name for lock in locks if lock.name.removeprefix(f"{work}-") not in own]
    return found
