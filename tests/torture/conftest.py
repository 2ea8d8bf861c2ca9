"""One summary at the end of `make torture`."""

import time
from collections.abc import Iterator

import pytest

from tests.torture.table import Tables

TABLES = Tables()


@pytest.fixture(scope="session")
def tables() -> Tables:
    return TABLES


@pytest.fixture(autouse=True)
def timed(request: pytest.FixtureRequest) -> Iterator[None]:
    """How long each of the tests took; of the fuzzing, its loaders together."""
    began = time.perf_counter()
    yield
    name = request.node.originalname
    MINUTES[name] = MINUTES.get(name, 0.0) + (time.perf_counter() - began) / 60


MINUTES: dict[str, float] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not MINUTES:
        return
    for name, minutes in {**MINUTES, "all": sum(MINUTES.values())}.items():
        TABLES.add("minutes", ["test", "minutes"], [name, f"{minutes:.1f}"])
    terminalreporter.section("torture")
    for line in TABLES.lines():
        terminalreporter.line(line)
