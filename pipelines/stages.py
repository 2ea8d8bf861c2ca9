"""The stages: what each reads, what of the configuration decides it, and what it makes.

An item is a stage, or a stage of one coder (`evaluate/topk`). `pipelines.runner` does those that
are not up to date.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.alike import other_seeds
from pipelines.begin import Begin
from pipelines.config import RunConfig
from pipelines.results import OF_ALL, files_of, folder_of
from sae.base.files import read_json_object, remove_tree, sha256_json, sha256_tree
from sae.base.sums import SUMS, damage_of
from sae.corpus import open_corpus
from sae.features.layout import META, NOTES, SCORECARD

MODEL_FILES = ("*.[jst]*", "*.bin")  # descriptions and weights, in either form
TRAINING_LOGS = ["training.jsonl", "tensorboard/*"]
Facts = dict[str, Any]
Run = Callable[[RunConfig, Sequence[str], Begin], Facts]


@dataclass(frozen=True)
class Stage:
    """`run(config, coders, begin)` makes the outputs of the named coders, or of the whole stage.

    It calls `begin()` when it has found nothing to refuse, before it changes what it made before:
    until then that stays on record.

    `seals` gives the folder and the patterns of the files that it wrote, whose sums are taken then
    (harvest and index do it themselves, as they write). `damage` has a sentence for each file of an
    item that is not what was written, and raises `UserError` where the stage could not mend it.
    `refuse` raises `UserError` for what would be lost by beginning, which a forced stage may lose.
    `anew` removes what it would find complete when it is to be redone; `recorded` removes what is
    not needed once its end is on record. `identity` is of what it made, whatever that was made of.
    """

    name: str
    reads: tuple[str, ...]
    settings: Callable[[RunConfig, str | None], Any]
    outputs: Callable[[RunConfig, str | None], list[Path]]
    run: Run
    damage: Callable[[RunConfig, str | None], list[str]]
    per_coder: bool = True
    together: bool = False  # its coders share one run (one stream of data)
    part_of: str | None = None  # the stage with which it is done, where that one is asked for alone
    seals: Callable[[RunConfig, str | None], tuple[Path, list[str]]] | None = None
    refuse: Callable[[RunConfig, Sequence[str]], None] | None = None
    anew: Callable[[RunConfig], None] | None = None
    recorded: Callable[[RunConfig], None] | None = None
    identity: Callable[[RunConfig], str] | None = None
    undoes: tuple[str, ...] = ()  # stages whose outputs go with the old ones of this
    kin: Callable[[RunConfig, str], list[str]] | None = None
    """Coders whose weights it reads beside those of its own, which it is read with in turn."""

    def coders(self, config: RunConfig) -> list[str | None]:
        """The coders for which it has items of their own; None stands for all of them."""
        return [coder.name for coder in config.train.coders] if self.per_coder else [None]

    def item(self, coder: str | None) -> str:
        return self.name if coder is None else f"{self.name}/{coder}"

    def inputs(self, config: RunConfig, coder: str | None) -> list[tuple["Stage", str | None]]:
        """What it reads: of a stage of one coder that coder's items, of all coders those of all."""
        found: list[tuple[Stage, str | None]] = []
        for name in self.reads:
            every = STAGES[name].coders(config)
            found += [(STAGES[name], one) for one in ([coder] if coder in every else every)]
        others = self.kin(config, coder) if self.kin and coder else []
        return found + [(STAGES["train"], other) for other in others]


def _runs(stage: str) -> Run:
    """`run` of the stage's module, which is imported only then: of the run, or of one coder."""

    def run(config: RunConfig, coders: Sequence[str], begin: Begin) -> Facts:
        return import_module(f"pipelines.{stage}").run(config, *coders[:1], begin=begin)

    return run


def _train(config: RunConfig, coders: Sequence[str], begin: Begin) -> Facts:
    from pipelines import train

    return train.run(config, coders, begin=begin)


def _refuse_other_training(config: RunConfig, coders: Sequence[str]) -> None:
    from pipelines.identity import require_no_other_training

    require_no_other_training(config, coders)


def _forget_checkpoints(config: RunConfig) -> None:
    from sae.training.checkpoint import remove_checkpoints

    remove_checkpoints(config.folder / "coders")


def _attributes_of_store(config: RunConfig) -> dict[str, Any]:
    return dict(read_json_object(config.store / "zarr.json").get("attributes") or {})


def _remove_whole_store(config: RunConfig) -> None:
    """With a part of one, a kill or a full disk came in between: the harvest goes on with it."""
    if (config.store / SUMS).exists() and _attributes_of_store(config).get("complete"):
        remove_tree(config.store)


def _damage_of_store(config: RunConfig, _coder: str | None) -> list[str]:
    """Files that are missing, and metadata that are damaged; to read all of it is `sae verify`'s.
    A harvest goes on with what is there, so that only its owner can say that all of it may go.
    """
    from sae.store import ActivationStore

    ActivationStore.open(config.store)
    return []


