"""sparsify's own trainer with its defaults, over a model whose one module gives out the rows.

The dead window is the one given, and the auxiliary loss, which is off by default, is on. See
`recovery_peer.py`. The trainer hooks a module of a language model; here that is a look-up of
row numbers, so that nothing of the recipe had to be written anew.
"""

import tempfile
from pathlib import Path

import torch
from recovery_peer import Rows, run
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

HOOK = "rows"
RATE = 5e-3  # of its default optimiser, signum, at 2^14 latents; ∝ 1 / √latents


class Lookup(nn.Module):
    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, numbers_ST: Tensor) -> Tensor:
        return torch.from_numpy(self.rows.array[numbers_ST.numpy()])


class RowModel(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, rows: Rows) -> None:
        super().__init__(PretrainedConfig())
        self.rows = Lookup(rows)
        self.anchor = nn.Parameter(torch.zeros(1))  # gives the model a device

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.rows(input_ids)


class Numbers(torch.utils.data.Dataset):
    """One "sequence" per batch: the numbers of its rows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        first = i * self.rows.batch
        return {"input_ids": torch.arange(first, first + self.rows.batch)}


def train(given: dict, rows: Rows) -> tuple:
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=given["width"], k=given["k"]),
            batch_size=1,
            hookpoints=[HOOK],
            init_seeds=[given["seed"]],
            lr=given["multiple"] * RATE / (given["width"] / 2**14) ** 0.5,
            auxk_alpha=given["auxk_alpha"],
            dead_feature_threshold=given["dead_after"],
            log_to_wandb=False,
            save_every=10**9,
            save_dir=folder,
        )
        Trainer(config, Numbers(rows), RowModel(rows)).fit()
        coder = SparseCoder.load_from_disk(Path(folder) / "unnamed" / HOOK)

    def encode(x_BD: Tensor) -> Tensor:
        acts_BK, indices_BK, _ = coder.encode(x_BD)
        return torch.zeros(len(x_BD), coder.num_latents).scatter(1, indices_BK, acts_BK)

    return coder.encoder.weight, coder.W_dec, coder.b_dec, encode


if __name__ == "__main__":
    run(train)
