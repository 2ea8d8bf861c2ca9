"""The embedded corpus: what people wrote into the running Python and its scientific packages.

It needs no download: every machine that can run Loupe has the standard library, numpy, scipy,
scikit-learn, pandas and torch. Each module yields two documents, its docstrings as prose and
its source without them as code, so that the two kinds of text do not blur into each other.
"""

import ast
import gc
import hashlib
import importlib.util
import inspect
import os
import platform
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sae.corpus.near_duplicates import NearDuplicates
from sae.corpus.sources import Document

PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "torch")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
PACKAGE_CAP = 8_000_000  # bytes of source from any one package, and from the stdlib's own tests
SMALLEST = 300  # characters; a shorter document says too little
SKIPPED_FOLDERS = {"site-packages", "__pycache__", "tests", "lib2to3", "turtledemo", "_vendor"}

DocstringOwner = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def describe() -> dict[str, str]:
    """What the corpus was made of: the versions that decide its text."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(DISTRIBUTIONS.get(package, package))
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


def documents() -> Iterator[Document]:
    """Documents in a fixed pseudo-random order of modules, near-duplicates folded."""
    duplicates = NearDuplicates()
    spent = dict.fromkeys(("stdlib", "test", *PACKAGES), 0)
    for module, path in sorted(_module_files(), key=lambda item: _order(item[0])):
        package = module.split(".")[0]
        budget = package if package in spent else "stdlib"
        source = path.read_text(encoding="utf-8", errors="replace")
        too_much = budget != "stdlib" and spent[budget] + len(source) > PACKAGE_CAP
        if too_much or len(source) < SMALLEST or duplicates.seen(source):
            continue
        spent[budget] += len(source)
        group = ".".join(module.split(".")[:2])
        for kind, text in zip(("prose", "code"), split_source(source), strict=True):
            if len(text) >= SMALLEST:
                yield Document(f"python/{module}:{kind}", f"{module} ({kind})", text, group)


def split_source(source: str) -> tuple[str, str]:
    """(docstrings as prose under their qualified names, source without them).

    A file that does not parse is all code.
    """
    try:
        with _collector_paused():
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return "", source
    found: list[tuple[str, ast.Expr, str]] = []
    _collect(tree, "", found)
    prose = "".join(f"{name}\n\n{doc}\n\n\n" if name else f"{doc}\n\n\n" for name, _, doc in found)
    lines = source.splitlines()
    dropped: set[int] = set()
    for _, node, _ in found:
        dropped.update(range(node.lineno - 1, node.end_lineno or node.lineno))
    code = "\n".join(line for i, line in enumerate(lines) if i not in dropped)
    return prose.strip(), code.strip()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A syntax tree is many objects and no cycle: looking for cycles takes half of the parsing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _collect(owner: DocstringOwner, name: str, found: list[tuple[str, ast.Expr, str]]) -> None:
    first = owner.body[0] if owner.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        found.append((name, first, inspect.cleandoc(first.value.value)))
    for child in owner.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _collect(child, f"{name}.{child.name}" if name else child.name, found)


def _order(module: str) -> bytes:
    return hashlib.sha256(module.encode()).digest()


def _module_files() -> Iterator[tuple[str, Path]]:
    yield from _python_files(Path(sysconfig.get_paths()["stdlib"]), prefix=())
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield from _python_files(Path(spec.origin).parent, prefix=(package,))


def _python_files(root: Path, prefix: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in SKIPPED_FOLDERS]  # not walked into
        packages = (*prefix, *Path(folder).relative_to(root).parts)
        for file in files:
            stem, suffix = os.path.splitext(file)
            if suffix == ".py":
                names = packages if stem == "__init__" else (*packages, stem)
                yield ".".join(names), Path(folder, file)
