"""A coder's folder while it is written: a kill leaves one coder, or none."""

from pathlib import Path

import pytest
import torch

from sae.base.errors import UserError
from sae.base.files import read_json, write_json
from sae.coders import load_coder, make_coder, save_coder
from sae.coders.contract import Coder


def coder(k: int) -> Coder:
    made = make_coder("topk", 8, 16, k=k)
    made.initialise(torch.zeros(8), torch.Generator().manual_seed(k))
    return made


@pytest.mark.parametrize("step", ["sync_folder", "atomic_write", "write_json", "seal"])
def test_a_kill_while_a_coder_replaces_another_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Of the weights of one and the settings of the other, which would load, and be neither."""
    save_coder(coder(2), tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"sae.coders.folder.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            save_coder(coder(3), tmp_path)
    if step == "seal":
        found = load_coder(tmp_path)
        assert found.k == 3
        torch.testing.assert_close(found.W_dec_FD, coder(3).for_inference().W_dec_FD)
    else:
        with pytest.raises(UserError, match="There is no coder"):
            load_coder(tmp_path)


@pytest.mark.parametrize("k", [True, 2.0, "2", None])
def test_a_hyperparameter_of_another_type_is_refused(tmp_path: Path, k: object) -> None:
    """`true` counts as 1 in Python, and as nothing in a compiled loop."""
    save_coder(make_coder("topk", 4, 8, k=2), tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    config = read_json(tmp_path / "cfg.json")
    write_json(tmp_path / "cfg.json", config | {"k": k})
    with pytest.raises(UserError, match=r"`k` is .*; expected int"):
        load_coder(tmp_path)
