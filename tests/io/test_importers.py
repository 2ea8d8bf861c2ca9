"""Coders of other tools: the same codes and reconstructions as the formulas in their code."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae.base.errors import UserError
from sae.coders import load_coder, save_coder
from sae.io.dictionary_learning import load_dictionary_learning
from sae.io.sparsify import load_sparsify

D, F, K, B = 12, 40, 5, 64
SITE = "blocks.1.hook_resid_post"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "encoder.weight": torch.randn(F, D, generator=random),
        "encoder.bias": torch.randn(F, generator=random) * 0.3,
        "W_dec": torch.randn(F, D, generator=random),
        "b_dec": torch.randn(D, generator=random),
        "x": torch.randn(B, D, generator=random) * 2,
    }


def scores(weights: dict[str, Tensor]) -> Tensor:
    centred = weights["x"] - weights["b_dec"]
    return torch.relu(centred @ weights["encoder.weight"].T + weights["encoder.bias"])


def topk_codes(weights: dict[str, Tensor]) -> Tensor:
    best = scores(weights).topk(K, dim=1)
    return torch.zeros(B, F).scatter_(1, best.indices, best.values)


def check(coder, codes_BF: Tensor, weights: dict[str, Tensor], folder: Path) -> None:
    """The coder, and itself after our own folder, against the formula."""
    again = load_coder(save_coder(coder, folder))
    assert again.metadata["hook_name"] == SITE
    x_hat = codes_BF @ weights["W_dec"] + weights["b_dec"]
    for one in (coder, again):
        torch.testing.assert_close(one.encode(weights["x"]).dense(), codes_BF)
        torch.testing.assert_close(one(weights["x"]), x_hat)


def write_sparsify(folder: Path, weights: dict[str, Tensor], **changes: object) -> Path:
    folder.mkdir()
    config = {"d_in": D, "num_latents": F, "k": K, "activation": "topk", "transcode": False}
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))
    tensors = {name: tensor for name, tensor in weights.items() if name != "x"}
    save_file(tensors, folder / "sae.safetensors")
    return folder


def test_sparsify(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    coder = load_sparsify(write_sparsify(tmp_path / "s", weights), SITE)
    check(coder, topk_codes(weights), weights, tmp_path / "ours")
    assert coder.metadata["loupe"]["imported"]["config"]["k"] == K


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "transcoder"),
        ({"activation": "groupmax"}, "groupmax"),
    ],
)
def test_sparsify_refuses_other_meanings(
    tmp_path: Path, weights: dict[str, Tensor], changes: dict[str, object], word: str
) -> None:
    folder = write_sparsify(tmp_path / "s", weights, **changes)
    with pytest.raises(UserError, match=word):
        load_sparsify(folder, SITE)


def write_dictionary(folder: Path, weights: dict[str, Tensor], kind: str, **more: Tensor) -> Path:
    folder.mkdir()
    state = {
        "encoder.weight": weights["encoder.weight"],
        "encoder.bias": weights["encoder.bias"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "bias" if kind == "AutoEncoder" else "b_dec": weights["b_dec"],
        **more,
    }
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind}}))
    return folder


def test_dictionary_learning_topk(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    more = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    folder = write_dictionary(tmp_path / "d", weights, "AutoEncoderTopK", **more)
    coder = load_dictionary_learning(folder, SITE)
    check(coder, topk_codes(weights), weights, tmp_path / "ours")


def test_dictionary_learning_batch_topk_uses_its_threshold(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    more = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(1.5)}
    folder = write_dictionary(tmp_path / "d", weights, "BatchTopKSAE", **more)
    pre = scores(weights)
    check(load_dictionary_learning(folder, SITE), pre * (pre > 1.5), weights, tmp_path / "ours")


def test_dictionary_learning_relu(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    folder = write_dictionary(tmp_path / "d", weights, "AutoEncoder")
    check(load_dictionary_learning(folder, SITE), scores(weights), weights, tmp_path / "ours")


def test_what_cannot_be_imported_says_why(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"sae\.safetensors"):
        load_sparsify(tmp_path, SITE)
    with pytest.raises(UserError, match=r"ae\.pt"):
        load_dictionary_learning(tmp_path, SITE)
    unlearned = {"k": torch.tensor(K), "threshold": torch.tensor(-1.0)}
    folder = write_dictionary(tmp_path / "b", weights, "BatchTopKSAE", **unlearned)
    with pytest.raises(UserError, match="threshold"):
        load_dictionary_learning(folder, SITE)
    folder = write_dictionary(tmp_path / "g", weights, "GatedAutoEncoder")
    with pytest.raises(UserError, match="GatedAutoEncoder"):
        load_dictionary_learning(folder, SITE)
    (folder / "ae.pt").write_bytes(b"not a checkpoint")
    (folder / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoderTopK"}}')
    with pytest.raises(UserError, match="cannot be read"):
        load_dictionary_learning(folder, SITE)


def test_sae_lens_topk_with_decoder_norms(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """SAELens's own TopK ranks by pre-activation x norm, and decodes with unit rows."""
    norm_F = weights["W_dec"].norm(dim=1)
    names = {"W_enc": weights["encoder.weight"].T.contiguous(), "b_enc": weights["encoder.bias"]}
    tensors = {**names, "W_dec": weights["W_dec"], "b_dec": weights["b_dec"]}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "topk", "d_in": D, "d_sae": F, "k": K, "dtype": "float32"}
    config["metadata"] = {"sae_lens_version": "6.54.12", "hook_name": SITE}
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "rescale_acts_by_decoder_norm": True}))
    rescaled = {
        **weights,
        "encoder.weight": weights["encoder.weight"] * norm_F[:, None],
        "encoder.bias": weights["encoder.bias"] * norm_F,
        "W_dec": weights["W_dec"] / norm_F[:, None],
    }
    check(load_coder(tmp_path), topk_codes(rescaled), rescaled, tmp_path / "ours")
