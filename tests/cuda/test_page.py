"""docs/performance-gpu.md: what the newest run on a GPU says, losses included."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.gpu import page
from benchmarks.gpu.rows import read


def test_the_page_is_that_of_the_newest_run() -> None:
    run = page.newest()
    assert page.PAGE.read_text() == page.page(run), "run: python -m benchmarks.gpu.page"
    assert {path.name for path in run.iterdir()} >= {"machine.json", "timing.csv"}


def _copy(run: Path, target: Path, speed: float) -> Path:
    """The run with our dense kernels `speed` times as fast."""
    target.mkdir()
    for path in run.iterdir():
        (target / path.name).write_text(path.read_text())
    rows = read(run / "timing.csv")
    for row in rows:
        if row["provider"] == "ours, dense" and row["median_ms"]:
            row["median_ms"] = f"{float(row['median_ms']) / speed:.4f}"
            for rate in ("tflops", "gb_per_s"):
                row[rate] = row[rate] and f"{float(row[rate]) * speed:.4g}"
    with (target / "timing.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return target


def test_targets_are_met_by_fast_kernels_and_missed_by_slow_ones(tmp_path: Path) -> None:
    for speed, met in ((100.0, True), (0.01, False)):
        run = _copy(page.newest(), tmp_path / str(speed), speed)
        lines = list(page.targets(read(run / "timing.csv")))[2:]
        assert len(lines) == len(page.TARGETS) + 1
        for line in lines:
            assert line.endswith("| met |" if met else "| **missed** |"), line
