"""Where text comes from: `python`, local files, or a Hugging Face dataset.

A source is an iterator of documents in a fixed order, and a description that goes into every
manifest made from it.
"""

import glob
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sae.base.errors import UserError, nearest
from sae.base.files import parse_json
from sae.base.foreign import read_bytes, reading, require_file

Split = Literal["train", "heldout"]
SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
LARGEST_TEXT, LONGEST_LINE = 2**30, 2**26
"""Bytes of a text file, which is one document, and of a line of JSON."""


@dataclass(frozen=True)
class Document:
    """One text. Documents of one `group` always fall into the same split."""

    id: str
    title: str
    text: str
    group: str


@dataclass(frozen=True)
class Corpus:
    """A named source; `documents()` starts a new pass over it, in the same order each time."""

    spec: str
    documents: Callable[[], Iterator[Document]]
    description: dict[str, Any]


def split_of(document: Document, heldout_share: float, seed: int = 0) -> Split:
    """The document's split: a hash of its group, so it never depends on order or on budgets."""
    digest = hashlib.sha256(f"{seed}:{document.group}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8]) < heldout_share * 2**64 else "train"


def open_corpus(spec: str, column: str = "text") -> Corpus:
    """Opens `python`, a path (file, folder or glob), or `hf:dataset[:split[:column]]`.

    `column` names the text field of JSON lines and parquet files. Raises `UserError` when
    nothing is found.
    """
    if spec == "python":
        from sae.corpus import python_source

        versions = python_source.describe()
        return Corpus(spec, python_source.documents, {"source": spec, "versions": versions})
    if spec.startswith("hf:"):
        return _hugging_face(spec)
    paths = _local_paths(spec)
    files = {str(path): _size(path) for path in paths}
    description = {"source": spec, "column": column, "files": files}
    return Corpus(spec, lambda: _read_all(paths, column), description)


def _size(path: Path) -> int:
    with reading(path, "mend or drop it"):  # a link may lead nowhere
        return require_file(path)


def _local_paths(spec: str) -> list[Path]:
    path = Path(spec).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES)
    else:
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    if not found:
        raise UserError(
            f"The corpus `{spec}` was not found; give `python`, a file, folder or glob of "
            f"{', '.join(SUFFIXES)} files, or `hf:dataset:split:column`."
        )
    for file in found:
        if file.suffix not in SUFFIXES:
            raise UserError(
                f"{file} is no corpus file: its ending must be one of {', '.join(SUFFIXES)}."
            )
    return found


def _read_all(paths: list[Path], column: str) -> Iterator[Document]:
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    for path in paths:
        if path.suffix in readers:
            yield from readers[path.suffix](path, column)
        else:
            text = read_bytes(path, LARGEST_TEXT).decode("utf-8", "replace")
            yield Document(_sound(path), _sound(path.name), text, str(path))


def _read_jsonl(path: Path, column: str) -> Iterator[Document]:
    require_file(path)
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b"")):
            if not line.strip():
                continue
            where = f"Line {number + 1} of {path}"
            if len(line) == LONGEST_LINE:
                raise UserError(f"{where} has {LONGEST_LINE:,} bytes or more; mend or drop it.")
            yield _from_record(parse_json(line, where), column, f"{path}#{number}")


def _read_parquet(path: Path, column: str) -> Iterator[Document]:
    import pyarrow.parquet as pq

    with reading(path, "mend or drop it"):
        require_file(path)
        names = pq.read_schema(path).names
        wanted = [name for name in (column, "title", "id") if name in names]
        _check_column(column, names, str(path))
        # as dictionaries, since a text that is repeated unfolds to as much as there are rows
        file = pq.ParquetFile(path, read_dictionary=wanted)
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=wanted):
            for row in range(batch.num_rows):
                record = {name: batch.column(name)[row].as_py() for name in wanted}
                yield _from_record(record, column, f"{path}#{number}")
                number += 1


def _hugging_face(spec: str) -> Corpus:
    name, split, column = (*spec.removeprefix("hf:").split(":"), "", "")[:3]
    split, column = split or "train", column or "text"
    try:
        import datasets  # pyright: ignore[reportMissingImports] -- an extra
    except ImportError:
        raise UserError(
            f"The corpus `{spec}` needs the `datasets` package: pip install 'loupe-sae[datasets]'."
        ) from None

    def documents() -> Iterator[Document]:
        try:
            stream = enumerate(datasets.load_dataset(name, split=split, streaming=True))
            for number, record in stream:
                yield _from_record(record, column, f"{name}#{number}")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"The dataset `{name}` (split `{split}`) could not be read: {error}"
            ) from None

    return Corpus(spec, documents, {"source": spec, "split": split, "column": column})


def _from_record(record: Any, column: str, identity: str) -> Document:
    if not isinstance(record, dict):
        raise UserError(f"{identity} has no column `{column}`: it is no record; mend or drop it.")
    _check_column(column, record, identity)
    named = (record.get("id") or identity, record.get("title") or identity, record[column] or "")
    return Document(*map(_sound, named), group=identity)


def _sound(value: object) -> str:
    """As text that can be encoded: JSON and names of files may hold halves of characters."""
    return str(value).encode("utf-8", "replace").decode()


def _check_column(column: str, names: Any, where: str) -> None:
    if column not in names:
        raise UserError(
            f"{where} has no column `{column}`; it has {', '.join(map(str, names))}."
            + nearest(column, map(str, names))
        )
