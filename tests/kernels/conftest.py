"""Without a GPU, Triton's kernels are proven by its interpreter, which must be chosen early."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
