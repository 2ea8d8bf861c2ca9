"""How the browser is started: nothing of a stranger's run is executed, obeyed, or downloaded."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from app import launch, live
from app.feature_header import badges
from app.run_folder import STARTED_IN, Run
from pipelines.browse import browse
from sae.base.errors import UserError
from sae.base.sums import seal


@pytest.fixture
def strangers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a run with modules that leave a mark where they are imported."""
    run = tmp_path / "run"
    (run / "features").mkdir(parents=True)
    for name in ("argparse", "streamlit", "app"):
        (run / f"{name}.py").write_text("open('executed', 'w').close()\n")
    monkeypatch.chdir(run)
    monkeypatch.setenv("PYTHONPATH", str(launch.HERE.parent))
    return run


def test_modules_in_the_current_folder_are_not_imported(
    strangers_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.browse.subprocess.call", lambda c: commands.append(c) or 0)
        assert browse(Path(".")) == 0
    assert str(strangers_run) in commands[0]
    commands = [[*commands[0], "--help"], [*launch.streamlit_command(".")[:4], "version"]]
    for command in commands:
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        assert said.stdout
    assert not (strangers_run / "executed").exists()


def test_the_server_works_in_a_folder_of_ours_and_offline(
    strangers_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sys, "argv", ["app.launch", "."])
    monkeypatch.setattr(os, "execve", lambda *given: started.append((os.getcwd(), *given[1:])))
    launch.main()
    folder, command, environment = started[0]
    assert folder == str(launch.HERE)
    assert command[-1] == environment["LOUPE_RUN"] == str(strangers_run)
    assert environment[STARTED_IN] == str(strangers_run)
    assert environment["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert launch.environment(".")["HF_HUB_OFFLINE"] == "0"


def test_a_model_that_is_not_here_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"sae.load_lm\(\"loupe-nobody/nothing\"\)"):
        live._model("loupe-nobody/nothing")


def test_a_models_folder_is_relative_to_where_the_browser_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setenv(STARTED_IN, str(tmp_path))
    monkeypatch.setattr("sae.lm.load_lm", lambda name, dtype: name)
    assert live._model("model") == str(tmp_path / "model")
    assert live._model("pocket") == "pocket"


def test_a_changed_evaluation_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "evaluation" / "topk.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"schema": 1, "metrics": {"ev": {"value": 0.71}}}))
    seal(file.parent, [file.name])
    assert Run(tmp_path).evaluation("topk")
    file.write_text(file.read_text().replace("0.71", "0.91"))
    with pytest.raises(UserError, match="is damaged"):
        Run(tmp_path).evaluation("topk")


def test_the_kind_of_a_label_is_text() -> None:
    row = {"label_score": 0.5, "count": 1, "density": 0.0, "tags": []}
    row |= {"position_only": False, "single_token": False, "label_kind": "](http://x)[b"}
    assert r"\]\(http\:\/\/x\)\[b" in badges(row)


def test_a_server_without_the_protections_is_refused(tmp_path: Path) -> None:
    """Streamlit's own default listens to every machine."""
    main, port = str(launch.HERE / "main.py"), ["--server.headless=true", "--server.port=0"]
    command = [sys.executable, "-P", "-m", "streamlit", "run", main, *port, "--", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(launch.HERE.parent)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "start it with `sae browse RUN`" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("name", launch.PROTECTION)
def test_each_protection_is_asked_for(name: str) -> None:
    wanted = dict(launch.PROTECTION)
    assert launch.lacking(wanted.__getitem__) == []
    assert launch.lacking({**wanted, name: None}.__getitem__) == [name]


def test_commands_to_copy_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "my run; rm -rf $HOME"
    assert shlex.split(Run(folder).command("index")) == ["sae", "index", str(folder)]
