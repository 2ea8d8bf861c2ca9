"""What is kept of fitted controls is taken again only where it would be made alike."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.manifest import CONTROLS, code_hash
from sae.base.errors import UserError
from sae.coders import make_coder
from sae.metrics.controls import Cache
from tests.damage import Damage


def test_what_other_code_has_fitted_is_not_taken(tmp_path: Path) -> None:
    made: list[str] = []

    def fitted(code: str) -> None:
        cache, key = Cache(tmp_path / "controls", code), {"k": 4}

        def coder():
            made.append(f"coder of {code}")
            return make_coder("topk", 8, 16, k=4)

        def tensors() -> dict[str, torch.Tensor]:
            made.append(f"tensors of {code}")
            return {"W": torch.zeros(2)}

        cache.coder("frozen_decoder", key, coder)
        cache.tensors("dictionary_learning", key, tensors)

    for code in ("old", "old", "new", "old"):
        fitted(code)
    assert made == ["coder of old", "tensors of old", "coder of new", "tensors of new"]


def test_the_code_that_trains_controls_is_known() -> None:
    """All of these decide the weights of a control that is trained."""
    assert len({code_hash(module) for module in CONTROLS}) == len(CONTROLS) == 4


def test_what_was_kept_and_damaged_is_not_taken(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "controls")
    cache.tensors("independent_components", 1, lambda: {"W": torch.zeros(64)})
    [file] = tmp_path.glob("controls/*.safetensors")
    with Damage(file, "flip", 0.9), pytest.raises(UserError, match="is damaged"):
        cache.tensors("independent_components", 1, lambda: {"W": torch.ones(64)})
    assert float(cache.tensors("independent_components", 1, dict)["W"].sum()) == 0


def test_a_control_that_a_kill_left_unsealed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "controls")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sae.coders.folder.seal", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.coder("frozen_decoder", 1, lambda: make_coder("topk", 8, 16, k=4))
    assert not cache.has("frozen_decoder", 1)
    cache.coder("frozen_decoder", 1, lambda: make_coder("topk", 8, 16, k=5))
    assert cache.has("frozen_decoder", 1)
    assert cache.coder("frozen_decoder", 1, lambda: pytest.fail("it is there")).k == 5


@pytest.mark.parametrize("kind", ["coder", "tensors"])
def test_two_evaluations_fit_a_control_once(tmp_path: Path, kind: str) -> None:
    """The second waits for the first, and never sees a control without its sums."""
    cache, made = Cache(tmp_path / "controls"), list[int]()

    def make() -> Any:
        made.append(1)
        time.sleep(0.3)
        return make_coder("topk", 8, 16, k=4) if kind == "coder" else {"W": torch.zeros(2)}

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(getattr(cache, kind), "control", 1, make) for _ in range(2)]
    assert all(one.result() for one in found)
    assert len(made) == 1
    assert list((tmp_path / ".locks").iterdir()) == []