def _harvest_settings(config: RunConfig, _coder: str | None) -> Any:
    source = open_corpus(config.corpus.source, config.corpus.column).description
    changed = [Path(file).stat().st_mtime_ns for file in source.get("files", ())]
    parts = [
        config.corpus.model_dump(),
        config.harvest.model_dump(exclude={"batch"}),
        config.model.model_dump(exclude={"device"}),
    ]
    return parts, source, changed, _model_identity(config.model.name)


def _train_settings(config: RunConfig, name: str | None) -> Any:
    coder = next(c for c in config.train.coders if c.name == name)
    return config.train.recipe, config.training_of(coder)


def _model_identity(name: str) -> str | list[str]:
    """Hashes of a local model's files; a hub id stands for itself."""
    from sae.lm.assets import local_model_folder

    folder = local_model_folder(name)
    return name if folder is None else [sha256_tree(folder, form) for form in MODEL_FILES]


def _other_seeds(config: RunConfig, name: str) -> list[str]:
    return [coder.name for coder in other_seeds(config.train.coders, name)]


def _scorecard_settings(config: RunConfig, name: str | None) -> Any:
    return config.scorecard.model_dump(), _other_seeds(config, str(name))


def _export_settings(config: RunConfig, name: str | None) -> Any:
    """With what people wrote about the features: it is exported, and may be filtered by."""
    from sae.features.filters import resolved
    from sae.features.notes import Notes

    folder, written = config.folder / "features" / str(name), None
    if (folder / META).exists() and (folder / NOTES).exists():
        weights = read_json_object(folder / META).get("coder_hash")
        written = Notes(folder / NOTES, str(weights)).export_json()
    return config.export.model_dump(), resolved(config.export.features), written


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "harvest",
            reads=(),
            settings=_harvest_settings,
            outputs=lambda c, _: [c.store],
            run=_runs("harvest"),
            damage=_damage_of_store,
            per_coder=False,
            anew=_remove_whole_store,
            identity=lambda c: sha256_json(_attributes_of_store(c)),
        ),
        Stage(
            "train",
            reads=("harvest",),
            settings=_train_settings,
            outputs=lambda c, n: [c.coder_folder(n or "") / "cfg.json"],
            run=_train,
            damage=lambda c, n: damage_of(c.coder_folder(n or ""), but=TRAINING_LOGS),
            together=True,
            seals=lambda c, n: (c.coder_folder(n or ""), TRAINING_LOGS),
            refuse=_refuse_other_training,
            recorded=_forget_checkpoints,
        ),
        Stage(
            "evaluate",
            reads=("harvest", "train"),
            settings=lambda c, _: c.evaluate.model_dump(),
            outputs=lambda c, n: [folder_of(c) / file for file in files_of(str(n))],
            run=_runs("evaluate"),
            damage=lambda c, n: damage_of(folder_of(c), files_of(str(n))),
            seals=lambda c, n: (folder_of(c), files_of(str(n))),
        ),
        Stage(
            "compare",
            reads=("harvest", "train", "evaluate"),
            settings=lambda c, _: [coder.name for coder in c.train.coders],
            outputs=lambda c, _: [
                folder_of(c) / "report.html",
                folder_of(c) / "compare" / "comparison.json",
            ],
            run=_runs("compare"),
            damage=lambda c, _: damage_of(folder_of(c), OF_ALL),
            per_coder=False,
            part_of="evaluate",
            seals=lambda c, _: (folder_of(c), list(OF_ALL)),
        ),
        Stage(
            "index",
            reads=("harvest", "train"),
            settings=lambda c, _: c.index.model_dump(),
            outputs=lambda c, n: [c.folder / "features" / str(n) / "index.json"],
            run=_runs("index"),
            damage=lambda c, n: damage_of(c.folder / "features" / str(n), but=[SCORECARD]),
            undoes=("scorecard",),  # which lies in the index
        ),
        Stage(
            "scorecard",
            reads=("train", "index"),
            settings=_scorecard_settings,
            outputs=lambda c, n: [c.folder / "features" / str(n) / SCORECARD],
            run=_runs("scorecard"),
            damage=lambda c, n: damage_of(c.folder / "features" / str(n), [SCORECARD]),
            kin=_other_seeds,
            seals=lambda c, n: (c.folder / "features" / str(n), [SCORECARD]),
        ),
        Stage(
            "export",
            reads=("index",),
            settings=_export_settings,
            outputs=lambda c, n: [c.folder / "export" / f"{n}.h5"],
            run=_runs("export"),
            damage=lambda c, n: damage_of(c.folder / "export", [f"{n}.h5"]),
            seals=lambda c, n: (c.folder / "export", [f"{n}.h5"]),
        ),
    )
}
