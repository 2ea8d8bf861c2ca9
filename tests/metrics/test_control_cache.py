"""What is kept of fitted controls is taken again only where it would be made alike."""

from pathlib import Path

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
        cache, key = Cache(tmp_path, code), {"k": 4}

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
    cache = Cache(tmp_path)
    cache.tensors("independent_components", 1, lambda: {"W": torch.zeros(64)})
    [file] = tmp_path.glob("*.safetensors")
    with Damage(file, "flip", 0.9), pytest.raises(UserError, match="is damaged"):
        cache.tensors("independent_components", 1, lambda: {"W": torch.ones(64)})
    assert float(cache.tensors("independent_components", 1, dict)["W"].sum()) == 0
