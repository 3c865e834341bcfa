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
    work = {7: 90, 8: 100, 9: 3, 6: 2}
    assert placement.spread(work, 1, [0, 1]) == [{8: 0, 7: 1, 9: 1, 1: 1}]


def test_a_main_thread_that_works_is_one_of_them() -> None:
    assert placement.spread({1: 90, 8: 50}, 1, [2, 5]) == [{1: 2, 8: 5}]


def test_nobody_works() -> None:
    assert placement.spread({}, 1, [0, 1]) == [{1: 0}]


def test_one_of_three_busy_threads_only_waits() -> None:
    """Whoever it is, there is a way that keeps the other two apart."""
    ways = placement.spread({5: 100, 6: 95, 7: 90}, 1, [0, 1])
    for waiting in (5, 6, 7):
        one, other = {5, 6, 7} - {waiting}
        assert any(way[one] != way[other] for way in ways), waiting
    assert len(ways) == 3


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_the_fastest_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [{1: 0}, {1: 1}, {2: 0}]
    monkeypatch.setattr(placement, "spread", lambda *_: ways)
    monkeypatch.setattr(placement, "_fastest", lambda run, way: 1.0 if way == {1: 1} else 2.0)
    assert placement.watch(lambda: time.sleep(0.01)) == {1: 1}
    assert placement.watch(lambda: time.sleep(0.6)) == {1: 0}


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
