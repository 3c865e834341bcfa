"""Measures one case: prepares every provider, refuses wrong results, lets the rest take turns."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import measure
import numpy as np
from cases import DECODE, Case
from models import ModelCase
from placement import ANYWHERE, Placed, Places
from providers import Prepared
from record import Row
from suites import Suite, all_suites
from tables import FLOOR, PLAIN_READ
from truth import Truth
from truth_model import ModelTruth

Mark = Callable[[str], object]
RUN = Path(__file__).with_name("run.py")
LEAST_SECONDS = 2.0  # of timing, however late in the run
SETTLING_SECONDS = 3.0  # of a provider, however little time its case has
MEMORY_SECONDS = 300.0  # after which the process that measures memory is given up


def floor_seconds(case: Case, ceilings: dict[str, float], unit: str | None = None) -> float:
    """The dense work of `case` at the measured ceiling of its unit: memory for decode, multiply-
    adds otherwise.
    """
    if case.mode == DECODE:
        return case.cache_bytes / (ceilings["bandwidth"] * 1e9)
    if unit is None:
        unit = "bf16" if case.dtype == "bfloat16" and ceilings["bf16"] else "fma"
    return case.flops / (ceilings[unit] * 1e9) * 2 / case.threads


def check(outputs: dict[str, np.ndarray], truth: Truth | ModelTruth, row: Row) -> None:
    """Writes the error against float64, and what is wrong if it is too large."""
    row.status = truth.complaint(outputs) or "ok"
    if truth.values.keys() <= outputs.keys():
        row.error = f"{truth.error(outputs):.2e}"


def failure(error: Exception) -> str:
    message = (str(error).splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {message[:160]}"


def prepare(
    case: Case, suite: Suite, rows: dict[str, Row], mark: Mark = lambda name: None
) -> Iterator[tuple[str, Prepared]]:
    """Providers that can run `case` and compute the right thing; the others get their reason
    written into their row. A row that has one already is left alone.
    """
    inputs = case.inputs()
    truth = suite.truth(case, inputs)
    for provider in suite.providers:
        row = rows[provider.name]
        reasons = provider.reasons_against(case)
        if reasons:
            row.status = "; ".join(reasons)
        if row.status != "ok":
            continue
        mark(provider.name)
        try:
            prepared = provider.prepare(case, inputs)
            if provider.kind == "yardstick":
                prepared.run()
            else:
                check(prepared.outputs(), truth, row)
            if prepared.kept is not None:
                row.kept = f"{prepared.kept():.4f}"
        except Exception as error:
            row.status = failure(error)
        if row.status == "ok":
            yield provider.name, prepared


def settle(prepared: Prepared, calls: int, seconds: float) -> int:
    """Calls it `calls` times, or until the time is up; how often it was."""
    end = time.monotonic() + seconds
    for made in range(calls):
        if time.monotonic() > end:
            return made
        prepared.run()
    return calls


def measure_case(
    rows: dict[str, Row],
    suite: Suite,
    case: Case,
    samples: int,
    seconds: float,
    ceilings: measure.Ceilings,
    mark: Mark = lambda name: None,
    places: Places = ANYWHERE,
) -> dict[str, float]:
    """Fills in the rows of a case within about `seconds`; returns the ceilings meanwhile."""
    end = time.monotonic() + seconds
    ready = dict(prepare(case, suite, rows, mark))
    settling = [p for p in suite.providers if p.settling_calls and p.name in ready]
    for provider in settling:
        mark(provider.name)
        part = max(SETTLING_SECONDS, (end - time.monotonic()) / 2 / len(settling))
        try:
            made = settle(ready[provider.name], provider.settling_calls, part)
            rows[provider.name].settled = str(made)
        except Exception as error:
            rows[provider.name].status = failure(error)
            del ready[provider.name]

    def read_ceilings() -> dict[str, float]:
        with Placed(places.of("ceilings", lambda: ceilings.measure(2))):
            return ceilings.measure(2)

    before = read_ceilings()
    runs = {name: prepared.run for name, prepared in ready.items()}
    # What setting up has eaten is not taken from the timing altogether.
    rest = max(end - time.monotonic(), seconds / 4, LEAST_SECONDS)
    ours = {p.name for p in suite.providers if p.kind in ("ours", "yardstick") and p.name in runs}
    timings, failures = measure.interleave(runs, samples, rest, mark, ours, places)
    limits = measure.best([before, read_ceilings()])
    for name, error in failures.items():
        rows[name].status = failure(error)
    units = {p.name: p.unit for p in suite.providers}
    # The ceilings are the best moments; the floor has its median in the same minutes as the rows.
    floor = PLAIN_READ if case.mode == DECODE else FLOOR
    slower = timings[floor].median / floor_seconds(case, limits) if floor in timings else 1.0
    for name, timing in timings.items():
        fill(rows[name], timing, suite.calls, slower * floor_seconds(case, limits, units[name]))
        if isinstance(case, ModelCase):
            rows[name].tokens_per_s = f"{case.tokens * suite.calls / timing.median:.4g}"
    ready.clear()
    gc.collect()
    return limits


def fill(row: Row, timing: measure.Timing, calls: int, floor: float) -> None:
    median, p20, p80 = (t / calls for t in (timing.median, timing.p20, timing.p80))
    row.median_ms, row.p20_ms, row.p80_ms = (f"{1e3 * t:.4g}" for t in (median, p20, p80))
    row.samples = str(timing.samples)
    row.floor_ms = f"{1e3 * floor:.4g}"
    row.fraction_of_floor = f"{floor / median:.3f}"


def note_reasons(rows: dict[str, Row], suite: Suite, case: Case) -> None:
    """What measure_case does for providers that cannot run the case, before anything is called."""
    for provider in suite.providers:
        if rows[provider.name].status == "ok":
            rows[provider.name].status = "; ".join(provider.reasons_against(case)) or "ok"


def measure_memory(suite: str, rows: list[Row], options: list[str], mark: Mark) -> dict[str, str]:
    """Fills in the peak extra memory of one call, each provider in a fresh process; returns why
    some could not be measured, by provider.
    """
    troubles = {}
    for row in rows:
        if row.status != "ok":
            continue
        mark(row.provider)
        command = [sys.executable, str(RUN), *options, "--memory-of", suite, row.case, row.provider]
        try:
            result = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=MEMORY_SECONDS,
                check=True,
                env=dict(os.environ),  # as run.py
            )
            row.peak_extra_mb = result.stdout.split()[-1]
        except subprocess.TimeoutExpired:
            troubles[row.provider] = f"memory: no answer in {MEMORY_SECONDS:.0f} s"
        except subprocess.CalledProcessError as error:
            said = (error.stderr.strip().splitlines() or ["?"])[-1][:160]
            signal = f"the process died of signal {-error.returncode}"
            troubles[row.provider] = f"memory: {signal if error.returncode < 0 else said}"
        answer = troubles.get(row.provider) or f"{row.peak_extra_mb:>12s} MB"
        print(f"  {row.provider:34s}{answer}", flush=True)
    return troubles


def memory_of(suite_name: str, case_name: str, provider_name: str, quick: bool) -> None:
    """Child process: prepares one provider, calls it on a small case to warm it up, prints the MB
    of one call.

    The first call of the full size compiles and fills the allocators' pools. What it leaves behind
    counts, what it needed to compile does not.
    """
    # Should the machine's memory end, this process goes first, and its row says so.
    with suppress(OSError):  # no such file on this system
        Path("/proc/self/oom_score_adj").write_text("1000")
    suite = all_suites(quick)[suite_name]
    case = next(c for c in suite.cases if c.name == case_name)
    provider = next(p for p in suite.providers if p.name == provider_name)
    less = {"layers": 1} if isinstance(case, ModelCase) else {}
    small = replace(case, batch=1, queries=64, keys=64, **less)
    provider.prepare(small, small.inputs()).run()
    prepared = provider.prepare(case, case.inputs())

    def second_call() -> None:
        prepared.run()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        prepared.run()

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what malloc kept from the preparation is not in use
    print(f"{measure.peak_extra_bytes(second_call) / 1e6:.1f}")


def show(rows: list[Row]) -> None:
    """Prints one case as a table, fastest first, each row against the best peer."""
    timed = sorted((r for r in rows if r.median_ms), key=lambda r: float(r.median_ms))
    peers = [r for r in timed if r.kind == "peer"]
    if timed:
        print(f"  {'floor':34s}{float(timed[0].floor_ms):10.3f} ms")
    for row in timed:
        against = ""
        if peers and row.kind == "ours":
            against = f"{float(peers[0].median_ms) / float(row.median_ms):5.2f}x the best peer"
        print(
            f"  {row.provider:34s}{float(row.median_ms):10.3f} ms  [{row.p20_ms} .. {row.p80_ms}]"
            f"  {100 * float(row.fraction_of_floor):5.1f}% of floor"
            f"  error {row.error or '-':8s} {against}"
        )
    for row in rows:
        if not row.median_ms:
            print(f"  {row.provider:34s}{'-':>10s}     {row.status}")
    sys.stdout.flush()
