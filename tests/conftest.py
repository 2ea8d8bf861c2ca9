"""Shared fixtures: a tiny GPT-2 on disk, a tiny store, and the option for files beside the repo."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Without a GPU, Triton's kernels are proven by its interpreter. Triton asks for this when it is
# first imported, which torch does only when it compiles.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shared",
        type=Path,
        default=None,
        help="folder with corpus/ and gpt2-tokenizer/, for tests at GPT-2's true shape",
    )
    parser.addoption("--run", type=Path, default=None, help="a finished run to check coders of")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if find_spec("triton") is None:
        terminalreporter.write_line("Triton is not installed: its kernels were not tested.")


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--shared")
    if folder is None:
        pytest.skip("needs --shared FOLDER (corpus/ and gpt2-tokenizer/)")
    return folder


TEXTS = [
    "The quick brown fox jumps over the lazy dog, said Alice to the White Rabbit. " * 3,
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))  # 3\n" * 3,
    "Numbers such as 12, 345 and 6789 are digits; naïve café costs 10 €.\n" * 3,
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of 2 blocks x 32, context 32, with a byte-level BPE of its own, on disk."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(wrapped),
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lm(tiny_folder: Path):
    from sae.lm import load_lm

    return load_lm(str(tiny_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 short text files, all different."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        text = " ".join(f"{TEXTS[i % 3][: 60 + i]} Number {i * j}." for j in range(1, 12))
        (folder / f"{i:02}.txt").write_text(text)
    return folder


def tiny_settings(folder: Path, model: Path, corpus: Path) -> list[str]:
    """Settings of a whole run that takes seconds."""
    return [
        f"folder={folder}",
        f"model.name={model}",
        "model.device=cpu",  # equal runs are compared to the bit, with and without a GPU
        "model.dtype=float32",
        f"corpus.source={corpus}",
        "corpus.train_tokens=6000",
        "corpus.heldout_tokens=2000",
        "harvest.sites=[blocks.0.hook_resid_post]",
        "train.tokens=16384",
        "train.batch=256",
        "train.coders=[{name: topk, k: 4, expansion: 4}]",
        "evaluate.quick=true",
        "evaluate.tokens=1500",
        "evaluate.loss_tokens=1500",
        "index.tokens=6000",
    ]


@pytest.fixture
def tiny_config(tiny_folder: Path, tiny_corpus: Path, tmp_path: Path) -> list[str]:
    return tiny_settings(tmp_path / "run", tiny_folder, tiny_corpus)


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_corpus: Path
) -> Path:
    """A whole tiny run, made once, which tests only read or copy."""
    from tests.pipelines.command import sae

    folder = tmp_path_factory.mktemp("runs") / "run"
    output = sae("run", *tiny_settings(folder, tiny_folder, tiny_corpus))
    assert "topk" in output
    assert "sae browse" in output
    return folder
