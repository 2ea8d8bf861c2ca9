"""One finished tiny run, made once, that the tests of the pipelines only read or copy."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.manifest import Manifest
from sae.base.files import sha256_file
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


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run in a folder of its own, which its configuration names."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    settings = yaml.safe_load((run / "run.yaml").read_text())
    settings["folder"] = str(run)
    (run / "run.yaml").write_text(yaml.safe_dump(settings))
    Manifest.open(run).configured(sha256_file(run / "run.yaml"))
    return run
