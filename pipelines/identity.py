"""What identifies a training, so that one is not taken for another, nor lost to it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import CoderConfig, RunConfig
from pipelines.manifest import CODE, Manifest, code_hash
from sae.base.commands import command
from sae.base.errors import UserError
from sae.base.files import sha256_json
from sae.store import ActivationStore
from sae.training.checkpoint import other_training

HASHES = ("activations", "code")


def made_of(
    config: RunConfig, wanted: Sequence[CoderConfig], store: ActivationStore
) -> dict[str, Any]:
    """Of a training of these coders together: all that decides it, by names that people know."""
    return {
        **{f"train.{key}": value for key, value in config.train.recipe.items()},
        **{f"coder {coder.name}": config.training_of(coder) for coder in wanted},
        "activations": sha256_json(store.attributes),
        "code": code_hash(*CODE["train"]),
    }


def require_no_other_training(config: RunConfig, names: Sequence[str]) -> None:
    """Raises `UserError` if the checkpoints there are of another training, which is not finished:
    the first one of this training would remove them.
    """
    wanted = [coder for coder in config.train.coders if coder.name in names]
    own, folder = made_of(config, wanted, ActivationStore.open(config.store)), config.folder
    other = other_training(folder / "coders", sha256_json(own))
    if other is None:
        return
    commit, content = other
    on_record = Manifest.open(folder).items
    if all(f"train/{coder}" in on_record for coder in content["sha256_of"]):
        return  # it has ended; a kill came before its checkpoints were removed
    its_own = content.get("made_of")
    differ = _differences(its_own, own) if its_own else ["settings, activations or code"]
    told = ", ".join(differ[:3]) + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")
    raise UserError(
        f"{commit} is of another training, which has not ended, and this one would remove it "
        f"({told}); end that one with its own settings, or, to begin anew, remove "
        f"{folder / 'coders'}/checkpoint-*, or give these settings to "
        f"`{command('run', folder, '--from', 'train')}`, which trains every coder."
    )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In words, what differs in two trainings; with what it was and is, where that says much."""
    found: list[str] = []
    for name in dict.fromkeys((*old, *new)):
        was, now = old.get(name), new.get(name)
        if sha256_json(was) == sha256_json(now):
            continue
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += [f"{name}: {each}" for each in _differences(was, now)]
        elif name not in old or name not in new:
            found.append(f"{name} {'was not' if name in new else 'was'} a part of it")
        elif name in HASHES:
            found.append(f"the {name} differ" + ("s" if name == "code" else ""))
        else:
            found.append(f"`{name}` was {was} and is {now}")
    return found
