"""Imports go downwards only, and light things stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [
    {"base"},
    {"lm", "corpus"},
    {"store"},
    {"synthetic"},
    {"synthetic_sites"},
    {"kernels"},
    {"coders"},
    {"training"},
    {"metrics"},
    {"features"},
    {"explain"},
    {"io"},
    {"sklearn"},
    {"pipelines"},
    {"app"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def _room(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] in ("pipelines", "app"):
        return parts[0]
    return parts[1] if parts[0] == "sae" and len(parts) > 1 else None


def _imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


FILES = sorted(p for top in ("sae", "pipelines", "app") for p in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    own = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None or own == "__init__":
        return
    for module in _imports(path):
        room = _room(module)
        if room is None or room == own:
            continue
        assert LEVEL[room] < LEVEL[own], f"{path.name} imports {module} from a floor above"


def test_training_does_not_know_metrics() -> None:
    for path in (ROOT / "sae" / "training").glob("*.py"):
        assert not any(m.startswith("sae.metrics") for m in _imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_assert_outside_tests(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not [n.lineno for n in nodes if isinstance(n, ast.Assert)]


@pytest.mark.parametrize(
    "module",
    [
        "sae",
        "sae.synthetic",
        "sae.synthetic_sites",
        "sae.features",
        "sae.explain.report",
        "sae.io.hdf5",
        "pipelines.cli",
    ],
)
def test_import_leaves_torch_out(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_import_sae_is_fast() -> None:
    """The best of five: a noisy machine makes it slower, never faster."""
    code = "import time; t = time.perf_counter(); import sae; print(time.perf_counter() - t)"
    runs = [
        float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) for _ in range(5)
    ]
    assert min(runs) < 0.3
