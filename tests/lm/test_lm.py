import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.base.errors import UserError
from sae.lm import LanguageModel, load_lm, parse_site
from sae.lm.sites import POINTS

TOKENS = torch.tensor(np.random.default_rng(0).integers(1, 300, (3, 20)))


def test_resid_post_is_the_hidden_state(tiny_lm: LanguageModel) -> None:
    hidden = tiny_lm.model.transformer(TOKENS, output_hidden_states=True).hidden_states
    found = tiny_lm.capture(TOKENS, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"])
    torch.testing.assert_close(found["blocks.0.hook_resid_post"], hidden[1])
    torch.testing.assert_close(found["blocks.1.hook_resid_pre"], hidden[1])


def test_the_parts_of_a_block_add_up(tiny_lm: LanguageModel) -> None:
    names = {p: f"blocks.1.{p}" for p in POINTS}
    x = tiny_lm.capture(TOKENS, list(names.values()))
    pre, mid, post = (x[names[f"hook_resid_{p}"]] for p in ("pre", "mid", "post"))
    torch.testing.assert_close(mid, pre + x[names["hook_attn_out"]])
    torch.testing.assert_close(post, mid + x[names["hook_mlp_out"]])
    projection = tiny_lm.model.transformer.h[1].mlp.c_proj
    torch.testing.assert_close(projection(x[names["mlp.hook_post"]]), x[names["hook_mlp_out"]])
    assert x[names["mlp.hook_post"]].shape[-1] == tiny_lm.site_width(names["mlp.hook_post"])


def test_early_exit_leaves_later_blocks_alone(tiny_lm: LanguageModel) -> None:
    ran = []
    handle = tiny_lm.model.transformer.h[1].register_forward_hook(lambda *_: ran.append(1))
    tiny_lm.capture(TOKENS, ["blocks.0.hook_resid_post"])
    assert not ran
    tiny_lm.logits(TOKENS)
    assert ran
    handle.remove()


@pytest.mark.parametrize("point", POINTS)
def test_splicing_the_identity_changes_nothing(tiny_lm: LanguageModel, point: str) -> None:
    clean = tiny_lm.token_losses(TOKENS)
    with tiny_lm.splice(f"blocks.0.{point}", lambda x: x):
        torch.testing.assert_close(tiny_lm.token_losses(TOKENS), clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(tiny_lm.token_losses(TOKENS), clean, atol=0, rtol=0)


@pytest.mark.parametrize("point", POINTS)
def test_splicing_zero_changes_the_loss_and_later_sites(tiny_lm: LanguageModel, point: str) -> None:
    clean = tiny_lm.loss(TOKENS)
    with tiny_lm.splice(f"blocks.0.{point}", torch.zeros_like):
        assert abs(tiny_lm.loss(TOKENS) - clean) > 1e-4
        if point == "hook_resid_post":
            later = tiny_lm.capture(TOKENS, ["blocks.1.hook_resid_pre"])
            spliced = later["blocks.1.hook_resid_pre"]
            assert (spliced[:, 1:] == 0).all()
            assert (spliced[:, 0] != 0).any()  # position 0 keeps its own


def test_losses_are_those_of_the_logits(tiny_lm: LanguageModel) -> None:
    log_p = tiny_lm.logits(TOKENS)[:, :-1].log_softmax(-1)
    wanted = -log_p.gather(-1, TOKENS[:, 1:, None])[..., 0]
    torch.testing.assert_close(tiny_lm.token_losses(TOKENS), wanted)


def test_the_same_weights_have_the_same_hash(tiny_folder, tiny_lm: LanguageModel) -> None:
    assert load_lm(str(tiny_folder), "cpu", "bfloat16").hash == tiny_lm.hash


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("n_head", 4),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-3),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
    ],
)
def test_the_same_weights_in_another_function_have_another_hash(
    tiny_folder: Path, tiny_lm: LanguageModel, tmp_path: Path, name: str, other: object
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {name: other}))
    changed = load_lm(str(folder), "cpu", "float32")
    assert changed.hash != tiny_lm.hash
    site = "blocks.1.hook_resid_post"
    assert not torch.equal(*(lm.capture(TOKENS, [site])[site] for lm in (changed, tiny_lm)))


def test_what_does_not_change_the_function_does_not_change_the_hash(
    tiny_folder: Path, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    described = json.loads((folder / "config.json").read_text())
    others = {"transformers_version": "4.0.0", "use_cache": False, "resid_pdrop": 0.3}
    (folder / "config.json").write_text(json.dumps(described | others))
    assert load_lm(str(folder), "cpu", "float32").hash == tiny_lm.hash


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda lm: lm.site("blocks.2.hook_resid_post"), "`blocks.0` to `blocks.1`"),
        (lambda lm: lm.site("blocks.0.hook_resid_pots"), "Did you mean `hook_resid_post`"),
        (lambda lm: parse_site("layer3"), "blocks.LAYER.POINT"),
        (lambda lm: lm.logits(torch.zeros(1, 40, dtype=torch.long)), "context"),
        (lambda lm: load_lm("./nowhere"), "does not exist"),
        (lambda lm: load_lm("pocket", dtype="float33"), "float32, bfloat16"),
    ],
)
def test_mistakes_get_a_sentence(tiny_lm: LanguageModel, act, message: str) -> None:
    with pytest.raises(UserError, match=message):
        act(tiny_lm)


def test_a_hub_id_that_cannot_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="could not be loaded"):
        load_lm("no-such-owner/no-such-model")


def test_a_model_that_is_not_all_there_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """Transformers would fill what is missing with random numbers, others at each loading."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    [file] = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if "mlp.c_fc.weight" in name)
    save_file({k: v for k, v in tensors.items() if k != name}, file, {"format": "pt"})
    with pytest.raises(UserError, match=re.escape(name.removeprefix("transformer."))):
        load_lm(str(folder), "cpu")
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, file, {"format": "pt"})
    with pytest.raises(UserError, match="could not be loaded"):
        load_lm(str(folder), "cpu")


def test_a_tokenizer_without_bos_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).exists():
            said = json.loads((folder / file).read_text())
            (folder / file).write_text(
                json.dumps({k: v for k, v in said.items() if "bos" not in k})
            )
    with pytest.raises(UserError, match="no BOS token"):
        load_lm(str(folder), "cpu")
