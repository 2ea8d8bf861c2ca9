"""How much may exist at a time of what would grow with rows × width: its rows are taken in chunks.

Bounds are in values. A chunk's size may decide how a product is rounded, so that none depends on
what memory is free: a resumed training must take the same ones.
"""

import torch

SCORES = 1 << 26  # dense (rows, F) scores
CPU_SCORES = 1 << 25  # of them, those in which the CPU backend looks for the k largest
CPU_SCORE_ROWS = 256  # it takes at least: fewer, and packing W costs more than multiplying by it
GATHERED = 1 << 24  # (n, D) rows of a table, one for each entry of a support
SYSTEMS = 1 << 24  # the atoms and the normal equations of many least squares
UNROLLED = 1 << 28  # all dense (rows, F) tensors that unrolled steps hold for their gradient: 1 GiB


def score_rows(width: int, device: torch.device | None = None) -> int:
    """Rows of dense scores over so many latents; without a device, what is right for all.

    Each chunk reads all of W, so that a wide dictionary wants many rows: on CUDA up to a sixteenth
    of the memory, in float32. Of all of it, not of what is free. Within 32 bits of index.
    """
    values = SCORES
    if device is not None and device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        values = min(1 << 30, max(SCORES, memory // 64))
    return max(1, values // width)


def cpu_score_rows(width: int) -> int:
    """Rows of the scores in which the CPU backend looks for the k largest."""
    return max(CPU_SCORE_ROWS, CPU_SCORES // width)
