"""The builder against a dense encoding, with a real coder, and killed in the middle."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import BOS, TOKENS
from transformers import GPT2Config, GPT2LMHeadModel

from sae.base.errors import UserError
from sae.base.sums import read_sums
from sae.coders import coder_hash, make_coder, save_coder
from sae.coders.contract import Coder
from sae.features import FeatureIndex, build_index, verify_index
from sae.features.labels import label_features
from sae.features.layout import ACTS, FILES
from sae.features.spill import Spill
from sae.lm import parse_site
from tests.damage import Damage

SITE, D, T, F = "blocks.0.hook_resid_post", 16, 8, 64
STARTS = [1, 30, 2 * T + 3, 12 * T + 1, 14 * T + 2, 20 * T + 1, 21 * T + 4]


@dataclass
class Store:
    """A store in memory that can fail at a given row, as a killed process does."""

    fail_at: int = 10**9
    path: Path = Path("a.zarr")
    sites: tuple[str, ...] = (SITE,)
    context: int = T
    sequences: int = 24
    width: dict[str, int] = field(default_factory=lambda: {SITE: D})
    splits: dict[str, range] = field(
        default_factory=lambda: {"train": range(20), "heldout": range(20, 24)}
    )

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x_RD = rng.normal(size=(self.sequences * T, D)).astype(np.float16)
        self.tokens_ST = rng.integers(1, len(TOKENS), (self.sequences, T)).astype(np.uint16)
        self.tokens_ST[:, 0] = 0
        names = [f"doc{n}:{'code' if n % 2 else 'prose'}" for n in range(len(STARTS))]
        starts = np.sort(np.array(STARTS))
        self.documents = SimpleNamespace(start=starts, id=names, title=names)
        self.attributes: dict[str, Any] = {
            "model": {"name": "tiny", "hash": "m"},
            "corpus": {"description": "noise", "hash": "c"},
        }

    def tokens(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.tokens_ST[start:stop]

    def read(self, site: str, start: int, stop: int) -> np.ndarray:
        if stop > self.fail_at:
            raise KeyboardInterrupt
        return self.x_RD[start:stop]


@pytest.fixture(scope="module")
def lm() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(TOKENS), n_embd=D, n_layer=1, n_head=2, n_positions=T)
    alphabet = {chr(0x100 + n): n for n in range(len(TOKENS))}
    tokenizer = SimpleNamespace(
        added_tokens_decoder={0: BOS.decode()}, get_vocab=lambda: alphabet | {BOS.decode(): 0}
    )
    return SimpleNamespace(
        model=GPT2LMHeadModel(config),
        tokenizer=tokenizer,
        name="tiny",
        hash="m",
        d_model=D,
        vocab_size=len(TOKENS),
        bos_id=0,
        device=torch.device("cpu"),
        site=lambda name: parse_site(name, 1),
        site_width=lambda name: parse_site(name, 1).width(D, 4 * D),
    )


@pytest.fixture(scope="module", params=["topk", "relu"])
def coder(request: pytest.FixtureRequest) -> Coder:
    options = {"k": 5} if request.param == "topk" else {}
    made = make_coder(request.param, D, F, **options)
    made.initialise(torch.zeros(D), torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.b_enc_F += -0.3
        made.W_enc_FD[7] = 0  # a dead latent
        made.b_enc_F[7] = -1
    made.metadata = {"hook_name": SITE}
    return made.requires_grad_(False)


def build(coder: Any, store: Any, folder: Path, lm: Any, **options: Any) -> Path:
    return build_index(coder, store, folder, lm=lm, **options)


def test_the_index_holds_what_the_coder_says(coder: Coder, lm: Any, tmp_path: Path) -> None:
    store = Store()
    index = FeatureIndex.open(build(coder, store, tmp_path / "f", lm))
    x_RD = torch.from_numpy(store.x_RD).float()
    dense = coder.encode(x_RD).dense().numpy()
    dense[::T] = 0  # position 0 is not data
    for feature in range(F):
        rows, acts = index.firings(feature)
        np.testing.assert_array_equal(rows, np.flatnonzero(dense[:, feature] > 0))
        np.testing.assert_allclose(acts, dense[rows, feature], rtol=1e-3)
    assert index.table["label"][7] == "dead"
    np.testing.assert_array_equal(index.tokens_ST, store.tokens_ST)
    assert verify_index(index.folder) == []


def test_what_index_json_says(coder: Coder, lm: Any, tmp_path: Path) -> None:
    folder = save_coder(coder, tmp_path / "coder")
    meta = FeatureIndex.open(build(coder, Store(), tmp_path / "f", lm, name="topk")).meta
    assert meta["coder"] == "topk"
    assert meta["coder_hash"] == coder_hash(folder)
    assert (meta["d_in"], meta["d_sae"], meta["context"], meta["sequences"]) == (D, F, T, 24)
    assert meta["tokens"] == 24 * (T - 1)
    assert meta["rows"] == [[0, 20 * T], [20 * T, 24 * T]]
    assert meta["splits"] == {"train": [0, 20], "heldout": [20, 24]}
    assert meta["site"] == SITE


def test_a_budget_takes_a_prefix_of_both_splits(coder: Coder, lm: Any, tmp_path: Path) -> None:
    store = Store()
    index = FeatureIndex.open(build(coder, store, tmp_path / "f", lm, tokens=15 * (T - 1)))
    assert index.meta["rows"] == [[0, 12 * T], [20 * T, 23 * T]]
    expected = np.concatenate([store.tokens_ST[:12], store.tokens_ST[20:23]])
    np.testing.assert_array_equal(index.tokens_ST, expected)
    # the heldout document that begins at position 1 of store sequence 20 is the index's row 12
    found = index.document_of(12 * T + 1)
    assert (found.id, found.split, found.start) == ("doc5:code", "heldout", 12 * T)
    assert index.document_of(12 * T - 1).split == "train"
    assert index.document_of(13 * T + 4).id == "doc6:prose"
    assert index.document_of(2 * T + 2).id == "doc1:code" or STARTS[1] > 2 * T + 2


def kill_in_block(number: int) -> Callable[..., None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == "encoding" and done > number * (T - 1) * 3:
            raise KeyboardInterrupt

    return progress


def reads_of(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first row of each part that is read of the store from now on."""
    reads, read = list[int](), store.read
    monkeypatch.setattr(store, "read", lambda s, a, b: reads.append(a) or read(s, a, b))
    return reads


