"""Weights & Biases, by a module of the same face: a run per training, not per resume."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sae.base.errors import UserError
from sae.store import ActivationStore
from sae.training import log
from tests.training.test_checkpoints import NAMES, run, stop_at

Started = list[dict[str, Any]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """With what each run was started, and what it was given."""
    found: Started = []

    def init(**given: Any) -> SimpleNamespace:
        found.append({**given, "steps": []})
        return SimpleNamespace(
            log=lambda _values, step: found[-1]["steps"].append(step), finish=lambda: None
        )

    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="here")
    module.init = init  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return found


def test_a_resumed_training_goes_on_with_its_run(
    store: ActivationStore, tmp_path: Path, started: Started
) -> None:
    with pytest.raises(ZeroDivisionError):
        run(store, tmp_path, on_step=stop_at(10, ZeroDivisionError()), wandb_project="p")
    run(store, tmp_path, wandb_project="p")
    run(store, tmp_path, wandb_project="p", fingerprint="another")
    ids = [given["id"] for given in started]
    assert len(started) == 3 * len(NAMES)
    assert ids[:2] == ids[2:4]
    assert len(set(ids)) == 2 * len(NAMES)
    assert {given["resume"] for given in started} == {"allow"}
    assert {given["reinit"] for given in started} == {"create_new"}  # coders train together


def test_what_it_refuses_is_a_sentence_and_changes_nothing(
    store: ActivationStore, tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("api_key not configured (no-tty)")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    begun: list[None] = []
    with pytest.raises(UserError, match=r"began no run \(api_key not .*`wandb login`"):
        run(store, tmp_path, wandb_project="p", begin=lambda: begun.append(None))
    assert not begun
    assert not list(tmp_path.rglob("training.jsonl"))


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)])
def test_a_folder_of_that_name_is_not_the_package(
    found: ModuleSpec | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own, which it makes where it runs, can be imported without an error."""
    monkeypatch.setattr(log, "find_spec", lambda _: found)
    log.require_wandb(None)
    with pytest.raises(UserError, match="is not installed"):
        log.require_wandb("p")
