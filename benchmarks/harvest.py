"""Harvest throughput against the bare early-exit forward, and against SAELens's caching.

    python -m benchmarks.harvest [--peers .venv-peers] [--shapes pocket,gpt2-small] [--rounds 5]

Every round runs all systems once, in turn; medians of the rounds are compared, so that a noisy
machine is noisy for all. Loupe reads two sites in one pass; SAELens caches one at a time, in
float32, so Loupe does that as well. Both stop the model behind the last site, and take the harvest
stage's default of sequences per forward. SAELens is given fewer tokens and compared by its rate; it
is started, and warmed up with one forward, before the first round.
Weights of GPT-2 small's shape are random: speed does not depend on them.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.machine import machine, occasion
from pipelines.config import HarvestConfig
from pipelines.harvest import harvest_shards
from sae.base.files import write_json
from sae.lm import LanguageModel, load_lm
from sae.lm.assets import pocket_folder
from sae.store import DocumentTable, StoreSpec, StoreWriter

PEER = Path(__file__).parent / "peers" / "sae_lens_cache.py"
BATCH = HarvestConfig().batch


@dataclass(frozen=True)
class Shape:
    """Sites, and how many sequences of how many tokens Loupe and SAELens are given."""

    sites: tuple[str, ...]
    length: int
    sequences: int
    sae_lens_sequences: int


SHAPES = {
    "pocket": Shape(("blocks.2.hook_resid_post", "blocks.3.hook_resid_mid"), 256, 512, 64),
    "gpt2-small": Shape(("blocks.7.hook_resid_post", "blocks.8.hook_resid_pre"), 128, 64, 16),
}


def model_folder(shape: str, work: Path) -> Path:
    """The embedded model, or a random one of GPT-2 small's shape with the embedded tokenizer."""
    if shape == "pocket":
        return pocket_folder()
    folder = work / shape
    if not folder.exists():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
        for file in pocket_folder().glob("tokenizer*"):
            shutil.copy(file, folder)
    return folder


def bare_forward(lm: LanguageModel, tokens: np.ndarray, sites: list[str], batch: int) -> None:
    """The same early-exit pass with nothing done to what it finds."""
    for start in range(0, len(tokens), batch):
        lm.capture(torch.from_numpy(tokens[start : start + batch].astype(np.int64)), sites)


def harvest(lm: LanguageModel, tokens: np.ndarray, sites: list[str], batch: int, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    spec = StoreSpec(
        sites={site: lm.site_width(site) for site in sites},
        context=tokens.shape[1],
        sequences=len(tokens),
        splits={"train": (0, len(tokens)), "heldout": (len(tokens), len(tokens))},
        model={"name": lm.name, "hash": lm.hash},
        tokenizer_hash="",
        corpus={"description": {}, "hash": ""},
        bos=lm.bos_id,
    )
    documents = DocumentTable(np.array([1]), ["benchmark"], ["benchmark"])
    with StoreWriter(out, spec, tokens, documents) as writer:
        harvest_shards(lm, writer, tokens, batch)
        writer.finish()


class SaeLens:
    """SAELens's caching of one site in a process of its own, loaded and warm."""

    def __init__(self, peers: Path, folder: Path, tokens: np.ndarray, site: str, work: Path):
        np.save(work / "tokens.npy", tokens)
        python, self.tokens = str(peers / "sae_lens" / "bin" / "python"), tokens.size
        options = [str(folder), str(work / "tokens.npy"), site, str(BATCH), str(work / "sae-lens")]
        self.process = subprocess.Popen(
            [python, str(PEER), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(os.environ, HF_HUB_OFFLINE="1"),
        )
        self.start = self._read()["start_seconds"]

    def seconds(self) -> float:
        if self.process.stdin is None:
            raise RuntimeError("SAELens's process has no way in")
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self._read()["seconds"])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _read(self) -> dict:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit(f"SAELens failed; run {' '.join(map(str, self.process.args))}")  # pyright: ignore
        return json.loads(line)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Harvest throughput.")
    parser.add_argument("--peers", type=Path, help="folder of `make peers`; default: no SAELens")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    given = parser.parse_args()
    rows = []
    for shape in given.shapes.split(","):
        with tempfile.TemporaryDirectory() as name:
            found = measure(shape, Path(name), given.rounds, given.peers)
        for row in found:
            print(
                f"{row['case']:<12} {row['system']:<34} {row['tokens_per_s']:>10,.0f} tokens/s"
                f"  {row['of_bare']:.2f} of the bare forward",
                flush=True,
            )
        rows += found
    if given.out:
        write_json(given.out, {"machine": machine(), **occasion(), "rows": rows})


def measure(name: str, work: Path, rounds: int, peers: Path | None) -> list[dict]:
    """Rows of one shape, each against the bare forward of the same sites and dtype."""
    shape = SHAPES[name]
    sites = list(shape.sites)
    folder = model_folder(name, work)
    size = (shape.sequences, shape.length)
    tokens = np.random.default_rng(0).integers(1, 8000, size).astype(np.uint16)
    default = str(load_lm(str(folder)).dtype).removeprefix("torch.")
    models = {d: load_lm(str(folder), dtype=d) for d in dict.fromkeys([default, "float32"])}
    few = tokens[: shape.sae_lens_sequences]
    peer = SaeLens(peers, folder, few, sites[0], work) if peers else None
    rates: dict[tuple[str, str], list[float]] = {}
    for lm in models.values():  # warm up
        harvest(lm, tokens[: 2 * BATCH], sites, BATCH, work / "store.zarr")
    passes = [
        *((dtype, "two sites", sites) for dtype in models),
        ("float32", "one site", sites[:1]),
    ]
    out = work / "store.zarr"
    for _ in range(rounds):
        for dtype, what, some in passes:
            lm = models[dtype]
            bare = timed(lambda lm=lm, some=some: bare_forward(lm, tokens, some, BATCH))
            whole = timed(lambda lm=lm, some=some: harvest(lm, tokens, some, BATCH, out))
            rates.setdefault(("bare forward", f"{what}, {dtype}"), []).append(tokens.size / bare)
            rates.setdefault(("loupe", f"{what}, {dtype}"), []).append(tokens.size / whole)
        if peer:
            rate = peer.tokens / peer.seconds()
            rates.setdefault(("sae_lens", "one site, float32"), []).append(rate)
    if peer:
        peer.close()
    return [
        {
            "case": name,
            "system": f"{system}, {what}",
            "tokens_per_s": statistics.median(found),
            "of_bare": statistics.median(found) / statistics.median(rates["bare forward", what]),
            "rounds": found,
        }
        for (system, what), found in rates.items()
    ]


if __name__ == "__main__":
    main()
