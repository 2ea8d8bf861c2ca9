"""`SHA256SUMS`: what the files of a folder were when they were written.

The format is that of `sha256sum`, so a folder can be checked without Loupe:

    cd coders/topk && sha256sum --check SHA256SUMS

Reading is strict (lower case, two spaces, sorted, no line twice), so that damage to this file
itself never passes for another valid one: it shows as a file that differs, is missing, or is new.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from sae.base.errors import UserError
from sae.base.files import sha256_file, write_text
from sae.base.foreign import is_inside, read_bytes
from sae.base.locks import Lock

SUMS = "SHA256SUMS"
LARGEST = 2**28
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")


def read_sums(folder: Path | str) -> dict[str, str]:
    """{path relative to the folder: sha256}. Raises `UserError` if absent or not as written."""
    path = Path(folder) / SUMS
    try:
        text = read_bytes(path, LARGEST).decode()
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, so nothing says what {folder} held; make it again."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged (it is not UTF-8); make {folder} again.") from None
    sums = {name: digest for digest, name in _LINE.findall(text)}
    if _text(sums) != text or not all(map(is_inside, sums)):
        raise UserError(
            f"{path} is damaged (it is not a sorted list of sums of files there); make {folder} "
            "again."
        )
    return sums


def write_sums(folder: Path | str, sums: dict[str, str]) -> None:
    """Replaces the sums of a folder."""
    write_text(Path(folder) / SUMS, _text(sums))


def seal(folder: Path | str, patterns: Iterable[str]) -> None:
    """Takes the sums of the files that match (glob patterns), and keeps those of all others.

    Only what was just written may be sealed: a sum taken later would bless damage.
    """
    folder = Path(folder)
    found = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.is_file()
    }
    with Lock(folder / f".{SUMS}.lock", f"{folder / SUMS}", wait=True):
        known = read_sums(folder) if (folder / SUMS).exists() else {}
        write_sums(folder, {**known, **found})


def unseal(folder: Path | str, patterns: Iterable[str]) -> None:
    """Removes the files that match (glob patterns), and their sums: they are no longer true.

    Nothing goes where the sums cannot be read: `UserError`.
    """
    folder, patterns = Path(folder), list(patterns)
    if not folder.is_dir():
        return
    with Lock(folder / f".{SUMS}.lock", f"{folder / SUMS}", wait=True):
        known = read_sums(folder) if (folder / SUMS).exists() else {}
        for pattern in patterns:
            for path in folder.glob(pattern):
                if path.is_file():
                    path.unlink()
        kept = {n: s for n, s in known.items() if not any(_under(Path(n), p) for p in patterns)}
        if kept != known:
            write_sums(folder, kept)


def problems_of(folder: Path | str, ignored: Iterable[str] = ()) -> list[str]:
    """A sentence for each file that is missing, differs, or is new; empty if all is as written.

    Files that match a pattern of `ignored` may change or come and go.
    """
    folder = Path(folder)
    try:
        sums = read_sums(folder)
    except UserError as error:
        return [str(error)]
    extra = [f"{folder / name}: extra" for name in _others(folder, sums, ignored)]
    return _damage(folder, sums) + extra


def damage_of(
    folder: Path | str, patterns: Iterable[str] = ("*",), but: Iterable[str] = ()
) -> list[str]:
    """A sentence for each file that is missing or differs, of those that match `patterns` and
    nothing of `but`. Folders without sums, and files that they do not name, pass.
    """
    folder, patterns, but = Path(folder), list(patterns), list(but)
    if not (folder / SUMS).exists():
        return []
    try:
        sums = read_sums(folder)
    except UserError as error:
        return [str(error)]
    return _damage(
        folder,
        {
            name: digest
            for name, digest in sums.items()
            if any(_under(Path(name), pattern) for pattern in patterns)
            and not any(_under(Path(name), pattern) for pattern in but)
        },
    )


def _damage(folder: Path, sums: dict[str, str]) -> list[str]:
    problems = []
    for name, digest in sums.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif sha256_file(path) != digest:
            problems.append(f"{path}: not what was written ({path.stat().st_size:,} bytes now)")
    return problems


def is_sealed(path: Path) -> bool:
    """Whether the sums of the file's folder name it."""
    return (path.parent / SUMS).exists() and path.name in read_sums(path.parent)


def require_intact(folder: Path | str, names: Iterable[str]) -> None:
    """Raises `UserError` if a file that the folder's sums name is not what was written.

    Folders without sums, and files that they do not name, come from other tools and pass.
    """
    folder = Path(folder)
    if not (folder / SUMS).exists():
        return
    sums = read_sums(folder)
    for name in names:
        path = folder / name
        if name in sums and not path.is_file():
            raise UserError(f"{path} is missing; make {folder} again.")
        if name in sums and sha256_file(path) != sums[name]:
            raise UserError(
                f"{path} is damaged: it is not the file that was written (its SHA-256 differs from "
                f"{SUMS}); make it again, or delete {SUMS} if you changed it on purpose."
            )


def _others(folder: Path, sums: dict[str, str], ignored: Iterable[str]) -> list[str]:
    patterns = (*ignored, SUMS, f".{SUMS}.lock")
    found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if _is_entry(path))
    return [
        path.as_posix()
        for path in found
        if path.as_posix() not in sums and not any(_under(path, p) for p in patterns)
    ]


def _is_entry(path: Path) -> bool:
    """Anything but a real folder: a link to one hides what lies behind it."""
    return path.is_symlink() or not path.is_dir()


def _under(path: Path, pattern: str) -> bool:
    """Whether the path, or a folder that it lies in, matches from the root."""
    return any(
        str(part) != "." and part.match(pattern) and len(part.parts) == pattern.count("/") + 1
        for part in (path, *path.parents)
    )


def _text(sums: dict[str, str]) -> str:
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
