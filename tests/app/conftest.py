"""A run with two coders: `hostile` (an index of known features and malicious tokens, no model)
and `live` (a tiny GPT-2 and a coder with random weights, which the Prompt page can run)."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parent.parent
BROWSER = TESTS.parent / "app" / "browser.py"


def load_helper(path: Path) -> ModuleType:
    """A helper module of the tests, by its file."""
    name = f"helper_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    return load_helper(TESTS / "features" / "synthetic.py")


def evaluation(ev: float, weights: str) -> dict:
    metrics = {"ev": ev, "fvu": 1 - ev, "l0": 4.0, "alive": 0.975, "ce_recovered_mean": 0.987}
    controls = {"pca": 0.78, "random_dictionary": 0.21}
    return {
        "schema": 1,
        "metrics": {
            name: {"value": value, "low": value - 0.004, "high": value + 0.004, "tokens": 200_000}
            for name, value in metrics.items()
        },
        "controls": {
            name: {"ev": {"value": value, "low": value, "high": value, "tokens": 200_000}}
            for name, value in controls.items()
        },
        "self_tests": {},
        "error_budget": {},
        "provenance": {"coder": {"hash": weights}},
    }


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> Path:
    """A run with the index `hostile` and its evaluation; no model and no coder's weights."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    synthetic.make_index(run / "features" / "hostile")
    (run / "evaluation").mkdir()
    meta = json.loads((run / "features" / "hostile" / "index.json").read_text())
    found = evaluation(0.912, meta["coder_hash"])
    (run / "evaluation" / "hostile.json").write_text(json.dumps(found))
    return run


@pytest.fixture(scope="session")
def live_run(hostile_run: Path, synthetic: ModuleType) -> Path:
    """`hostile_run` with the coder `live` beside it, which has a model."""
    if not (hostile_run / "features" / "live").exists():
        load_helper(Path(__file__).parent / "tiny_run.py").add_live_coder(hostile_run, synthetic)
    return hostile_run
