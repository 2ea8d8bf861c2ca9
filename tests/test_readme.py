"""The README's Python does what it says, on a real run."""

import re
from pathlib import Path

import pytest


def test_readme_python_runs(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Path | None = request.config.getoption("--run")
    if run is None:
        pytest.skip("needs --run FOLDER, a finished demo")
    text = (Path(__file__).parents[1] / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.S)[0].replace("runs/demo", str(run))
    scope: dict = {}
    exec(code, scope)
    assert scope["x_hat"].shape == scope["x"].shape
    assert 0 < scope["loss"] < 10
