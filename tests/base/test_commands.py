"""Commands that are shown can be copied into a shell."""

import shlex
from pathlib import Path

from sae.base.commands import command


def test_a_folder_with_a_space_is_one_word() -> None:
    shown = command("evaluate", Path("runs/my run"), "--full")
    assert shown == "sae evaluate 'runs/my run' --full"
    assert shlex.split(shown) == ["sae", "evaluate", "runs/my run", "--full"]
