"""dictionary_learning's own `trainSAE` and trainers. See `recovery_peer.py`.

Activations are normalised, as its demo and README do, and the dead window is the one given; all
else are the trainers' defaults (its auxiliary loss has the weight that is given to the others).
"""

import tempfile
from pathlib import Path
from typing import Any

from dictionary_learning.trainers.batch_top_k import BatchTopKSAE, BatchTopKTrainer
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from recovery_peer import Rows, run

RATE = 2e-4  # of the trainers at 2^14 latents where no rate is given; ∝ 1 / √latents
KINDS = {"topk": (TopKTrainer, AutoEncoderTopK), "batchtopk": (BatchTopKTrainer, BatchTopKSAE)}


def train(given: dict, rows: Rows) -> tuple:
    trainer, kind = KINDS[given["architecture"]]

    def with_window(**options: Any) -> Any:
        made = trainer(**{"auxk_alpha": given["auxk_alpha"], **options})
        made.dead_feature_threshold = given["dead_after"]  # no option of the constructor
        return made

    config = {
        "trainer": with_window,
        "steps": len(rows),
        "activation_dim": rows.array.shape[1],
        "dict_size": given["width"],
        "k": given["k"],
        "lr": given["multiple"] * RATE / (given["width"] / 2**14) ** 0.5,
        "layer": 0,
        "lm_name": "synthetic",
        "seed": given["seed"],
        "device": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        trainSAE(
            rows, [config], len(rows), save_dir=folder, normalize_activations=True, device="cpu"
        )
        coder = kind.from_pretrained(str(Path(folder) / "trainer_0" / "ae.pt"))
    return coder.encoder.weight, coder.decoder.weight.T, coder.b_dec, coder.encode


if __name__ == "__main__":
    run(train)
