"""Threads of the benchmark: each on a core of its own while it is timed, then free again."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import placement


def test_busy_threads_do_not_share_a_core() -> None:
    """The main thread, idle here, and a third one sit with the less busy of the others."""
    assert placement.spread({7: 90, 8: 100, 9: 3, 6: 2, 1: 0}, 1, [0, 1]) == {
        8: 0,
        7: 1,
        9: 1,
        1: 1,
    }


def test_a_waiting_main_thread_leaves_the_others_apart() -> None:
    """It spins as much as a worker works."""
    chosen = placement.spread({1: 95, 7: 90, 8: 100}, 1, [0, 1])
    assert chosen[7] != chosen[8]


def test_a_main_thread_that_works_is_one_of_them() -> None:
    assert placement.spread({1: 90, 8: 50}, 1, [2, 5]) == {1: 2, 8: 5}


def test_nobody_works() -> None:
    assert placement.spread({}, 1, [0, 1]) == {1: 0}


def test_threads_are_free_again_afterwards() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    with placement.Placed({os.getpid(): core, 2**22 + 1: core}):  # no thread has so high a number
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_whose_threads_work_is_seen() -> None:
    """One thread works, another waits."""
    stop, waiting, known = threading.Event(), threading.Event(), {}

    def work() -> None:
        known["works"] = threading.get_native_id()
        while not stop.is_set():
            sum(range(10_000))

    def wait() -> None:
        known["waits"] = threading.get_native_id()
        waiting.wait()

    threads = [threading.Thread(target=target) for target in (work, wait)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.01)
        cores = placement.watch(lambda: time.sleep(0.01))
    finally:
        stop.set()
        waiting.set()
        for thread in threads:
            thread.join()
    assert known["works"] in cores
    assert known["waits"] not in cores


def test_a_place_is_kept_until_a_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[object] = []
    answers = [{os.getpid(): 0, 2**22 + 1: 1}, {os.getpid(): 0}]
    monkeypatch.setattr(placement, "watch", lambda run: watched.append(run) or answers.pop(0))
    places = placement.Places()
    for _ in range(3):
        places.of("it", print)
    assert len(watched) == 2
