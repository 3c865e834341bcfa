"""Keeps the working threads of a provider on cores of their own while it is timed.

A scheduler may leave two busy threads on one core while another core idles, for a whole call and
call after call: virtual machines that pack their processors do, and whom it hits depends on which
thread woke which. Such a call takes twice as long as its code, so the harness does for every
provider alike what a scheduler is for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

TASKS = Path("/proc/self/task")
WATCHED_SECONDS = 0.05  # of calls; the count of a running thread is ticks of milliseconds behind

Cores = dict[int, int]  # thread -> core


def _cpu_times() -> dict[int, int]:
    """Nanoseconds on a processor, of every thread of this process."""
    times = {}
    for task in TASKS.iterdir() if TASKS.exists() else ():
        with suppress(OSError):  # it has ended, or the kernel does not count
            times[int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return times


def spread(work: dict[int, int], main: int, cores: list[int]) -> Cores:
    """A core for each of the busiest threads, and for the main thread, which hands out the work:
    each gets the core with the least work so far.

    One thread more than there are cores: one of them may only be waiting, in a loop that gives way.
    """
    busiest = sorted((t for t in work if work[t] > 0), key=lambda t: -work[t])[: len(cores) + 1]
    load, chosen = dict.fromkeys(cores, 0), {}
    for thread in dict.fromkeys([*busiest, main]):
        chosen[thread] = min(cores, key=lambda core: load[core])
        load[chosen[thread]] += max(1, work.get(thread, 0))
    return chosen


class Places:
    """Where the threads of each provider belong, found out when it is first asked for, and again
    once one of them has ended.
    """

    def __init__(self) -> None:
        self._known: dict[str, Cores] = {}

    def of(self, name: str, run: Callable[[], object]) -> Cores:
        cores = self._known.get(name)
        if cores is None or any(not (TASKS / str(thread)).exists() for thread in cores):
            cores = self._known[name] = watch(run)
        return cores


def watch(run: Callable[[], object]) -> Cores:
    """Calls `run` for a while and says where its threads belong; nowhere if there is one core, or
    no count of what a thread has run.
    """
    cores = sorted(os.sched_getaffinity(0))
    before, end = _cpu_times(), time.perf_counter() + WATCHED_SECONDS
    while time.perf_counter() < end:
        run()
    work = {t: cpu - before.get(t, 0) for t, cpu in _cpu_times().items()}
    return spread(work, os.getpid(), cores) if len(cores) > 1 else {}


class Placed:
    """While it is active, threads stay on their cores; afterwards they may go anywhere again.

    For the time of a sample only: a thread that is started inherits the cores of the one that
    starts it, and providers share threads.
    """

    def __init__(self, cores: Cores) -> None:
        self._cores = cores
        self._before: dict[int, set[int]] = {}

    def __enter__(self) -> None:
        for thread, core in self._cores.items():
            with suppress(OSError):  # it has ended
                self._before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, {core})

    def __exit__(self, *_: object) -> None:
        for thread, cores in self._before.items():
            with suppress(OSError):
                os.sched_setaffinity(thread, cores)
