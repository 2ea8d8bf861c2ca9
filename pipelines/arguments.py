"""What follows the name of a command becomes the configuration of a run."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.config import RunConfig
from sae.base.config import load_config
from sae.base.errors import UserError


def config_of(run: Path | None, extra: Sequence[str], stage: str | None = None) -> RunConfig:
    """The configuration of the YAML file or run folder `run`, with the settings after it.

    Raises `UserError` for a folder that is no run, and for settings that there are not.
    """
    file = run
    overrides = _overrides(extra, stage)
    is_setting = run is not None and not run.exists() and "=" in str(run)
    if run is not None and (is_setting or str(run).startswith("--")):
        file, overrides = None, _overrides([str(run), *extra], stage)  # it stands where RUN could
    elif run is not None and run.is_dir():
        file = run / "run.yaml"
        if not file.exists():
            raise UserError(f"{run} is no run folder: it has no run.yaml.")
        here = f"folder={json.dumps(str(run))}"  # it may have been moved, or copied, since
        overrides = [here, *overrides]
    return load_config(RunConfig, file, overrides)


def switched(quick: bool) -> list[str]:
    """The other sort of evaluation, without the token counts that were chosen for the one."""
    return [f"evaluate.quick={quick}", "evaluate.tokens=null", "evaluate.loss_tokens=null"]


def _overrides(extra: Sequence[str], stage: str | None = None) -> list[str]:
    """`--key value`, `--key=value` and `key=value`, all as `key=value`.

    To the command of a stage its own settings need no `stage.` before them.
    """
    section = RunConfig.model_fields[stage].annotation if stage else None
    own = set(getattr(section, "model_fields", {})) - set(RunConfig.model_fields)
    found: list[str] = []
    rest = list(extra)
    while rest:
        item = rest.pop(0)
        if item.startswith("--") and "=" not in item:
            if not rest:
                raise UserError(f"The setting `{item}` needs a value.")
            item = f"{item}={rest.pop(0)}"
        item = item.removeprefix("--")
        found.append(f"{stage}.{item}" if item.partition("=")[0] in own else item)
    return found
