"""Copies of the finished run, to be changed."""

import shutil
from pathlib import Path

import pytest
import yaml

from pipelines.manifest import Manifest


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run in a folder of its own, which its configuration names."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    settings = yaml.safe_load((run / "run.yaml").read_text())
    settings["folder"] = str(run)
    Manifest.open(run).configured(yaml.safe_dump(settings))
    return run
