"""The valid files that the fuzzing starts from, made once."""

from pathlib import Path

import pytest

from tests.fuzz.campaign import make_wholes


@pytest.fixture(scope="session")
def wholes(
    finished: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    return make_wholes(tmp_path_factory.mktemp("fuzz"), finished, tiny_folder)
