"""Runs of `sae` in processes of their own that need not import anything first; what they made."""

import contextlib
import io
import json
import multiprocessing
import os
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import h5py
import numpy as np
import yaml

from pipelines.manifest import Manifest
from sae.base.sums import read_sums

PRELOADED = [
    "pipelines.cli",
    "pipelines.stages",
    "pipelines.harvest",
    "pipelines.train",
    "pipelines.evaluate",
    "pipelines.compare",
    "pipelines.index",
    "pipelines.scorecard",
    "pipelines.export",
    "torch.utils.tensorboard",
]

STAGES = ("harvest", "train", "evaluate", "compare", "index", "scorecard", "export")


def number(of: str, default: int, *, full: int) -> int:
    """How many: `TORTURE_<of>` where it is given, else by whether `TORTURE=full`."""
    is_full = os.environ.get("TORTURE") == "full"
    return int(os.environ.get(f"TORTURE_{of}", full if is_full else default))


def context() -> ForkServerContext:
    """A server that has imported everything, and computed nothing, and forks from there."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def start(server: ForkServerContext, config: Path, output: Path) -> ForkServerProcess:
    """`sae run CONFIG` as a process; what it says goes to `output`."""
    process = server.Process(target=_sae, args=(config, output))
    process.start()
    return process


def _sae(config: Path, output: Path) -> None:
    from pipelines.cli import main
    from pipelines.progress import console

    with output.open("w", buffering=1) as file:
        console.file = file
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            main(["run", str(config)])


def make_config(folder: Path, settings: list[str]) -> Path:
    """The settings of a run in `folder`, with checkpoints at every step, as a YAML file."""
    from pipelines.config import RunConfig
    from sae.base.config import load_config

    more = [f"folder={folder}", "train.checkpoint_seconds=0.02"]
    config = load_config(RunConfig, None, [*settings, *more])
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude={"train": {"sweep"}})))
    return path


def stage_of(output: Path) -> str:
    """The stage that was at work when the process ended."""
    return ("start", *_begun(output))[-1]


def _begun(output: Path) -> list[str]:
    """The stages that the process says it has begun, in order."""
    lines = output.read_text().splitlines() if output.exists() else []
    return [word for line in lines if (word := line.split(" ")[0]) in STAGES]


def durations(run: Path) -> dict[str, float]:
    """Seconds that each stage took in a finished run, over all coders."""
    found = dict.fromkeys(STAGES, 0.0)
    for name, item in Manifest.open(run).items.items():
        found[name.partition("/")[0]] += item["seconds"]
    return found


def goes_on_into(process: ForkServerProcess, output: Path, stage: str, delay: float) -> bool:
    """Waits until `delay` seconds after a stage has begun; whether the process is at work then."""
    while process.exitcode is None and stage != "start" and stage not in _begun(output):
        process.join(0.002)
    process.join(delay)
    return process.exitcode is None


def next_target(rng: np.random.Generator, before: str) -> str | None:
    """The stage to interrupt next in a run that was interrupted in `before`: that, or a later one,
    so that each stage is hit about as often, however short it is. None: let it come to its end."""
    every = ("start", *STAGES)
    if before == every[-1]:
        return None
    return every[min(every.index(before) + int(rng.integers(0, 3)), len(every) - 1)]


def results_of(run: Path) -> dict[str, object]:
    """What must not depend on interruptions: hashes of all that is made, without times of day."""
    coders = {path.name for path in (run / "coders").iterdir() if path.is_dir()}
    found: dict[str, object] = {"store": read_sums(run / "activations.zarr")}
    for name in sorted(coders):
        sums = read_sums(run / "coders" / name)
        found[f"{name} weights"] = sums["sae_weights.safetensors"]
        found[f"{name} cfg"] = sums["cfg.json"]
        found[f"{name} curve"] = _curve(run / "coders" / name / "training.jsonl")
        index = read_sums(run / "features" / name)
        found[f"{name} index"] = {k: v for k, v in index.items() if k != "index.json"}
        evaluation = json.loads((run / "evaluation" / f"{name}.json").read_text())
        found[f"{name} metrics"] = (evaluation["metrics"], evaluation["controls"])
        found[f"{name} export"] = _datasets(run / "export" / f"{name}.h5")
    return found


def _curve(path: Path) -> list[dict[str, float]]:
    timed = ("tokens_per_s", "waited_share")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def _datasets(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = repr(item[...].tolist()).encode()

    with h5py.File(io.BytesIO(path.read_bytes())) as file:
        file.visititems(visit)
    return found