def test_a_killed_build_goes_on_and_ends_the_same(
    coder: Coder, lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.features.builder.BLOCK_ROWS", 3 * T)
    whole = build(coder, Store(), tmp_path / "whole", lm, name="x")
    for number in (0, 2, 5):
        with pytest.raises(KeyboardInterrupt):
            build(coder, Store(), tmp_path / "killed", lm, name="x", progress=kill_in_block(number))
        assert not (tmp_path / "killed").exists()
        for name in ("row_features.npy", "row_acts.npy", "row_counts.npy"):
            with (tmp_path / "killed.partial" / name).open("ab") as file:
                file.write(b"half a block")  # what a kill between two writes leaves
    store = Store()
    reads = reads_of(store, monkeypatch)
    killed = build(coder, store, tmp_path / "killed", lm, name="x")
    assert min(reads) >= 6 * 3 * T  # it went on, and did not start again
    sums = [read_sums(folder) for folder in (killed, whole)]
    assert {k: v for k, v in sums[0].items() if k != "index.json"} == {
        k: v for k, v in sums[1].items() if k != "index.json"
    }
    assert not (tmp_path / "killed.partial").exists()


@pytest.mark.parametrize("name", ["row_features.npy", "row_acts.npy", "row_counts.npy"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damage_of_a_begun_index_is_not_sealed(
    coder: Coder, lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    monkeypatch.setattr("sae.features.builder.BLOCK_ROWS", 3 * T)
    with pytest.raises(KeyboardInterrupt):
        build(coder, Store(), tmp_path / "f", lm, progress=kill_in_block(2))
    with (
        Damage(tmp_path / "f.partial" / name, how, 0.8),
        pytest.raises(UserError, match=rf"{name} is damaged.* remove .*f\.partial"),
    ):
        build(coder, Store(), tmp_path / "f", lm)
    assert verify_index(build(coder, Store(), tmp_path / "f", lm)) == []


def test_damage_that_comes_before_the_codes_are_sorted_is_not_sealed(tmp_path: Path) -> None:
    with Spill(tmp_path, 16, "f") as spill:
        spill.append(np.full(8, 2, np.uint32), np.arange(16), np.ones(16))
    with (
        Damage(tmp_path / "row_acts.npy", "flip", 0.95),
        pytest.raises(UserError, match=r"row_acts\.npy is damaged"),
    ):
        spill.codes()


def test_sums_are_taken_when_files_are_written(
    coder: Coder, lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit that flips while labels are made is found, and not sealed."""

    def damaging(*given: Any) -> Any:
        raw = bytearray((tmp_path / "f.partial" / ACTS).read_bytes())
        raw[-2] ^= 1
        (tmp_path / "f.partial" / ACTS).write_bytes(raw)
        return label_features(*given)

    monkeypatch.setattr("sae.features.assemble.label_features", damaging)
    folder = build(coder, Store(), tmp_path / "f", lm)
    with pytest.raises(UserError, match=ACTS):
        FeatureIndex.open(folder)


@pytest.mark.parametrize("left", [b"", b"PK\x03\x04 half"])
def test_effects_that_a_crash_left_half_written_are_computed_again(
    coder: Coder, lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sae.features.builder.assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            build(coder, Store(), tmp_path / "f", lm)
    (tmp_path / "f.partial" / "effects.npz").write_bytes(left)
    assert verify_index(build(coder, Store(), tmp_path / "f", lm)) == []


def test_a_partial_folder_that_does_not_say_whose_it_is_is_begun_anew(
    coder: Coder, lm: Any, tmp_path: Path
) -> None:
    (tmp_path / "f.partial").mkdir()
    (tmp_path / "f.partial" / "progress.json").write_text('{"rows": 3}')
    assert verify_index(build(coder, Store(), tmp_path / "f", lm)) == []


def test_what_other_code_left_is_not_gone_on_with(
    coder: Coder, lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.features.builder.BLOCK_ROWS", 3 * T)
    with pytest.raises(KeyboardInterrupt):
        build(coder, Store(), tmp_path / "f", lm, progress=kill_in_block(2))
    monkeypatch.setattr("sae.features.builder._code_hash", lambda: "of another version")
    store = Store()
    reads = reads_of(store, monkeypatch)
    build(coder, store, tmp_path / "f", lm)
    assert min(reads) == 0


def test_what_another_build_left_is_not_gone_on_with(
    coder: Coder, lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.features.builder.BLOCK_ROWS", 3 * T)
    with pytest.raises(KeyboardInterrupt):
        build(coder, Store(), tmp_path / "f", lm, progress=kill_in_block(2))
    small = build(coder, Store(), tmp_path / "f", lm, tokens=10 * (T - 1))
    assert FeatureIndex.open(small).sequences == 10
    assert verify_index(small) == []


def test_a_new_index_keeps_the_notes(coder: Coder, lm: Any, tmp_path: Path) -> None:
    folder = build(coder, Store(), tmp_path / "f", lm)
    FeatureIndex.open(folder).notes.set_label(3, "mine")
    build(coder, Store(), tmp_path / "f", lm, tokens=10 * (T - 1))
    index = FeatureIndex.open(folder)
    assert index.sequences == 10
    assert index.labels()[3] == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert {path.name for path in folder.iterdir()} >= set(FILES)


def test_a_kill_between_the_renames_loses_no_notes(coder: Coder, lm: Any, tmp_path: Path) -> None:
    folder = build(coder, Store(), tmp_path / "f", lm)
    FeatureIndex.open(folder).notes.set_label(3, "mine")
    folder.rename(tmp_path / "f.old")
    build(coder, Store(), folder, lm)
    assert FeatureIndex.open(folder).labels()[3] == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_mistakes_are_told_before_any_work(coder: Coder, lm: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="harvest that site"):
        build(coder, Store(sites=("blocks.1.hook_resid_post",)), tmp_path / "f", lm)
    with pytest.raises(UserError, match="width 16"):
        build(coder, Store(width={SITE: 99}), tmp_path / "f", lm)
    with pytest.raises(UserError, match="at least"):
        build(coder, Store(), tmp_path / "f", lm, tokens=3)
    assert list(tmp_path.iterdir()) == []


def test_activations_that_are_no_numbers_are_refused(lm: Any, tmp_path: Path) -> None:
    broken = make_coder("topk", D, F, k=5)
    with torch.no_grad():
        broken.W_enc_FD.fill_(float("nan"))
    broken.metadata = {"hook_name": SITE}
    with pytest.raises(UserError, match="NaN"):
        build(broken, Store(), tmp_path / "f", lm)
