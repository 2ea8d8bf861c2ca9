"""Runs in SAELens's own environment: its activation caching on given tokens, timed.

    PYTHON sae_lens_cache.py MODEL_FOLDER tokens.npy SITE BATCH OUT_FOLDER

SITE is `blocks.L.hook_resid_post`; SAELens reads it off the Hugging Face block `transformer.h.L`.
Prints {"start_seconds": ...} once the model is loaded and one forward's worth is cached, then
{"seconds": ...} for every line that it is sent: one whole caching, model loading left out.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

FLOAT32 = 4  # bytes


def make_runner(
    folder: str, tokens: np.ndarray, site: str, batch: int, out: str
) -> CacheActivationsRunner:
    shutil.rmtree(out, ignore_errors=True)
    config = json.loads((Path(folder) / "config.json").read_text())
    return CacheActivationsRunner(
        CacheActivationsRunnerConfig(
            dataset_path="given",
            model_name=folder,
            model_class_name="AutoModelForCausalLM",
            # transformers takes the dtype of the file, which is float16 for pocket-gpt2: on a CPU
            # without native float16 products, many times slower than float32.
            model_from_pretrained_kwargs={"dtype": "float32"},
            model_batch_size=batch,
            hook_name=f"transformer.h.{site.split('.')[1]}",
            d_in=config["n_embd"],
            training_tokens=tokens.size,
            # By default a buffer is 2 GB, and is filled whole however few tokens were asked for.
            buffer_size_gb=(tokens.size * config["n_embd"] * FLOAT32 + 1) / 1e9,
            context_size=tokens.shape[1],
            new_cached_activations_path=out,
            shuffle=False,
            prepend_bos=False,
            streaming=False,
            device="cpu",
        ),
        override_dataset=Dataset.from_dict({"tokens": tokens.astype(np.int64)}),
    )


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what SAELens prints goes to the log
    folder, tokens_file, site, batch, out = sys.argv[1:]
    disable_progress_bars()
    began = time.perf_counter()
    tokens = np.load(tokens_file)
    make_runner(folder, tokens[: int(batch)], site, int(batch), out).run()
    answers.write(json.dumps({"start_seconds": time.perf_counter() - began}) + "\n")
    for _line in sys.stdin:
        runner = make_runner(folder, tokens, site, int(batch), out)
        began = time.perf_counter()
        runner.run()
        answers.write(json.dumps({"seconds": time.perf_counter() - began}) + "\n")


if __name__ == "__main__":
    main()
