"""An index made once for the tests that only read it."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `synthetic` is a module of this folder

from sae.features import FeatureIndex


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from synthetic import make_index

    return make_index(tmp_path_factory.mktemp("index") / "topk")


@pytest.fixture(scope="session")
def index(index_folder: Path) -> FeatureIndex:
    return FeatureIndex.open(index_folder)


@pytest.fixture(scope="session")
def dense_acts() -> np.ndarray:
    """(S * T, F) float32: the activations that the index must hold, as float16 rounds them."""
    from synthetic import make_acts, make_tokens

    acts = make_acts(make_tokens())
    return acts.reshape(-1, acts.shape[-1]).astype(np.float16).astype(np.float32)
