"""CSV files that are written row by row and continued by the next run."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

ORIGIN = ("commit", "gpu", "driver")


class Rows:
    """A table whose first `keys` columns name a row. A row is on disk before the next begins.

    Each row ends with where it comes from: fields of the machine.json beside the table.
    """

    def __init__(self, path: Path, columns: Sequence[str], keys: int) -> None:
        self.path, self.columns, self.keys = path, (*columns, *ORIGIN), keys
        machine = path.with_name("machine.json")
        facts = json.loads(machine.read_text()) if machine.exists() else {}
        self._origin = [str(facts.get(name, "")) for name in ORIGIN]
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
        row = [*row, *self._origin]
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
