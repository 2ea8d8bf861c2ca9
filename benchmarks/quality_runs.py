"""Single trainings for `benchmarks.quality`: made once, kept, and never made again."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import ROOT, occasion
from benchmarks.peers.spec import Spec
from pipelines.config import RunConfig
from pipelines.harvest import run as harvest
from sae.base.files import read_json, write_json
from sae.coders import Coder, load_coder
from sae.io.dictionary_learning import load_dictionary_learning
from sae.io.sparsify import load_sparsify
from sae.lm import LanguageModel, load_lm
from sae.metrics import evaluate
from sae.store import ActivationStore, ShuffledReader
from sae.training import Settings

SCRIPT = ROOT / "benchmarks" / "peers" / "train_worker.py"
SYSTEMS = ("loupe", "sparsify", "dictionary_learning", "sae_lens")
ASIDE = 256  # tokens of those parts of an evaluation that are not looked at here
METRICS = ("fvu", "delta_ce", "l0", "alive")
LOAD: dict[str, Callable[[Path, str], Coder]] = {
    "loupe": lambda folder, _site: load_coder(folder),
    "sparsify": load_sparsify,
    "dictionary_learning": load_dictionary_learning,
    "sae_lens": lambda folder, _site: load_coder(folder),
}


@dataclass(frozen=True)
class Sizes:
    """What is trained, and on how much it is scored."""

    width: int
    k: int
    batch: int
    tokens: int
    dead_after: int
    scored_tokens: int
    loss_tokens: int


class Bench:
    """A store, its shuffled rows in one file, and the trainings on them, below one folder."""

    def __init__(
        self, folder: Path, model: str, site: str, sizes: Sizes, pythons: dict[str, str]
    ) -> None:
        self.folder, self.site, self.sizes, self.pythons = folder, site, sizes, pythons
        self._check_sizes()
        self.lm: LanguageModel = load_lm(model, "cpu", "float32")
        config = RunConfig.model_validate(
            {
                "folder": folder,
                "model": {"name": model},
                "corpus": {
                    "source": "python",
                    "train_tokens": sizes.tokens,
                    "heldout_tokens": 2 * sizes.scored_tokens,
                },
                "harvest": {"sites": [site]},
            }
        )
        if not (folder / "rows.npy").exists():
            harvest(config)
        self.store = ActivationStore.open(config.store)
        if not (folder / "rows.npy").exists():
            self._write_rows()

    def _check_sizes(self) -> None:
        """What was trained with other sizes must not be taken for what is asked for now."""
        path, wanted = self.folder / "sizes.json", {"site": self.site, **asdict(self.sizes)}
        if path.exists() and read_json(path) != wanted:
            raise SystemExit(f"{self.folder} was made with other sizes; give another --folder.")
        write_json(path, wanted)

    def _write_rows(self) -> None:
        """One epoch of the train split, shuffled: every system reads the same rows in turn."""
        reader = ShuffledReader(self.store, [self.site], self.sizes.batch, seed=0)
        count = reader.order.batches_per_epoch
        partial = self.folder / "rows.partial.npy"
        shape = (count * self.sizes.batch, self.store.width[self.site])
        rows = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
        batches = reader.batches()
        for i in range(count):
            rows[i * self.sizes.batch : (i + 1) * self.sizes.batch] = next(batches)[self.site]
        batches.close()
        rows.flush()
        partial.rename(self.folder / "rows.npy")

    def spec(self, seed: int, tokens: int, rate: float | None, unit_rows: bool) -> Spec:
        sizes, stats = self.sizes, self.store.stats(self.site)
        square = stats.variance + float(np.square(stats.mean_D).sum())
        return Spec(
            d=self.store.width[self.site],
            width=sizes.width,
            k=sizes.k,
            batch=sizes.batch,
            steps=max(8, tokens // sizes.batch),
            auxk=True,
            seed=seed,
            learning_rate=rate,
            dead_after=sizes.dead_after,
            scale=(len(stats.mean_D) / square) ** 0.5 if unit_rows else 1.0,
        )

    def run(
        self,
        system: str,
        seed: int,
        tokens: int | None = None,
        rate: float | None = None,
        unit_rows: bool = False,
    ) -> dict[str, Any]:
        """Trains a system (unless it has been) and scores it: seconds, and the `METRICS`.

        `unit_rows`: it reads rows of a mean square of 1, and the coder is folded for raw ones.
        """
        spec = self.spec(seed, tokens or self.sizes.tokens, rate, unit_rows)
        shown = Settings(spec.steps).peak_rate(spec.width) if rate is None else rate
        name = f"{system}-{spec.steps}-{shown:.3g}-{'unit-' if unit_rows else ''}{seed}"
        folder = self.folder / "runs" / name
        if (folder / "result.json").exists():
            return read_json(folder / "result.json")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = self._train(system, spec, folder)
        coder = LOAD[system](folder / "coder", self.site)
        scored = self._score(coder.folded(spec.scale) if unit_rows else coder, seed)
        result = {"system": system, "spec": asdict(spec), **found, "metrics": scored}
        result["made"] = occasion()  # a training may be older than the run that reports it
        write_json(folder / "result.json", result)
        return result

    def _train(self, system: str, spec: Spec, folder: Path) -> dict[str, Any]:
        environment = dict(os.environ)
        if system == "loupe":
            environment["PYTHONPATH"] = str(ROOT)
        rows, out = str(self.folder / "rows.npy"), str(folder / "coder")
        options = json.dumps(asdict(spec))
        command = [self.pythons[system], str(SCRIPT), system, options, rows, out]
        with (folder / "log.txt").open("w") as log:
            done = subprocess.run(
                command, check=False, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        if done.returncode:
            raise SystemExit(f"{system} failed; see {folder / 'log.txt'}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def _score(self, coder: Coder, seed: int) -> dict[str, Any]:
        coder.metadata["hook_name"] = self.site
        sizes = self.sizes
        found = evaluate(
            coder,
            self.store,
            self.lm,
            tokens=sizes.scored_tokens,
            loss_tokens=sizes.loss_tokens,
            seed=seed,
            controls=(),
            control_tokens=ASIDE,
            control_loss_tokens=ASIDE,
            pursuit_tokens=ASIDE,
        )
        return {name: found["metrics"][name] for name in METRICS}
