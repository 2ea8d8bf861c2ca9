"""Trains pocket-gpt2, the embedded model: a small GPT-2 on public-domain books and Python's text.

    nice -n 19 python -m pipelines.pretrain --books PATH/classic_books.parquet

Killed at any point, the same command goes on from the last checkpoint. The learning rate warms
up, stays, and falls linearly over the last part of `--tokens` (Hu et al. 2024, "MiniCPM"), so
that a run may be ended early, or prolonged, by giving another `--tokens`.
Matrices of the blocks are trained by Muon (Jordan et al. 2024), all else by AdamW.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pipelines.pretrain_card import export
from pipelines.pretrain_data import END_OF_TEXT, IGNORED, Tokens, batch, open_streams
from sae.base.files import atomic_write, write_json
from sae.base.tensors import read_state, write_state
from sae.corpus.sources import Split


@dataclass(frozen=True)
class Recipe:
    books: str
    work: str = "work/pretrain"
    tokens: int = 30_000_000
    rows: int = 32  # per step
    layers: int = 6
    width: int = 256
    heads: int = 4
    context: int = 256
    muon_lr: float = 0.006
    adam_lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    decay_share: float = 0.3
    seed: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint_every: int = 200


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    torch.manual_seed(recipe.seed)
    end: Any = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    return GPT2LMHeadModel(config).to(torch.device(recipe.device))  # pyright: ignore[reportArgumentType]


def build_optimizers(model: GPT2LMHeadModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    blocks = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    chosen = {id(p) for p in blocks}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            blocks,
            lr=recipe.muon_lr,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def rate(step: int, total: int, recipe: Recipe) -> float:
    """Share of the peak learning rate: linear warm-up, plateau, linear decay to nought."""
    decay_steps = max(1, int(total * recipe.decay_share))
    return max(0.0, min(1.0, (step + 1) / recipe.warmup_steps, (total - step) / decay_steps))


def loss_of(model: GPT2LMHeadModel, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy (nats). Labels are shifted, not the (large) logits."""
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), shifted.flatten(), ignore_index=IGNORED)


def train(recipe: Recipe, streams: dict[tuple[str, Split], Tokens], model: GPT2LMHeadModel) -> int:
    """Trains to `recipe.tokens`, from the last checkpoint if there is one; returns the step."""
    work = Path(recipe.work)
    optimizers = build_optimizers(model, recipe)
    text = {name: stream for (name, split), stream in streams.items() if split == "train"}
    total = recipe.tokens // (recipe.rows * recipe.context)
    step = load_checkpoint(work, model, optimizers)
    bases = (recipe.muon_lr, recipe.adam_lr)
    log = (work / "training.jsonl").open("a")
    started, seen, running = time.perf_counter(), 0, 0.0
    while step < total:
        for optimizer, base in zip(optimizers, bases, strict=True):
            optimizer.param_groups[0]["lr"] = base * rate(step, total, recipe)
        arrays = batch(text, recipe.seed, step, recipe.rows, recipe.context, 0)
        inputs, labels = (torch.from_numpy(a).to(recipe.device) for a in arrays)
        loss = loss_of(model, inputs, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + inputs.numel()
        running = loss.item() if not running else 0.95 * running + 0.05 * loss.item()
        if step % 20 == 0 or step == total:
            speed = seen / (time.perf_counter() - started)
            record = {"step": step, "tokens": step * inputs.numel(), "loss": running}
            log.write(json.dumps({**record, "tokens_per_s": speed}) + "\n")
            log.flush()
            print(f"step {step}/{total}  loss {running:.4f}  {speed:.0f} tokens/s", flush=True)
        if step % recipe.checkpoint_every == 0 or step == total:
            save_checkpoint(work, model, optimizers, step)
    return step


def save_checkpoint(
    work: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer], step: int
) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {"step": step, "model": model.state_dict(), "optimizers": states}
    atomic_write(work / "checkpoint.pt", lambda file: write_state(state, file))


def load_checkpoint(
    work: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]
) -> int:
    path = work / "checkpoint.pt"
    if not path.exists():
        return 0
    state = read_state(path)
    model.load_state_dict(state["model"])
    for optimizer, own in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(own)
    return int(state["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains pocket-gpt2.")
    parser.add_argument("--books", required=True, help="parquet file of public-domain books")
    for name in ("tokens", "rows", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Recipe, name))
    parser.add_argument("--work", default=Recipe.work, help="folder of tokens and checkpoints")
    parser.add_argument("--out", default="", help="where the finished model goes")
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    recipe = Recipe(**arguments)
    work = Path(recipe.work)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer, streams, data_hash = open_streams(recipe.books, work)
    write_json(work / "recipe.json", {**asdict(recipe), "data_sha256": data_hash})
    model = build_model(recipe, tokenizer)
    step = train(recipe, streams, model)
    if out:
        numbers = export(Path(out), model, tokenizer, streams, asdict(recipe), step, data_hash)
        print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
