"""What the peers' recovery scripts share; runs in their environments, with numpy and torch alone.

    PYTHON <system>_recovery.py SETTINGS.json

The settings name `train` and `test` (.npy, rows in the order in which all systems see them),
`out` (.npz), `architecture`, `k`, `width`, `batch`, `seed`, `multiple`, `dead_after` (tokens) and
`auxk_alpha`. A script trains its system once, with the system's own recipe at `multiple` times its
default learning rate, but the dead window and, where it has one, the weight of the auxiliary loss
that all systems are given; their own are made for trainings a thousand times longer. It writes
weights and test codes to `out`, and prints {"seconds": ...}, the processor time of the training.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CHUNK = 4096  # test rows encoded at a time


class Rows:
    """Batches of the training rows in their order; every iteration starts from the first."""

    def __init__(self, file: str, batch: int) -> None:
        self.array, self.batch = np.load(file, mmap_mode="r"), batch

    def __len__(self) -> int:
        return len(self.array) // self.batch

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(len(self)):
            yield torch.from_numpy(self.array[i * self.batch : (i + 1) * self.batch].copy())


Trained = tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]


def run(train: Callable[[dict, Rows], Trained]) -> None:
    """`train` gives encoder rows, decoder rows (F, D), decoder bias, and rows -> codes."""
    given = json.loads(Path(sys.argv[1]).read_text())
    torch.manual_seed(given["seed"])
    rows = Rows(given["train"], given["batch"])
    began = time.process_time()
    W_enc_FD, W_dec_FD, b_dec_D, encode = train(given, rows)
    seconds = time.process_time() - began
    with torch.no_grad():
        parts = torch.from_numpy(np.load(given["test"])).split(CHUNK)
        codes = [_dense(encode(part)).to_sparse_csr() for part in parts]
    offsets = [torch.zeros(1, dtype=torch.int64)]
    for part in codes:
        offsets.append(part.crow_indices()[1:] + offsets[-1][-1])
    np.savez(
        given["out"],
        W_enc=W_enc_FD.detach().numpy(),
        W_dec=W_dec_FD.detach().numpy(),
        b_dec=b_dec_D.detach().numpy(),
        acts=torch.cat([part.values() for part in codes]).numpy(),
        indices=torch.cat([part.col_indices() for part in codes]).numpy(),
        offsets=torch.cat(offsets).numpy(),
    )
    print(json.dumps({"seconds": seconds}))


def _dense(codes: Tensor) -> Tensor:
    return codes.to_dense() if codes.layout != torch.strided else codes
