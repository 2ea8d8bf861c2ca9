"""What came of the torture, in tables that are printed together at the end."""

import json
from collections.abc import Sequence
from pathlib import Path


class Tables:
    """Rows under headings, by the name of their table.

    They are kept in a file, so that what was found is there even if the run is cut off.
    """

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.headings: dict[str, Sequence[str]] = {}
        self.rows: dict[str, list[list[str]]] = {}

    def add(self, name: str, headings: Sequence[str], row: Sequence[object]) -> None:
        self.headings[name] = headings
        self.rows.setdefault(name, []).append([str(cell) for cell in row])
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps({"table": name, **dict(zip(headings, row, strict=True))}))
                file.write("\n")

    def lines(self) -> list[str]:
        found: list[str] = []
        for name, rows in self.rows.items():
            table = [list(self.headings[name]), *rows]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            found += ["", name]
            for row in table:
                cells = zip(row, widths, strict=True)
                first, *rest = [
                    f"{cell:<{width}}" if at == 0 else f"{cell:>{width}}"
                    for at, (cell, width) in enumerate(cells)
                ]
                found.append("  ".join([first, *rest]))
        return found
