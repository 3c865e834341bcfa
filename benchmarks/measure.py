"""Timing, ceilings, machine fingerprint, peak memory: how a number is taken, independent of what is
measured.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

from placement import ANYWHERE, Placed, Places

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


# Samples that a median needs; those who are compared get as many also where the time is short.
FEW = 5
LEADING = 1.3  # times the fastest peer: may yet turn out to be the best one
LOSING = 3.0  # times the fastest peer: two samples say enough
LONGEST_SECONDS = 15.0  # of a provider beyond its part of the time


def interleave(
    runs: dict[str, Run],
    samples: int,
    max_seconds: float,
    mark: Callable[[str], object] = lambda name: None,
    ours: Container[str] = (),
    places: Places = ANYWHERE,
    rest: float = 0.004,
) -> tuple[dict[str, Timing], dict[str, Exception]]:
    """Times every run in turn, A B C A B C, so that a slow minute of the machine hits all of them
    alike. Returns the timings, and what was raised by those that failed.

    Each sample is one call after one untimed call of the same provider (its caches and threads are
    then as in a loop of its own); calls longer than 50 ms need no such help, and of calls shorter
    than a millisecond a sample is the mean of a run of them. `rest` seconds between providers let
    the spinning worker threads of the previous one fall asleep. `places` keeps threads apart.

    A provider gets `samples` samples, or what fits into its part of `max_seconds`: those who are
    done leave their time to the others. Those in `ours` and the fastest of the others get FEW at
    any rate (but LONGEST_SECONDS), long calls of those far behind two at most, everybody one.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    failures: dict[str, Exception] = {}
    spent = dict.fromkeys(runs, 0.0)

    def wants(name: str) -> bool:
        return name not in failures and len(times[name]) < samples

    def may(name: str) -> bool:
        """Whether there is time for one more sample."""
        if not times[name]:
            return True
        taken = sum(seconds for other, seconds in spent.items() if not wants(other))
        part = (max_seconds - taken) / sum(map(wants, runs))
        after = spent[name] * (1 + 1 / len(times[name]))
        behind = 0.0 if name in ours else min(times[name]) / fastest()
        if behind <= LEADING and len(times[name]) < FEW:
            return after <= max(part, LONGEST_SECONDS)
        if behind > LOSING and len(times[name]) > 1 and min(times[name]) > 0.1:
            return False
        return after <= part

    def fastest() -> float:
        """Of those that are not ours."""
        return min(min(t) for name, t in times.items() if t and name not in ours)

    gc.collect()
    gc.disable()
    try:
        while turn := [name for name in runs if wants(name) and may(name)]:
            for name in turn:
                mark(name)
                time.sleep(rest)
                begin = time.perf_counter()
                try:
                    cores = places.of(name, runs[name])
                    begin = time.perf_counter()
                    with Placed(cores):
                        times[name].append(_sample(runs[name]))
                except Exception as error:  # a provider that breaks must not end the run
                    failures[name] = error
                spent[name] += time.perf_counter() - begin
    finally:
        gc.enable()
    return {n: Timing.of(t) for n, t in times.items() if n not in failures}, failures


def _sample(run: Run) -> float:
    """Seconds of one call: of a long one at once, of a shorter one once it has been called before,
    of one shorter than a millisecond the mean over two milliseconds.
    """
    seconds = _seconds(run, 1)
    if seconds > 0.05:
        return seconds
    return _seconds(run, max(1, int(0.002 / seconds)) if seconds < 0.001 else 1)


def _seconds(run: Run, calls: int) -> float:
    """Of a call, the mean of `calls`."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def ceilings_library() -> ctypes.CDLL:
    if not CEILINGS_LIBRARY.exists():
        raise FileNotFoundError(
            f"{CEILINGS_LIBRARY} is missing; `make bench` builds it (CMake: ALIBI_WITH_BENCH)"
        )
    return ctypes.CDLL(str(CEILINGS_LIBRARY))


# The units of ceilings.cc whose rate is measured.
UNITS = {"fma": 0, "fma_avx2": 1, "bf16": 2, "exp": 3}


class Ceilings:
    """What the machine can do at most, measured now: 1e9 operations (a multiply-add is two, 2^x is
    one) and GB per second over `threads` threads.
    """

    def __init__(self) -> None:
        library = ceilings_library()
        self._rate = library.alibi_ceiling_rate
        self._rate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
        self._bandwidth = library.alibi_ceiling_bandwidth
        self._bandwidth.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int]
        for function in (self._rate, self._bandwidth):
            function.restype = ctypes.c_double

    def measure(self, threads: int) -> dict[str, float]:
        """By name, UNITS and "bandwidth"; 0 where the CPU has no such instruction."""
        rates = {name: self._rate(unit, threads, 0.15) for name, unit in UNITS.items()}
        return rates | {"bandwidth": self._bandwidth(threads, 256 << 20, 8)}


def best(ceilings: list[dict[str, float]]) -> dict[str, float]:
    """The largest reading of each ceiling: the machine was able to do that much during the run."""
    return {key: max(c[key] for c in ceilings) for key in ceilings[0]}


def peak_extra_bytes(run: Run) -> int:
    """Growth of the resident set during one call, at its highest point, over what was resident
    before (Linux).
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes()
    run()
    return max(0, _status_bytes("VmHWM") - before)


def resident_bytes() -> int:
    """Of this process, now."""
    return _status_bytes("VmRSS")


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
