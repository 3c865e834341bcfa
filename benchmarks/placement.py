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

TRIED_SECONDS = 0.5  # above this, calls are too long to try several places
CROWDED = 0.3  # of the work of the busiest thread: then one more thread counts as busy

Cores = dict[int, int]  # thread -> core


def _cpu_times() -> dict[int, int]:
    """Nanoseconds on a processor, of every thread of this process."""
    times = {}
    for task in TASKS.iterdir() if TASKS.exists() else ():
        with suppress(OSError):  # it has ended, or the kernel does not count
            times[int(task.name)] = int((task / "schedstat").read_text().split()[0])
    return times


def spread(work: dict[int, int], main: int, cores: list[int]) -> list[Cores]:
    """Ways to give a core to each of the busiest threads and to the main thread, which hands out
    the work: each gets the core with the least work so far.

    Where one thread more is busy than there are cores, one of them may only be waiting, in a loop
    that gives way: each in turn is taken for that one and gets its place last.
    """
    busiest = sorted((t for t in work if work[t] > 0), key=lambda t: -work[t])[: len(cores) + 1]
    crowded = len(busiest) > len(cores) and work[busiest[-1]] > CROWDED * work[busiest[0]]
    ways = []
    for waiting in busiest if crowded else (None,):
        load, chosen = dict.fromkeys(cores, 0), {}
        workers = [t for t in busiest if t != waiting]
        for thread in dict.fromkeys([*workers, *([] if waiting is None else [waiting]), main]):
            chosen[thread] = min(cores, key=lambda core: load[core])
            load[chosen[thread]] += max(1, work.get(thread, 0))
        ways.append(chosen)
    return ways


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


class Anywhere(Places):
    """Leaves every thread where it is, and calls nothing to find that out."""

    def of(self, name: str, run: Callable[[], object]) -> Cores:
        return {}


ANYWHERE = Anywhere()


def watch(run: Callable[[], object]) -> Cores:
    """Calls `run` for a while and says where its threads belong; nowhere if there is one core, or
    no count of what a thread has run.
    """
    cores = sorted(os.sched_getaffinity(0))
    before, start = _cpu_times(), time.perf_counter()
    while (seconds := time.perf_counter() - start) < WATCHED_SECONDS:
        run()
    if len(cores) < 2:
        return {}
    work = {t: cpu - before.get(t, 0) for t, cpu in _cpu_times().items()}
    ways = spread(work, os.getpid(), cores)
    if len(ways) == 1 or seconds > TRIED_SECONDS:
        return ways[0]
    return min(ways, key=lambda way: _fastest(run, way))


def _fastest(run: Callable[[], object], cores: Cores) -> float:
    """Seconds of the fastest of some calls with the threads on these cores."""
    seconds, end = [], time.perf_counter() + WATCHED_SECONDS
    with Placed(cores):
        while len(seconds) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return min(seconds)


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
