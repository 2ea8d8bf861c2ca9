"""Files of strangers: what they promise is held against what is there, and refused in words."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sae.base.errors import UserError, one_line
from sae.base.files import read_json, read_json_object
from sae.base.foreign import (
    is_inside,
    read_bytes,
    read_npz,
    reading,
    require_file,
    require_plain_files,
)
from sae.base.tensors import read_state
from sae.features.tables import read_table


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: os.mkfifo(path), "no plain file"),
        (lambda path: path.symlink_to("/dev/zero"), "no plain file"),
        (lambda path: path.mkdir(), "no plain file"),
        (lambda path: path.symlink_to(path.name), "cannot be read"),
        (lambda path: path.write_bytes(b"12345"), "has 5 bytes, .* at most 4"),
    ],
    ids=["pipe", "device", "folder", "ring", "large"],
)
def test_only_plain_files_of_a_size_are_opened(
    tmp_path: Path, make: Callable[[Path], Any], said: str
) -> None:
    """Not even to find out: a pipe would be waited for without end."""
    make(tmp_path / "x")
    for refuse in (lambda: read_bytes(tmp_path / "x", 4), lambda: require_file(tmp_path / "x", 4)):
        with pytest.raises(UserError, match=said):
            refuse()
    if said == "no plain file" and not (tmp_path / "x").is_dir():
        with pytest.raises(UserError, match=said):
            require_plain_files(tmp_path)


def test_links_to_plain_files_are_followed(tmp_path: Path) -> None:
    """As the hub's cache has them."""
    (tmp_path / "blob").write_bytes(b"1234")
    (tmp_path / "x").symlink_to("blob")
    assert read_bytes(tmp_path / "x", 4) == b"1234"
    assert require_plain_files(tmp_path) == 8
    with pytest.raises(FileNotFoundError):
        require_file(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a", "a/b.json", "c/0/0", "..a"])
def test_names_that_stay_inside(name: str) -> None:
    assert is_inside(name)


@pytest.mark.parametrize(
    "name", ["", "/a", "..", "../a", "a/../../b", "a\0", "..\\a", 3, None, "é" * 200]
)
def test_names_that_lead_out(name: object) -> None:
    assert not is_inside(name)


def test_sentences_are_one_line_that_a_terminal_can_show() -> None:
    assert one_line("a\n b\x1b[2J\u202e\ud800") == r"a b\x1b[2J\u202e\ud800"
    assert str(UserError("x\ny")) == "x y"
    long = str(UserError(f"It is {'x' * 10**6}; mend it."))
    assert len(long) < 1000
    assert long.startswith("It is x")
    assert long.endswith("mend it.")


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[1,", '{"a": NaN}', "[" * 10**5, "9" * 9999])
def test_json_is_strict(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_json_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(UserError, match="holds no JSON object but list"):
        read_json_object(tmp_path / "x.json")


class Mkdir:
    """A pickle that acts when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


SPARSE = torch.zeros(1, 1, dtype=torch.long), [1.0]


@pytest.mark.parametrize(
    "state",
    [
        lambda: torch.zeros(1).expand(2**20, 2**14),
        lambda: {"a": [torch.zeros(1).expand(10**6)]},
        lambda: torch.sparse_coo_tensor(*SPARSE, (2**40,), check_invariants=True),
        lambda: torch.zeros(2**33, device="meta"),
    ],
    ids=["view", "nested", "sparse", "nowhere"],
)
def test_tensors_that_are_not_all_there_are_refused(
    tmp_path: Path, state: Callable[[], Any]
) -> None:
    torch.save(state(), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"not all there|cannot be read"):
        read_state(tmp_path / "x.pt")


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save({"a": Mkdir(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("read", [read_state, read_npz])
def test_compressed_parts_are_not_unfolded(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**26))
    with pytest.raises(UserError, match="is compressed"):
        read(tmp_path / "x")


def test_an_array_that_promises_more_than_is_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    data = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(data.replace(b"(3,)", b"(9,)"))
    with pytest.raises(UserError, match="cannot be read"):
        read_npz(tmp_path / "x.npz")


def test_a_column_that_contradicts_its_own_schema_is_refused(tmp_path: Path) -> None:
    """pyarrow would end the process, which no `except` catches; so does this test's, if it does."""
    path = tmp_path / "x.parquet"
    pd.DataFrame({"id": [0, 1], "bytes": [b"a", b"b"]}).to_parquet(path)
    whole = path.read_bytes()
    called_bytes, called_truths = b"\x15\x0c\x25\x02\x18\x05bytes", b"\x15\x00\x25\x02\x18\x05bytes"
    assert whole.count(called_bytes) == 1
    path.write_bytes(whole.replace(called_bytes, called_truths))
    with pytest.raises(UserError, match="BOOLEAN"):
        read_table(path, 2)


def test_one_text_that_a_table_repeats_is_not_unfolded(tmp_path: Path) -> None:
    """Its metadata say what lies there, not what becomes of it."""
    rows = 4000
    text = pa.array(["x" * 2**20]).dictionary_encode().dictionary
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text)
    pq.write_table(pa.table({"a": column}), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 2**20
    with pytest.raises(UserError, match="unfold"):
        read_table(tmp_path / "x.parquet", rows)


def test_what_parsers_raise_becomes_a_sentence() -> None:
    with pytest.raises(UserError, match="It cannot be read"), reading("It"):
        json.loads('{"b": 1}')["a"]
