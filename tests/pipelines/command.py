"""The command `sae`, run in this process."""

import io
from contextlib import redirect_stderr, redirect_stdout

from pipelines.cli import main


def sae(*arguments: str, code: int = 0) -> str:
    """Runs `sae`, expects an exit code, returns stdout and stderr together."""
    output, found = io.StringIO(), 0
    with redirect_stdout(output), redirect_stderr(output):
        try:
            main(list(arguments))
        except SystemExit as exit:
            found = int(exit.code or 0)
    assert found == code, output.getvalue()
    return output.getvalue()
