"""A tiny GPT-2 with a byte-level tokenizer, a coder with random weights, and their index."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae.coders import coder_hash, make_coder, save_coder
from sae.features import layout
from sae.features.assemble import assemble
from sae.features.tokenizer_bytes import vocabulary_of
from sae.lm import load_lm

SITE, CONTEXT, WIDTH, D, K = "blocks.0.hook_resid_post", 32, 48, 32, 4
TEXT = "It was a dark night. “Who is there?” he asked. return self.value + 1\n" * 30


def make_model(folder: Path) -> Path:
    """A GPT-2 of random weights over the 256 bytes, in Hugging Face layout."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_embd=D,
        n_layer=2,
        n_head=2,
        n_positions=CONTEXT,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def add_live_coder(run: Path, synthetic: ModuleType) -> None:
    """Puts the coder `live` and its index into a run folder."""
    lm = load_lm(str(make_model(run.parent / "tiny-model")), device="cpu", dtype="float32")
    text_ids = lm.tokenizer.encode(TEXT, add_special_tokens=False)
    rows = len(text_ids) // (CONTEXT - 1)
    body = np.array(text_ids[: rows * (CONTEXT - 1)]).reshape(rows, CONTEXT - 1)
    tokens_ST = np.concatenate([np.zeros((rows, 1), np.int64), body], axis=1)
    x_STD = lm.capture(torch.from_numpy(tokens_ST), [SITE])[SITE]
    coder = make_coder("topk", D, WIDTH, k=K)
    torch.manual_seed(1)
    with torch.no_grad():
        coder.W_enc_FD.normal_()
        coder.W_dec_FD.copy_(coder.W_enc_FD / coder.W_enc_FD.norm(dim=1, keepdim=True))
    coder.metadata = {"hook_name": SITE, "model_name": lm.name}
    save_coder(coder, run / "coders" / "live")
    with torch.no_grad():
        acts = coder.encode(x_STD.flatten(0, 1)).dense().numpy().reshape(rows, CONTEXT, WIDTH)
    acts[:, 0] = 0
    folder = run / "features" / "live"
    partial = layout.partial_folder(folder)
    partial.mkdir(parents=True)
    np.save(partial / layout.TOKENS, tokens_ST.astype(np.uint16))
    splits = {"train": [0, rows - 5], "heldout": [rows - 5, rows]}
    documents = pd.DataFrame(
        {"start": [0, (rows - 5) * CONTEXT], "id": ["a", "b"], "title": ["A night", "A day"]}
        | {"split": ["train", "heldout"]}
    )
    meta = {
        "coder": "live",
        "coder_hash": coder_hash(run / "coders" / "live"),
        "site": SITE,
        "model": lm.name,
        "model_hash": lm.hash,
        "architecture": "topk",
        "corpus": "a night",
        "corpus_hash": "f" * 64,
        "d_in": D,
        "rows": [[0, rows * CONTEXT]],
        "bos_id": 0,
        "splits": splits,
    }
    vocabulary = vocabulary_of(lm.tokenizer, lm.vocab_size)
    effects = synthetic.make_effects(WIDTH, len(vocabulary))
    assemble(partial, folder, synthetic.row_codes(acts), effects, vocabulary, documents, meta)
