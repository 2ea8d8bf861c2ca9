"""Harvest throughput against the bare early-exit forward, and against SAELens's caching.

    python -m benchmarks.harvest [--peers PYTHON] [--shapes pocket,gpt2-small] [--rounds 5]

Every round runs all systems once, in turn; medians of the rounds are compared, so that a noisy
machine is noisy for all. Weights of GPT-2 small's shape are random: speed does not depend on them.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pipelines.harvest import harvest_shards
from sae.base.files import write_json
from sae.lm import LanguageModel, load_lm
from sae.lm.assets import pocket_folder
from sae.store import DocumentTable, StoreSpec, StoreWriter

PEER = Path(__file__).parent / "peers" / "sae_lens_cache.py"
SHAPES = {
    # name: (sites, sequences, tokens per sequence, sequences per forward)
    "pocket": (["blocks.2.hook_resid_post", "blocks.3.hook_resid_mid"], 1024, 256, 32),
    "gpt2-small": (["blocks.7.hook_resid_post", "blocks.8.hook_resid_pre"], 96, 128, 32),
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


def sae_lens_seconds(python: str, folder: Path, tokens: np.ndarray, site: str, work: Path) -> float:
    """Seconds of SAELens's own activation caching, model loading left out."""
    np.save(work / "tokens.npy", tokens)
    out = work / "sae-lens"
    shutil.rmtree(out, ignore_errors=True)
    command = [python, str(PEER), str(folder), str(work / "tokens.npy"), site, str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Harvest throughput.")
    parser.add_argument("--peers", help="Python of an environment with sae-lens")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for shape in given.shapes.split(","):
            rows += measure(shape, Path(name), given.rounds, given.peers)
    for row in rows:
        print(
            f"{row['case']:<12} {row['system']:<28} {row['tokens_per_s']:>10,.0f} tokens/s"
            f"  {row['of_bare']:.2f} of the bare forward"
        )
    if given.out:
        write_json(given.out, {"machine": platform.processor(), "rows": rows})


def measure(shape: str, work: Path, rounds: int, peers: str | None) -> list[dict]:
    """Rows of one shape. SAELens computes in float32, its default; so each dtype has a row."""
    sites, sequences, length, batch = SHAPES[shape]
    folder = model_folder(shape, work)
    tokens = np.random.default_rng(0).integers(1, 8000, (sequences, length)).astype(np.uint16)
    default = str(load_lm(str(folder)).dtype).removeprefix("torch.")
    models = {d: load_lm(str(folder), dtype=d) for d in dict.fromkeys([default, "float32"])}
    seconds: dict[tuple[str, str], list[float]] = {}
    for lm in models.values():  # warm up
        bare_forward(lm, tokens[:batch], sites, batch)
    for _ in range(rounds):
        for dtype, lm in models.items():
            bare = timed(lambda lm=lm: bare_forward(lm, tokens, sites, batch))
            whole = timed(lambda lm=lm: harvest(lm, tokens, sites, batch, work / "store.zarr"))
            seconds.setdefault(("bare forward", dtype), []).append(bare)
            seconds.setdefault(("loupe", dtype), []).append(whole)
        if peers:
            found = sae_lens_seconds(peers, folder, tokens, sites[0], work)
            seconds.setdefault(("sae_lens, one site", "float32"), []).append(found)
    return [
        {
            "case": shape,
            "system": f"{system} {dtype}",
            "seconds": statistics.median(times),
            "tokens_per_s": tokens.size / statistics.median(times),
            "of_bare": statistics.median(seconds["bare forward", dtype]) / statistics.median(times),
        }
        for (system, dtype), times in seconds.items()
    ]


if __name__ == "__main__":
    main()
