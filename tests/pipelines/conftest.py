"""One finished tiny run, made once, that the tests of the pipelines only read or copy."""

from pathlib import Path

import pytest

from tests.conftest import tiny_settings
from tests.pipelines.command import sae


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_corpus: Path
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    output = sae("run", *tiny_settings(folder, tiny_folder, tiny_corpus))
    assert "topk" in output
    assert "sae browse" in output
    return folder
