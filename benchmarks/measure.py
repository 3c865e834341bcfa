"""Timing, ceilings, machine fingerprint, peak memory: how a number is taken, independent of what is
measured.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CEILINGS_LIBRARY = REPOSITORY / "build" / "libalibi_ceilings.so"

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call over all samples of one provider."""

    median: float
    p20: float
    p80: float
    samples: int

    @staticmethod
    def of(samples: list[float]) -> Timing:
        ordered = sorted(samples)

        def quantile(q: float) -> float:
            return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

        return Timing(statistics.median(ordered), quantile(0.2), quantile(0.8), len(ordered))


def interleave(
    runs: dict[str, Run], min_samples: int, max_seconds: float, rest: float = 0.004
) -> dict[str, Timing]:
    """Times every run in turn, A B C A B C, so that a slow minute of the machine hits all of them
    alike.

    Each sample is one call after one untimed call of the same provider (its caches and threads are
    then as in a loop of its own); calls longer than 50 ms skip the untimed one. A provider gets
    `min_samples` samples, fewer only when they would take more than its share of `max_seconds`, and
    never fewer than 3. `rest` seconds between providers let the spinning worker threads of the
    previous one fall asleep.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    share = max_seconds / max(1, len(runs))
    gc.collect()
    gc.disable()
    try:
        for _ in range(min_samples):
            for name, run in runs.items():
                if len(samples[name]) >= 3 and spent[name] > share:
                    continue
                time.sleep(rest)
                begin = time.perf_counter()
                if not samples[name] or samples[name][-1] < 0.05:
                    run()
                start = time.perf_counter()
                run()
                end = time.perf_counter()
                samples[name].append(end - start)
                spent[name] += end - begin
    finally:
        gc.enable()
    return {name: Timing.of(values) for name, values in samples.items()}


class Ceilings:
    """What the machine can do at most, measured now: GFLOP/s and GB/s over `threads` threads."""

    def __init__(self) -> None:
        if not CEILINGS_LIBRARY.exists():
            raise FileNotFoundError(
                f"{CEILINGS_LIBRARY} is missing; `make bench` builds it (CMake: ALIBI_WITH_BENCH)"
            )
        library = ctypes.CDLL(str(CEILINGS_LIBRARY))
        self._fma = library.alibi_ceiling_fma
        self._fma.argtypes = [ctypes.c_int, ctypes.c_double, ctypes.c_int]
        self._bf16 = library.alibi_ceiling_bf16
        self._bf16.argtypes = [ctypes.c_int, ctypes.c_double]
        self._bandwidth = library.alibi_ceiling_bandwidth
        self._bandwidth.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int]
        for function in (self._fma, self._bf16, self._bandwidth):
            function.restype = ctypes.c_double

    def measure(self, threads: int) -> dict[str, float]:
        """{"fma", "fma_avx2", "bf16": GFLOP/s, "bandwidth": GB/s}; 0 where the CPU has no such
        instruction.
        """
        return {
            "fma": self._fma(threads, 0.15, 0),
            "fma_avx2": self._fma(threads, 0.15, 1),
            "bf16": self._bf16(threads, 0.15),
            "bandwidth": self._bandwidth(threads, 256 << 20, 8),
        }


def best(ceilings: list[dict[str, float]]) -> dict[str, float]:
    """The largest reading of each ceiling: the machine was able to do that much during the run."""
    return {key: max(c[key] for c in ceilings) for key in ceilings[0]}


def peak_extra_bytes(run: Run) -> int:
    """Growth of the resident set during one call, at its highest point, over what was resident
    before (Linux).
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def machine() -> dict[str, str]:
    """Who ran this: CPU, cores, compiler-independent facts that a reader needs to place the
    numbers.
    """
    info: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if ":" in line:
            key, value = (part.strip() for part in line.split(":", 1))
            info.setdefault(key, value)
    family, model = info.get("cpu family", "?"), info.get("model", "?")
    return {
        "cpu": info.get("model name", platform.processor() or "unknown"),
        "family": f"{family}/{model}/{info.get('stepping', '?')}",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_gib": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def machine_slug() -> str:
    """Directory name under results/: the CPU and its number of cores."""
    facts = machine()
    words = "".join(c if c.isalnum() else " " for c in facts["cpu"].lower()).split()
    family = facts["family"].replace("/", "-")
    return "-".join([*words[:4], "family", family, facts["cores"] + "cores"])


def commit() -> str:
    """Short commit of the working tree; "+" when it has uncommitted changes outside results/."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=REPOSITORY, check=True, capture_output=True, text=True
        ).stdout.strip()

    changed = [
        line
        for line in git("status", "--porcelain", "--untracked-files=no").splitlines()
        if "benchmarks/results/" not in line
    ]
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def describe(mapping: dict[str, str]) -> str:
    return json.dumps(mapping, sort_keys=True)
