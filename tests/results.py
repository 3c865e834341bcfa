"""Writes a table that a program of the tests has measured to benchmarks/results/<machine>/.

The CSV holds the rows; the .json beside it says on which commit and machine, and when.
"""

from __future__ import annotations

import csv
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import measure

RESULTS = Path(measure.__file__).parent / "results"


def save(name: str, rows: Sequence[dict[str, Any]]) -> Path:
    """<machine>/<name>.csv, replacing an older one; all rows have the keys of the first."""
    path = RESULTS / measure.machine_slug() / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    now = datetime.datetime.now(datetime.timezone.utc)
    meta = {
        "commit": measure.commit(),
        "machine": measure.machine(),
        "measured": now.isoformat(timespec="seconds"),
        "program": " ".join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
    }
    path.with_suffix(".json").write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    return path
