"""Runs in SAELens's own environment: loads a coder folder there and applies it to rows.

PYTHON sae_lens_codes.py CODER_FOLDER x.npy out.npz
"""

import sys

import numpy as np
import torch
from sae_lens import SAE


def main() -> None:
    folder, rows, out = sys.argv[1:]
    sae = SAE.load_from_disk(folder)
    x_BD = torch.from_numpy(np.load(rows))
    with torch.no_grad():
        codes_BF = sae.encode(x_BD)
        x_hat_BD = sae(x_BD)
    if codes_BF.is_sparse:
        codes_BF = codes_BF.to_dense()
    np.savez(out, codes=codes_BF.numpy(), x_hat=x_hat_BD.numpy(), kind=type(sae).__name__)


if __name__ == "__main__":
    main()
