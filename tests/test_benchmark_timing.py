"""How the benchmarks take times: samples, turns, settling, and a provider that breaks."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import measure
import models
import one_case
import providers
import suites
from cases import DECODE, FORWARD, Case
from providers import Prepared, Provider
from record import Row
from suites import Suite
from tables import FLOOR, PLAIN_READ
from truth_model import ModelTruth

CASE = Case(FORWARD, 1, 2, 20, 20, 32)
MODEL_CASE = models.ModelCase(FORWARD, 2, 3, 7, 7, 4, layers=1, expansion=2)


# 0.5 ms at the ceilings below.
FLOOR_CASE = Case(FORWARD, 1, 2, 1250, 1250, 8)


class _NoCeilings:
    def measure(self, threads: int) -> dict[str, float]:
        return {"fma": 100.0, "fma_avx2": 50.0, "bf16": 0.0, "bandwidth": 10.0}


def _measure(suite: Suite, case: Case, samples: int = 3, seconds: float = 1.0) -> dict[str, Row]:
    rows = {p.name: Row.of("test", case, p) for p in suite.providers}
    one_case.measure_case(rows, suite, case, samples, seconds, _NoCeilings())  # type: ignore[arg-type]
    return rows


def _calling(name: str, run: Any, **fields: Any) -> Provider:
    """A yardstick that runs `run`."""
    prepare = lambda case, inputs: Prepared(run, dict)  # noqa: E731
    return Provider(name, "yardstick", "numpy", prepare, lambda case: [], "", **fields)


def test_times_are_per_call() -> None:
    """A run of 1000 calls that waits 10 ms is 10 us a call; a model's tokens follow from it."""
    sleeping = [_calling("it", lambda: time.sleep(0.01))]
    suite = Suite([MODEL_CASE], sleeping, ModelTruth, calls=1000)
    row = _measure(suite, MODEL_CASE)["it"]
    # Never less than it sleeps; at most 20 times that on a busy machine.
    assert 0.01 <= float(row.median_ms) < 0.2
    assert float(row.tokens_per_s) == pytest.approx(1e3 * 2 * 7 / float(row.median_ms), rel=1e-3)
    assert row.samples == "3"


def test_a_provider_that_breaks_while_it_is_timed_costs_its_own_row_only() -> None:
    calls = []

    def breaks() -> None:
        calls.append(1)
        time.sleep(0.002)
        if len(calls) > 4:  # one in prepare, two in a sample
            raise MemoryError("no room")

    both = [_calling("breaks", breaks), _calling("works", lambda: None)]
    rows = _measure(Suite([CASE], both), CASE, samples=9)
    assert rows["breaks"].status == "failed: MemoryError: no room"
    assert rows["breaks"].median_ms == ""
    assert (rows["works"].status, rows["works"].samples) == ("ok", "9")


def test_short_calls_are_timed_many_at_once() -> None:
    """What a microsecond takes is not to be read off one cold call."""
    calls: list[int] = []
    timings, _ = measure.interleave({"it": lambda: calls.append(1)}, 3, 1.0)
    assert timings["it"].median < 1e-4
    assert len(calls) > 3 * 2


def _turns(seconds: dict[str, float], ours: str, budget: float) -> dict[str, int]:
    """How many samples each gets whose calls sleep that long."""
    runs = {name: partial(time.sleep, s) for name, s in seconds.items()}
    timings, _ = measure.interleave(runs, 9, budget, ours=(ours,))
    return {name: timing.samples for name, timing in timings.items()}


def test_who_is_compared_gets_samples_and_who_is_far_behind_gets_few() -> None:
    seconds = {"ours": 0.12, "best": 0.06, "close": 0.07, "slow": 0.1, "far": 0.3}
    assert _turns(seconds, "ours", 0.1) == {"ours": 5, "best": 5, "close": 5, "slow": 1, "far": 1}
    plenty = _turns(seconds, "ours", 20.0)
    assert plenty == {"ours": 9, "best": 9, "close": 9, "slow": 9, "far": 2}


@pytest.mark.parametrize("unit", [None, "fma_avx2"])
def test_the_floor_is_what_the_machine_did_in_the_same_minutes(unit: str | None) -> None:
    """Ten times the time that the ceilings promise: the floor of every row, whatever its unit."""
    late = one_case.floor_seconds(FLOOR_CASE, _NoCeilings().measure(2))
    both = [_calling(FLOOR, lambda: time.sleep(10 * late)), _calling("it", lambda: None, unit=unit)]
    rows = _measure(Suite([FLOOR_CASE], both), FLOOR_CASE)
    taken = float(rows[FLOOR].median_ms)
    assert taken >= 10 * 1e3 * late
    assert float(rows[FLOOR].fraction_of_floor) == pytest.approx(1, abs=1e-3)
    # The ceilings of the test have half the rate for AVX2.
    assert float(rows["it"].floor_ms) == pytest.approx(taken * (2 if unit else 1), rel=1e-3)


def test_the_floor_of_decode_is_a_plain_read() -> None:
    case = Case(DECODE, 1, 1, 1, 64, 8)
    both = [_calling(PLAIN_READ, lambda: time.sleep(0.01)), _calling("it", lambda: None)]
    rows = _measure(Suite([case], both), case)
    assert rows["it"].floor_ms == rows[PLAIN_READ].median_ms


def test_what_is_asked_for_at_any_rate_has_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LONGEST_SECONDS", 0.3)
    assert _turns({"ours": 0.12}, "ours", 0.1) == {"ours": 2}


def test_what_mindspore_compiles_settles_before_the_clock_runs() -> None:
    calls = []
    provider = _calling("it", lambda: calls.append(1), settling_calls=5)
    row = _measure(Suite([CASE], [provider]), CASE)["it"]
    assert row.settled == "5"
    assert len(calls) >= 1 + 5 + 3 * 2
    for provider in {p.name: p for s in suites.all_suites().values() for p in s.providers}.values():
        compiled = provider.name.endswith(("(graph)", "(jit)"))
        assert (provider.settling_calls > 0) == compiled, provider.name


def test_a_provider_of_torch_does_not_make_another_compile_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What torch has compiled is forgotten once per case, before the first provider of it."""
    torch = pytest.importorskip("torch")
    resets = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))
    compiled = [
        p for p in providers.all_providers() if p.name.startswith("torch") and "compiled" in p.name
    ]
    assert len(compiled) == 2
    for keys in (20, 21):
        case = replace(CASE, queries=keys, keys=keys)
        for provider in compiled:
            provider.prepare(case, case.inputs())
    assert len(resets) == 2


def test_a_graph_runs_in_graph_mode_and_leaves_the_mode_as_it_was(
    ms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it fails: PyNative providers of the same process come next."""
    seen = []

    def function(x: float) -> float:
        seen.append(ms.get_context("mode"))
        return 1 / x

    monkeypatch.setattr(providers, "as_cell", lambda function: function)
    call = providers.in_graph(function)
    assert call(2.0) == 0.5
    with pytest.raises(ZeroDivisionError):
        call(0.0)
    assert seen == [ms.GRAPH_MODE] * 2
    assert ms.get_context("mode") == ms.PYNATIVE_MODE
