import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "features"))  # for `synthetic`

from synthetic import CONTEXT, make_index, make_tokens

from sae.base.errors import UserError
from sae.base.files import sha256_file
from sae.base.sums import seal
from sae.features import FeatureIndex
from sae.io.hdf5 import export_dictionary

D, F = 16, 40
DOCS = Path(__file__).parents[2] / "docs" / "formats.md"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "W_enc": rng.normal(size=(D, F)).astype(np.float32),
        "W_dec": rng.normal(size=(F, D)).astype(np.float32),
        "b_enc": rng.normal(size=F).astype(np.float32),
        "b_dec": rng.normal(size=D).astype(np.float32),
        "threshold": rng.random(F).astype(np.float32),
    }


@pytest.fixture(scope="module")
def coder_folder(tmp_path_factory: pytest.TempPathFactory, weights) -> Path:
    folder = tmp_path_factory.mktemp("coder")
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "jumprelu", "d_in": D}))
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, coder_folder: Path) -> FeatureIndex:
    coder_hash = sha256_file(coder_folder / "sae_weights.safetensors")
    folder = tmp_path_factory.mktemp("features") / "topk"
    found = FeatureIndex.open(make_index(folder, coder_hash=coder_hash))
    found.notes.set_label(1, "numbers – by hand")
    found.notes.star(1)
    found.notes.tag(1, "a", "b")
    return found


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, index: FeatureIndex, coder_folder: Path
) -> Path:
    path = tmp_path_factory.mktemp("export") / "topk.h5"
    return export_dictionary(index.folder, coder_folder, path)


def test_weights_are_latent_major(whole: Path, weights: dict[str, np.ndarray]) -> None:
    with h5py.File(whole) as file:
        np.testing.assert_array_equal(file["encoder"][:], weights["W_enc"].T)
        np.testing.assert_array_equal(file["decoder"][:], weights["W_dec"])
        for name in ("b_enc", "b_dec", "threshold"):
            np.testing.assert_array_equal(file[name][:], weights[name])
            assert file[name].dtype == np.float32


def test_features_agree_with_the_index(whole: Path, index: FeatureIndex) -> None:
    view = index.view()
    with h5py.File(whole) as file:
        group = file["features"]
        assert set(group) == set(view.columns)
        assert group["id"][:].tolist() == list(range(F))
        assert group["label"].asstr()[:].tolist() == view["label"].tolist()
        assert group["label"].asstr()[1] == "numbers – by hand"
        assert group["label_kind"].asstr()[1] == "user"
        assert group["tags"].asstr()[1] == "a,b"
        for name in ("density", "mean", "max", "label_score", "enc_dec_cosine"):
            np.testing.assert_allclose(group[name][:], view[name], rtol=1e-6)
        for name in ("top_token_ids", "top_token_counts", "promoted_ids", "suppressed_logits"):
            assert group[name].shape == (F, 10)
            for feature, values in enumerate(view[name]):
                padding = -1 if name.endswith("_ids") else 0
                assert group[name][feature, : len(values)].tolist() == values.tolist()
                assert (group[name][feature, len(values) :] == padding).all()


def test_examples_agree_with_the_index(whole: Path, index: FeatureIndex) -> None:
    tokens = make_tokens().reshape(-1)
    with h5py.File(whole) as file:
        group = {name: file["examples"][name][:] for name in file["examples"]}
        assert group["tokens"].shape == (len(group["feature"]), 21)
        assert (np.diff(group["feature"]) >= 0).all()
        for feature in (0, 1, 5, 8):
            mine = np.flatnonzero(group["feature"] == feature)
            expected = index.examples(feature, "top", 20)
            assert len(mine) == len(expected)
            for at, example in zip(mine, expected, strict=True):
                length, focus = group["length"][at], group["focus"][at]
                window = group["tokens"][at]
                assert window[:length].tolist() == example.window.token_ids.tolist()
                assert (window[length:] == -1).all()
                assert window[focus] == tokens[example.row]
                assert group["activations"][at][focus] == example.activation
                assert group["activation"][at] == example.activation
                assert group["position"][at] == example.row % CONTEXT
                assert group["document"][at].decode() == example.document.id
        assert not (group["feature"] == 4).any()  # dead


