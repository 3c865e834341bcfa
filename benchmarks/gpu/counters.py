"""What Nsight Compute counts in our kernels, at the shapes of the targets.

    python -m benchmarks.gpu.counters LIBRARY DEVICE CASE     runs one case once, for ncu to watch

evidence.py starts ncu on that and keeps the numbers as counters.csv: how busy the tensor cores and
the memory were, how many warps were resident, and what they waited for.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from cases import Case

from benchmarks.gpu import ours, timing
from benchmarks.gpu.memory import memory_on

COLUMNS = ("case", "kernel", "section", "metric", "unit", "value")
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis")
SECTIONS += ("Occupancy", "LaunchStats", "WarpStateStats")
MAX_KERNELS = 6


def cases(rehearse: bool) -> list[Case]:
    """Those that are timed first."""
    return list(timing.rehearsal_cases() if rehearse else timing.gpu_cases())[:6]


def command(ncu: str, library: Path, device: str, case: str) -> list[str]:
    sections = [word for name in SECTIONS for word in ("--section", name)]
    only = ["--kernel-name", "regex:attention", "--launch-count", str(MAX_KERNELS)]
    # The clocks are left as they are: they are part of what is timed elsewhere.
    how = ["--clock-control", "none", "--csv", "--page", "details", "--target-processes", "all"]
    program = [sys.executable, "-m", "benchmarks.gpu.counters", str(library), device, case]
    return [ncu, *how, *sections, *only, *program]


def numbers(case: str, output: str) -> Iterator[tuple[str, ...]]:
    """Rows of counters.csv from what ncu prints: its own lines, and then a table."""
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    for row in csv.DictReader(lines[first:]):
        if row.get("Metric Name") and row.get("Metric Value"):
            fields = ("Kernel Name", "Section Name", "Metric Name", "Metric Unit", "Metric Value")
            yield (case, *(row.get(name) or "" for name in fields))


def main() -> None:
    library, device, name = sys.argv[1:]
    every = {timing.label(case): case for rehearse in (False, True) for case in cases(rehearse)}
    case, place = every[name], memory_on(device, own_stream=False)
    ours.prepare(case, case.inputs(), Path(library), place, prune=False).run()
    place.synchronize()


if __name__ == "__main__":
    main()
