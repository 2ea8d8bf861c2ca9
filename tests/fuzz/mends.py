"""Sums and hashes put right after a change, as somebody would who means harm."""

import json
from pathlib import Path
from typing import Any

from sae.base.files import LARGEST_JSON, sha256_file, write_sealed_json
from sae.base.sums import SUMS, write_sums


def sums(folder: Path) -> None:
    """`SHA256SUMS` of what is there now, where there was one."""
    if (folder / SUMS).is_file():
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
        digests = {p.relative_to(folder).as_posix(): _digest(p) for p in files}
        write_sums(folder, digests)


def _digest(path: Path) -> str:
    """Of devices and pipes none can be taken."""
    return sha256_file(path) if path.is_file() else "0" * 64


def manifest(folder: Path) -> None:
    _seal(folder / "manifest.json")


def checkpoints(folder: Path) -> None:
    """The files that make checkpoints valid name what is there now."""
    for commit in folder.glob("checkpoint-*.json"):
        content = _read(commit)
        named = content.get("sha256_of") if isinstance(content, dict) else None
        if isinstance(named, dict) and isinstance(content.get("step"), int):
            for name in named:
                state = folder / name / "checkpoint" / f"step-{content['step']}.pt"
                if "\0" not in name and state.is_file():
                    named[name] = sha256_file(state)
            commit.write_text(json.dumps(content))
        _seal(commit)


def coder_hash(folder: Path) -> None:
    """The index says that it is of these weights."""
    weights, meta = folder / "coder" / "sae_weights.safetensors", folder / "index" / "index.json"
    if weights.is_file():
        content = json.loads(meta.read_text())
        content["coder_hash"] = sha256_file(weights)
        meta.write_text(json.dumps(content))


def _seal(path: Path) -> None:
    content = _read(path)
    if isinstance(content, dict):
        write_sealed_json(path, {k: v for k, v in content.items() if k != "sha256"})


def _read(path: Path) -> Any:
    """What nobody reads, since it is too large, is not mended either."""
    try:
        is_small = path.is_file() and path.stat().st_size <= LARGEST_JSON
        return json.loads(path.read_bytes()) if is_small else None
    except (OSError, ValueError, RecursionError):
        return None
