from pathlib import Path

import pytest

from sae.features import FeatureIndex
from tests.features.synthetic import make_index

WORDS = (0, 11, 12, 14, 15, 16)
"""Features of the synthetic index that fire on one word each, and leave windows silent."""


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return FeatureIndex.open(make_index(tmp_path_factory.mktemp("explain") / "topk"))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "explanations" / "topk.jsonl"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
