"""What a run leaves behind: the CSV of its rows, the sidecar beside it, and a note of what it is
doing, for whoever finds it dead.
"""

from __future__ import annotations

import csv
import json
import mmap
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cases import Case
from providers import Provider


@dataclass
class Row:
    """One line of the CSV: one provider on one case. Times in milliseconds; empty where nothing was
    measured.
    """

    suite: str
    case: str
    provider: str
    kind: str
    version: str
    status: str = "ok"  # "ok", or why there is no time
    error: str = (
        ""  # largest absolute error against float64; of models relative to the largest value
    )
    median_ms: str = ""
    p20_ms: str = ""
    p80_ms: str = ""
    samples: str = ""  # fewer than asked for where the time ran out
    settled: str = ""  # calls made before the clock ran
    floor_ms: str = ""  # the dense work at the measured ceiling
    fraction_of_floor: str = ""  # floor_ms / median_ms
    kept: str = ""  # share of K and V that pruning left
    peak_extra_mb: str = ""
    note: str = ""
    mode: str = ""
    batch: str = ""
    heads: str = ""
    heads_kv: str = ""  # where query heads share key heads
    queries: str = ""
    keys: str = ""
    head_dim: str = ""
    causal: str = ""
    dtype: str = ""
    threads: str = ""
    lengths: str = ""  # of the batch items, where they are padded
    layers: str = ""  # of a model, and so the next two
    expansion: str = ""
    tokens_per_s: str = ""

    @staticmethod
    def of(suite: str, case: Case, provider: Provider) -> Row:
        shape = {n: "" if value is None else str(value) for n, value in asdict(case).items()}
        return Row(
            suite,
            case.name,
            provider.name,
            provider.kind,
            provider.version,
            note=provider.note,
            **shape,
        )


@dataclass
class Log:
    """The CSV and its sidecar. Both are replaced whole, so that an interrupted run keeps what it
    measured.
    """

    path: Path
    meta: dict[str, object]
    rows: list[Row] = field(default_factory=list)

    @staticmethod
    def load(path: Path) -> Log:
        """The log of a run that was interrupted, or that another process goes on with."""
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [Row(**row) for row in csv.DictReader(file)]
        return Log(path, json.loads(path.with_suffix(".json").read_text()), rows)

    def add(self, rows: list[Row]) -> None:
        self.rows += rows
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.rows:
            part = self.path.with_suffix(".part")
            with part.open("w", newline="") as file:
                names = [f.name for f in fields(Row)]
                writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
                writer.writeheader()
                writer.writerows(asdict(row) for row in self.rows)
            part.replace(self.path)
        text = json.dumps(self.meta, indent=1, sort_keys=True)
        self.path.with_suffix(".json").write_text(text + "\n")

    def section(self, name: str) -> dict[str, object]:
        """A dictionary in the sidecar."""
        return self.meta.setdefault(name, {})  # type: ignore[return-value]

    def done(self) -> set[tuple[str, str]]:
        """(suite, case) of every case whose rows are complete: they are written together."""
        return {(row.suite, row.case) for row in self.rows}


class Marker:
    """A small shared file that says which provider is being called: cheap enough for between two
    timed calls, and readable after the process has died.
    """

    SIZE = 512

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(self.SIZE))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.SIZE)
        self._count = 0

    def __call__(self, provider: str) -> None:
        self._count += 1  # so that a watcher sees two calls of the same provider
        text = f"{self._count}\t{provider}".encode()[: self.SIZE]
        self._memory[:] = text.ljust(self.SIZE, b"\0")


def read_marker(path: Path) -> tuple[str, str]:
    """(count, provider) of the last mark; both empty if there is none."""
    if not path.exists():
        return "", ""
    count, _, provider = path.read_bytes().rstrip(b"\0").decode(errors="replace").partition("\t")
    return count, provider


def no_marker(provider: str) -> None:
    """In place of a Marker where nobody watches."""