def test_text_is_utf8_and_whole(whole: Path, index: FeatureIndex) -> None:
    with h5py.File(whole) as file:
        text = file["examples/text"].asstr()[:]
        joined = "".join(text)
        for expected in ("€", "🙂", "שלום", "<script>alert(1)</script>", "\n", "naïve", "\\x00"):
            assert expected in joined
        assert "\0" not in joined
        assert len(file["vocabulary"]) == len(index.vocabulary)
        assert file["vocabulary"].asstr()[21] == " return"


def test_provenance(whole: Path, index: FeatureIndex) -> None:
    with h5py.File(whole) as file:
        named = "schema model model_hash site architecture coder_hash corpus corpus_hash created"
        for name in [*named.split(), "loupe_version"]:
            assert file.attrs[name] != ""
        assert file.attrs["coder_hash"] == index.meta["coder_hash"]
        assert json.loads(file.attrs["coder_config"])["architecture"] == "jumprelu"


def test_datasets_are_chunked_and_compressed(whole: Path) -> None:
    def check(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            assert item.chunks, name
            assert (item.compression, item.shuffle) == ("gzip", True), name

    with h5py.File(whole) as file:
        file.visititems(check)


def test_a_selection(
    tmp_path: Path, index: FeatureIndex, coder_folder: Path, weights: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "few.h5"
    export_dictionary(index.folder, coder_folder, path, features="1,4,9-12 density>0", examples=3)
    with h5py.File(path) as file:
        ids = [1, 9, 10, 11, 12]
        assert file["features/id"][:].tolist() == ids
        np.testing.assert_array_equal(file["decoder"][:], weights["W_dec"][ids])
        np.testing.assert_array_equal(file["encoder"][:], weights["W_enc"].T[ids])
        np.testing.assert_array_equal(file["threshold"][:], weights["threshold"][ids])
        assert file["b_dec"].shape == (D,)
        assert np.unique(file["examples/feature"]).tolist() == ids
        assert len(file["examples/feature"]) == 15
        assert file.attrs["filter"] == "1,4,9-12 density>0"


def test_dead_features_alone_have_no_examples(
    tmp_path: Path, index: FeatureIndex, coder_folder: Path
) -> None:
    path = export_dictionary(index.folder, coder_folder, tmp_path / "dead.h5", features="4")
    with h5py.File(path) as file:
        assert len(file["examples/feature"]) == 0
        assert file["features/label"].asstr()[0] == "dead"


def test_mistakes_leave_no_file(tmp_path: Path, index: FeatureIndex, coder_folder: Path) -> None:
    path = tmp_path / "x.h5"
    other = tmp_path / "other"
    other.mkdir()
    save_file({"W_enc": np.zeros((2, 2), np.float32)}, other / "sae_weights.safetensors")
    for features, folder, message in [
        ("label:nowhere", coder_folder, "No feature satisfies"),
        ("densty>1", coder_folder, "Did you mean"),
        (None, other, "other weights"),
        (None, tmp_path, "not a coder folder"),
    ]:
        with pytest.raises(UserError, match=message):
            export_dictionary(index.folder, folder, path, features=features)
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_a_failed_export_keeps_the_old_file(
    tmp_path: Path, index: FeatureIndex, coder_folder: Path
) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_dictionary(index.folder, coder_folder, path, progress=fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_the_reading_example_of_the_documentation_runs(whole: Path) -> None:
    section = DOCS.read_text().partition("## HDF5 dictionary")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code[1]],
        cwd=whole.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "blocks.2.hook_resid_post" in result.stdout
    assert "promotes" in result.stdout


def test_a_changed_configuration_of_the_coder_is_refused(
    index: FeatureIndex, coder_folder: Path, tmp_path: Path
) -> None:
    coder = Path(shutil.copytree(coder_folder, tmp_path / "coder"))
    seal(coder, ["cfg.json", "sae_weights.safetensors"])
    (coder / "cfg.json").write_text(json.dumps({"architecture": "jumprelu", "d_in": D + 1}))
    with pytest.raises(UserError, match=r"cfg.json is damaged"):
        export_dictionary(index.folder, coder, tmp_path / "x.h5")


def test_the_older_file_stays_until_the_new_one_is_whole(
    index: FeatureIndex, coder_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.h5"
    path.write_bytes(b"older")
    told: list[bytes] = []
    tell = {"before_replacing": lambda: told.append(path.read_bytes())}
    with pytest.raises(UserError):
        export_dictionary(index.folder, coder_folder, path, features="9999", **tell)
    assert told == []
    export_dictionary(index.folder, coder_folder, path, features="0-2", **tell)
    assert told == [b"older"]
