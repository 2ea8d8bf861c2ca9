"""Whether a document is Python source: by its name, or because it parses.

What is no code is known of documents that say so alone: text that does not parse may be a part of
a file, or in another language.
"""

import ast
import warnings
from collections.abc import Callable

KINDS = {"code": True, "prose": False}  # after the colon, in ids of the embedded corpus
PYTHON = ".py"
LEAST_STATEMENTS = 5
LONGEST = 1 << 18  # characters that are parsed to find out; of longer documents nobody knows
UNTOLD = (
    "no document of the sample is known to be Python: no id ends in `:code` or `.py`, and none "
    f"parses whole, with an import or a definition among at least {LEAST_STATEMENTS} statements"
)


def is_code(document_id: str, text: Callable[[], str]) -> bool | None:
    """True, False, or None where nobody knows. `text` reads the document, if its name is silent."""
    name, _, kind = document_id.rpartition(":")
    if name and kind in KINDS:
        return KINDS[kind]
    return True if document_id.endswith(PYTHON) or parses(text()) else None


def parses(text: str) -> bool:
    """Whether a text is Python as a whole. A table of numbers or a list of settings may parse too,
    so something must be imported or defined, among enough statements."""
    if len(text) > LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in what may be no code at all
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    defining = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defines = any(isinstance(node, defining) for node in statements)
    return defines and len(statements) >= LEAST_STATEMENTS


def of_code(concept: str) -> bool:
    """Whether a concept can be told only where it is known what is Python."""
    name = concept.removeprefix("text_")
    return name == "code" or name.startswith("syntax_")
