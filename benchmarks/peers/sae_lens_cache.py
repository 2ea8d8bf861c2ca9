"""Runs in SAELens's own environment: its activation caching on given tokens, timed.

    PYTHON sae_lens_cache.py MODEL_FOLDER tokens.npy SITE OUT_FOLDER

SITE is `blocks.L.hook_resid_post`; SAELens reads it off the Hugging Face block `transformer.h.L`.
Prints {"seconds": ...}, model loading left out.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from datasets import Dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

BATCH = 32


def main() -> None:
    folder, tokens_file, site, out = sys.argv[1:5]
    tokens = np.load(tokens_file)
    layer = site.split(".")[1]
    config = json.loads((Path(folder) / "config.json").read_text())
    runner = CacheActivationsRunner(
        CacheActivationsRunnerConfig(
            dataset_path="given",
            model_name=folder,
            model_class_name="AutoModelForCausalLM",
            model_batch_size=BATCH,
            hook_name=f"transformer.h.{layer}",
            d_in=config["n_embd"],
            training_tokens=tokens.size,
            context_size=tokens.shape[1],
            new_cached_activations_path=out,
            shuffle=False,
            prepend_bos=False,
            streaming=False,
            device="cpu",
        ),
        override_dataset=Dataset.from_dict({"tokens": tokens.astype(np.int64)}),
    )
    began = time.perf_counter()
    runner.run()
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
