"""CSV files that are written row by row and continued by the next run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


class Rows:
    """A table whose first `keys` columns name a row. A row is on disk before the next begins."""

    def __init__(self, path: Path, columns: Sequence[str], keys: int) -> None:
        self.path, self.columns, self.keys = path, tuple(columns), keys
        self._known: set[tuple[str, ...]] = set()
        if path.exists():
            with path.open(newline="") as file:
                header, *rows = csv.reader(file)
            if tuple(header) != self.columns:
                raise ValueError(
                    f"{path} has the columns {header}, expected {list(self.columns)}: it is from "
                    "another version; give another output directory"
                )
            self._known = {tuple(row[:keys]) for row in rows}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write("w", self.columns)

    def has(self, key: Sequence[str]) -> bool:
        return tuple(key) in self._known

    def add(self, row: Sequence[str]) -> None:
        if len(row) != len(self.columns):
            raise ValueError(f"expected {len(self.columns)} fields, got {len(row)}: {row}")
        self._known.add(tuple(row[: self.keys]))
        self._write("a", row)

    def _write(self, mode: str, row: Sequence[str]) -> None:
        with self.path.open(mode, newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none when it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
