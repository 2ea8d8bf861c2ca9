"""SAELens's own trainer, with the defaults of its configuration but for the dead window.

Its auxiliary loss has the coefficient 1 on another scale; that is left as it is. See
`recovery_peer.py`.
"""

import tempfile

from recovery_peer import Rows, run
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

KINDS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def train(given: dict, rows: Rows) -> tuple:
    kind, config = KINDS[given["architecture"]]
    sae = kind(config(d_in=rows.array.shape[1], d_sae=given["width"], k=given["k"]))
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=len(rows) * rows.batch,
            train_batch_size_samples=rows.batch,
            lr=given["multiple"] * SAETrainerConfig.lr,
            dead_feature_window=max(1, given["dead_after"] // rows.batch),
            lr_end=3e-5,  # without a default here; a constant rate never comes to it
        ),
        sae,
        iter(rows),
    )
    trainer.fit()
    with tempfile.TemporaryDirectory() as folder:  # what it saves is what it means to be used
        sae.save_inference_model(folder)
        saved = SAE.load_from_disk(folder)
    return saved.W_enc.T, saved.W_dec, saved.b_dec, saved.encode


if __name__ == "__main__":
    run(train)
