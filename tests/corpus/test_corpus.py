import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.base.errors import UserError
from sae.corpus import Corpus, Document, open_corpus, pack_corpus, split_of
from sae.corpus.near_duplicates import NearDuplicates
from sae.corpus.python_source import _python_files, split_source
from sae.lm import LanguageModel


def _corpus(texts: list[str]) -> Corpus:
    documents = [Document(f"d{i}", f"D{i}", text, f"g{i}") for i, text in enumerate(texts)]
    return Corpus("test", lambda: iter(documents), {})


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=80), min_size=12, max_size=30), st.integers(4, 17))
def test_packing_keeps_every_token_in_order(texts: list[str], context: int) -> None:
    from tests.corpus.tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    corpus = _corpus([t * 5 for t in texts])
    try:
        packed = pack_corpus(
            corpus,
            tokenizer,
            context=context,
            train_tokens=10**6,
            heldout_tokens=10**6,
            heldout_share=0.4,
        )
    except UserError:
        return  # too little text in a split: that is its own test
    assert (packed.tokens[:, 0] == tokenizer.bos_token_id).all()
    for split, (first, last) in packed.splits.items():
        stream = packed.tokens[first:last, 1:].ravel()
        wanted: list[int] = []
        for document in corpus.documents():
            if document.text.strip() and split_of(document, 0.4) == split:
                wanted += [tokenizer.eos_token_id]
                wanted += tokenizer(document.text, add_special_tokens=False)["input_ids"]
        assert stream.tolist() == wanted[: len(stream)]
        assert len(wanted) - len(stream) < context
    flat = packed.tokens.ravel()
    assert (flat[packed.document_start] == tokenizer.eos_token_id).all()
    assert (np.diff(packed.document_start) > 0).all()


def test_budgets_are_met_and_splits_share_no_document(tiny_lm: LanguageModel) -> None:
    corpus = _corpus([f"Text number {i} about item {i * i}. " * 8 for i in range(200)])
    packed = pack_corpus(
        corpus, tiny_lm.tokenizer, context=32, train_tokens=2000, heldout_tokens=700, multiple=4
    )
    train = packed.splits["train"]
    assert (train[1] - train[0]) % 4 == 0
    assert 2000 - 4 * 31 - 31 <= (train[1] - train[0]) * 31 <= 2000
    bounds = train[1] * 32
    halves = [
        {i for i, s in zip(packed.document_id, packed.document_start, strict=True) if part(s)}
        for part in (lambda s: s < bounds, lambda s: s >= bounds)
    ]
    assert halves[0]
    assert halves[1]
    assert not halves[0] & halves[1]


def test_packing_takes_a_few_bytes_per_token() -> None:
    """Pieces, one split end to end, and the rows: two bytes each."""
    budget, length = 4_000_000, 4_000

    class Fives:
        bos_token_id = eos_token_id = 0

        def __len__(self) -> int:
            return 300

        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[5] * length for _ in texts]}

    tracemalloc.start()
    try:
        packed = pack_corpus(
            _corpus(["x"] * 2_000),
            Fives(),
            context=100,
            train_tokens=budget // 2,
            heldout_tokens=budget // 2,
            heldout_share=0.5,
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert packed.tokens.size > budget - 200
    lists = 64 * length * 8  # of the documents that are tokenised together
    assert peak < lists + 7 * budget


def test_the_split_depends_on_the_group_alone() -> None:
    one, two = (Document(f"m:{kind}", kind, "x", "m") for kind in ("prose", "code"))
    assert split_of(one, 0.5) == split_of(two, 0.5)
    shares = [split_of(Document("", "", "", str(i)), 0.3) == "heldout" for i in range(4000)]
    assert 0.27 < np.mean(shares) < 0.33


def test_local_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "line", "title": "T"}) + "\n\n")
    pq.write_table(pa.table({"text": ["cell"], "id": ["p1"]}), tmp_path / "c.parquet")
    found = list(open_corpus(str(tmp_path)).documents())
    assert [d.text for d in found] == ["plain", "line", "cell"]
    assert found[1].title == "T"
    assert found[2].id == "p1"
    assert [d.text for d in open_corpus(str(tmp_path / "*.txt")).documents()] == ["plain"]


@pytest.mark.parametrize(
    ("content", "spec", "message"),
    [
        (None, "none.txt", "was not found"),
        ('{"body": "x"}', "a.jsonl", "has no column `text`"),
        ("{broken", "a.jsonl", "Line 1"),
        ("x", "a.csv", "must be one of"),
    ],
)
def test_mistakes_get_a_sentence(
    tmp_path: Path, content: str | None, spec: str, message: str
) -> None:
    if content is not None:
        (tmp_path / spec).write_text(content)
    with pytest.raises(UserError, match=message):
        list(open_corpus(str(tmp_path / spec)).documents())


def test_too_little_text_is_a_sentence(tiny_lm: LanguageModel) -> None:
    with pytest.raises(UserError, match="too little"):
        pack_corpus(
            _corpus(["short"]), tiny_lm.tokenizer, context=32, train_tokens=99, heldout_tokens=99
        )


def test_datasets_without_the_extra_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"loupe-sae\[datasets\]"):
        open_corpus("hf:owner/name:train:text")


def test_docstrings_and_code_are_told_apart() -> None:
    source = '"""Top."""\n\ndef f():\n    """Says\n    hello."""\n    return 1  # one\n'
    prose, code = split_source(source)
    assert prose == "Top.\n\n\nf\n\nSays\nhello."
    assert code == "def f():\n    return 1  # one"
    assert split_source("def broken(:") == ("", "def broken(:")


def test_parsing_leaves_the_garbage_collector_as_it_was() -> None:
    import gc

    for source in ("x = 1", "def broken(:"):
        split_source(source)
        assert gc.isenabled()
    gc.disable()
    try:
        split_source("x = 1")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_modules_are_found_outside_skipped_folders_alone(tmp_path: Path) -> None:
    kept = ("a.py", "p/__init__.py", "p/b.py", "p/q/c.d.py", "testing/tests.py")
    skipped = ("tests/t.py", "p/tests/deep/t.py", "p/__pycache__/x.py", "p/notes.txt", "p/py")
    for name in (*kept, *skipped):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = dict(_python_files(tmp_path, ("top",)))
    names = ("top.a", "top.p", "top.p.b", "top.p.q.c.d", "top.testing.tests")
    assert found == {n: tmp_path / k for n, k in zip(names, kept, strict=True)}


def test_near_duplicates_are_folded() -> None:
    lines = [f"line number {i} of the text" for i in range(200)]
    seen = NearDuplicates()
    assert not seen.seen("\n".join(lines))
    assert seen.seen("\n".join([*lines[:-5], "another", "ending"]))
    assert not seen.seen("\n".join(f"something else {i}" for i in range(200)))


def test_the_embedded_corpus_is_plentiful_and_in_a_fixed_order() -> None:
    from itertools import islice

    corpus = open_corpus("python")
    first = [d.id for d in islice(corpus.documents(), 40)]
    assert first == [d.id for d in islice(corpus.documents(), 40)]
    assert {i.rsplit(":")[-1] for i in first} == {"prose", "code"}


def test_a_parquet_file_with_damaged_pages_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["some words " * 50] * 100}), path, compression="gzip")
    content = bytearray(path.read_bytes())
    content[20:60] = bytes(40)  # the footer, which is read first, stays whole
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read .*; mend or drop it"):
        list(open_corpus(str(path)).documents())
