"""Does Adam that lets untouched rows sleep, or keeps its moments in bfloat16, cost quality?

    python -m benchmarks.moments runs/demo [--width 32768] [--tokens 1e6] [--seeds 2]

A wide TopK coder on a finished store, in batches so small that most rows are left out of each
step. `dense` is plain Adam on whole gradients. FVU is of held-out rows, the same for all.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import ROOT, machine, occasion
from sae.base.files import write_json
from sae.coders import Coder, make_coder
from sae.kernels import Support
from sae.store import ActivationStore, ShuffledReader
from sae.training import CoderTrainer, Settings
from sae.training.settings import Moments

VARIANTS: dict[str, tuple[bool, Moments]] = {  # name: (whole gradients, moments)
    "dense, float32": (True, "float32"),
    "dense, bfloat16": (True, "bfloat16"),
    "sleeping, float32": (False, "float32"),
    "sleeping, bfloat16": (False, "bfloat16"),
}
BATCH, K, HELDOUT_ROWS = 512, 32, 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares kinds of Adam on a wide coder.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--width", type=int, default=32_768)
    parser.add_argument("--tokens", type=float, default=1e6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results_moments.json")
    given = parser.parse_args()
    store = ActivationStore.open(given.run / "activations.zarr")
    rows = []
    for seed, name in itertools.product(range(given.seeds), VARIANTS):
        rows.append(measure(store, name, given.width, int(given.tokens) // BATCH, seed))
        write_json(given.out, {**occasion(), "machine": machine(), "rows": rows})
    show(rows)


def measure(store: ActivationStore, name: str, width: int, steps: int, seed: int) -> dict[str, Any]:
    whole, moments = VARIANTS[name]
    site = store.sites[0]
    settings = Settings(steps, BATCH, dead_after=200_000, auxk_k=32, moments=moments, seed=seed)
    coder = make_coder("topk", store.width[site], width, k=K)
    trainer = CoderTrainer(name, coder, site, store.stats(site), settings)
    reader = ShuffledReader(store, [site], BATCH, seed=seed)
    few = PropertyMock(return_value=False) if whole else Support.touches_few
    began = time.perf_counter()
    with patch.object(Support, "touches_few", few):
        batches = reader.batches()
        for batch in itertools.islice(batches, steps):
            trainer.step(torch.from_numpy(batch[site]))
        batches.close()
    seconds = time.perf_counter() - began
    fvu = heldout_fvu(trainer.finished_coder(), store, site)
    return {
        "variant": name,
        "seed": seed,
        "width": width,
        "tokens": steps * BATCH,
        "fvu": fvu,
        "dead": len(trainer.dead.dead),
        "seconds": seconds,
    }


def heldout_fvu(coder: Coder, store: ActivationStore, site: str) -> float:
    """Σ‖x − x̂‖² over Σ‖x − mean‖², held-out rows."""
    rows = store.rows_of("heldout")
    stop = min(rows.stop, rows.start + HELDOUT_ROWS)
    raw_BD = torch.from_numpy(store.read(site, rows.start, stop)).float()
    x_BD = raw_BD[torch.arange(len(raw_BD)) % store.context > 0]  # position 0 is not trained on
    with torch.inference_mode():
        error = sum(
            float((part - coder(part)).double().square().sum()) for part in x_BD.split(2048)
        )
    return error / float((x_BD - x_BD.mean(0)).double().square().sum())


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("Adam", "FVU by seed", "dead at the end", "s per training")
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        table.add_row(
            name,
            ", ".join(f"{row['fvu']:.4f}" for row in own),
            ", ".join(str(row["dead"]) for row in own),
            ", ".join(f"{row['seconds']:.0f}" for row in own),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
