"""Runs in SAELens's own environment: its evaluation of a coder on given tokens, without a hub.

PYTHON sae_lens_evals.py CODER_FOLDER MODEL_FOLDER tokens.npy BOS out.json

MODEL_FOLDER holds a GPT-2 in Hugging Face's layout. The JSON has `without_bos`, where tokens that
are BOS are ignored (SAELens's `ignore_tokens`), and `with_bos`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.evals import (
    get_downstream_reconstruction_metrics,
    get_sparsity_and_variance_metrics,
)
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel


class Tokens:
    """What those functions ask an activations store for: the same tokens each time."""

    def __init__(self, tokens_ST: torch.Tensor) -> None:
        self.tokens_ST = tokens_ST

    def get_batch_tokens(self, batch_size: int) -> torch.Tensor:
        return self.tokens_ST


def hooked(folder: str) -> HookedTransformer:
    gpt2 = GPT2LMHeadModel.from_pretrained(folder).eval()
    said = gpt2.config
    config = HookedTransformerConfig(
        n_layers=said.n_layer,
        d_model=said.n_embd,
        d_head=said.n_embd // said.n_head,
        n_heads=said.n_head,
        d_mlp=4 * said.n_embd,
        d_vocab=said.vocab_size,
        n_ctx=said.n_positions,
        act_fn=said.activation_function,
        normalization_type="LN",
        eps=said.layer_norm_epsilon,
        device="cpu",
    )
    model = HookedTransformer(config)
    model.load_state_dict(convert_gpt2_weights(gpt2, config), strict=False)
    model.unembed.b_U.data.zero_()
    return model.eval()


@torch.no_grad()
def main() -> None:
    coder, model_folder, tokens, bos, out = sys.argv[1:]
    sae, model = SAE.load_from_disk(coder), hooked(model_folder)
    store = Tokens(torch.from_numpy(np.load(tokens).astype(np.int64)))
    found = {}
    for name, ignored in (("without_bos", [int(bos)]), ("with_bos", None)):
        common = {
            "n_batches": 1,
            "eval_batch_size_prompts": len(store.tokens_ST),
            "ignore_tokens": ignored,
            "model_kwargs": {},
        }
        of_activations, _ = get_sparsity_and_variance_metrics(
            sae,
            model,
            store,
            ActivationScaler(),
            compute_l2_norms=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            **common,
        )
        of_losses = get_downstream_reconstruction_metrics(
            sae, model, store, ActivationScaler(), compute_kl=True, compute_ce_loss=True, **common
        )
        found[name] = of_activations | of_losses
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
