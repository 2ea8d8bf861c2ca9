"""What lies in `evaluation/` of a run, of which coder it is, and when it must go.

Numbers of a coder that is no longer there look like those of the one that is. So what is of other
weights goes as soon as a coder is measured, and what is of the same ones when a self-test fails.
"""

from collections.abc import Sequence
from pathlib import Path

from pipelines.config import RunConfig
from sae.base.commands import command
from sae.base.errors import UserError
from sae.base.files import read_json
from sae.base.sums import SUMS, read_sums, require_intact, unseal

OF_ALL = ("report.html", "compare/*")  # what is made of the evaluations of all coders
MECHANISMS = ("induction", "concepts", "probes", "labels", "explanations")


def folder_of(config: RunConfig) -> Path:
    return config.folder / "evaluation"


def files_of(name: str) -> list[str]:
    """What the evaluation of one coder writes."""
    return [f"{name}.json", f"{name}.html"]


def mechanism_of(name: str, what: str) -> str:
    """What `sae mechanisms` writes of one coder; its page has the same name, but for `.html`."""
    return f"mechanisms/{name}.{what}.json"


def whole_command(config: RunConfig) -> str:
    """What makes the whole evaluation, where the one that is there is quick."""
    return command("evaluate", config.folder, "--full")


def require_sums(folder: Path) -> None:
    """Raises `UserError`, before the work, if the sums to which its own are to be added cannot be
    read: they are what vouches for the files of the other coders there.
    """
    if not (folder / SUMS).exists():
        return
    try:
        read_sums(folder)
    except UserError as error:
        raise UserError(
            f"{error} To do so, remove the whole of {folder} and give the same command."
        ) from None


def withdraw(config: RunConfig, name: str) -> None:
    """Removes the evaluation of a coder, and what was made of it and others."""
    unseal(folder_of(config), [*files_of(name), *OF_ALL])


def withdraw_others(config: RunConfig, name: str, weights: str) -> None:
    """Removes what was measured on other weights than these (their hash), under the same name."""
    folder = folder_of(config)
    path = folder / f"{name}.json"
    if path.exists() and weights_of(path) != weights:
        withdraw(config, name)
    known = [file for what in MECHANISMS if (folder / (file := mechanism_of(name, what))).exists()]
    others = [Path(file) for file in known if weights_of(folder / file) != weights]
    unseal(folder, [str(file.with_suffix(form)) for file in others for form in (".json", ".html")])


def weights_of(path: Path) -> str | None:
    """Hash of the weights that a result is of; None where the file does not say."""
    try:
        said = read_json(path)
        of_explanations = said.get("settings", {}).get("coder_hash")
        return of_explanations or said["provenance"]["coder"]["hash"]
    except (UserError, KeyError, TypeError, AttributeError):  # damaged, or of another form
        return None


def require_current(config: RunConfig, names: Sequence[str]) -> None:
    """Raises `UserError` unless each evaluation is as it was written, and of the coder there is."""
    from sae.coders import coder_hash  # it loads torch, which the plan of a run does without

    folder = folder_of(config)
    require_intact(folder, [f"{name}.json" for name in names])
    for name in names:
        if weights_of(folder / f"{name}.json") != coder_hash(config.coder_folder(name)):
            raise UserError(
                f"{folder / name}.json is the evaluation of other weights than "
                f"{config.coder_folder(name)} holds; run `{command('evaluate', config.folder)}` "
                "to measure these."
            )
