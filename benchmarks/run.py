"""Measures ALiBi attention: our kernels, the pure-ops reference and public peers, interleaved, on
the same inputs.

    python benchmarks/run.py                      every suite, every provider: `make bench`
    python benchmarks/run.py --suite decode       one suite; --list names them
    python benchmarks/run.py --providers ours     only rows whose kind or name contains the word

Each result is compared with float64 first; a wrong one is reported and never timed. A provider that
cannot run gets a row that says why. Raw rows go to benchmarks/results/<machine>/<date>-<commit>.csv
as they are measured, the ceilings of the machine and the versions to the .json beside it; report.py
turns both into tables and plots.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import layouts
import measure
import models
import numpy as np
import overhead
from cases import DECODE, SUITES, Case
from providers import Prepared, Provider, all_providers
from truth import Truth
from truth_model import ModelTruth

RESULTS = Path(__file__).resolve().parent / "results"
MEMORY_CASE = Case("forward", 1, 8, 8192, 8192, 64)


@dataclass
class Row:
    """One line of the CSV: one provider on one case. Times in milliseconds; empty where nothing was
    measured.
    """

    suite: str
    case: str
    provider: str
    kind: str
    version: str
    status: str = "ok"  # "ok", or why there is no time
    error: str = (
        ""  # largest absolute error against float64; of models relative to the largest value
    )
    median_ms: str = ""
    p20_ms: str = ""
    p80_ms: str = ""
    samples: str = ""
    floor_ms: str = ""  # the dense work at the measured ceiling
    fraction_of_floor: str = ""  # floor_ms / median_ms
    peak_extra_mb: str = ""
    note: str = ""
    mode: str = ""
    batch: str = ""
    heads: str = ""
    queries: str = ""
    keys: str = ""
    head_dim: str = ""
    causal: str = ""
    dtype: str = ""
    threads: str = ""
    layers: str = ""  # of a model, and so the next two
    expansion: str = ""
    tokens_per_s: str = ""

    @staticmethod
    def of(suite: str, case: Case, provider: Provider) -> Row:
        shape = {name: str(value) for name, value in asdict(case).items()}
        return Row(
            suite,
            case.name,
            provider.name,
            provider.kind,
            provider.version,
            note=provider.note,
            **shape,
        )


@dataclass
class Log:
    """The CSV and its sidecar, written as the run goes, so that an interrupted run keeps what it
    measured.
    """

    path: Path
    meta: dict[str, object]
    rows: list[Row] = field(default_factory=list)

    def add(self, rows: list[Row]) -> None:
        self.rows += rows
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, fieldnames=list(asdict(self.rows[0])), lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)
        self.path.with_suffix(".json").write_text(
            json.dumps(self.meta, indent=1, sort_keys=True) + "\n"
        )


@dataclass(frozen=True)
class Suite:
    """Cases, who runs them, and what they are checked against."""

    cases: Sequence[Case]
    providers: list[Provider]
    truth: Callable[..., Truth | ModelTruth] = Truth
    calls: int = 1  # in a timed run; times are per call
    settling_calls: int = 0  # of each provider before the clock runs, for a minute at most
    timed: bool = True
    memory: bool = False  # peak of each provider, in a fresh process


def all_suites() -> dict[str, Suite]:
    """Every suite by name, in the order they run."""
    providers = all_providers()
    return {
        **{name: Suite(cases, providers) for name, cases in SUITES.items()},
        "layouts": Suite(layouts.CASES, layouts.PROVIDERS),
        "overhead": Suite(overhead.CASES, overhead.PROVIDERS, calls=overhead.CALLS),
        "layer": Suite(
            models.LAYER_CASES,
            models.LAYER_PROVIDERS,
            ModelTruth,
            settling_calls=models.SETTLING_CALLS,
        ),
        "models": Suite(
            models.CASES,
            models.model_providers(),
            ModelTruth,
            settling_calls=models.SETTLING_CALLS,
            memory=True,
        ),
        "memory": Suite(
            [MEMORY_CASE],
            [p for p in providers if p.kind != "yardstick"],
            timed=False,
            memory=True,
        ),
    }


def floor_seconds(case: Case, ceilings: dict[str, float]) -> float:
    """The dense work of `case` at the measured ceiling of its unit: memory for decode, multiply-
    adds otherwise.
    """
    if case.mode == DECODE:
        return case.cache_bytes / (ceilings["bandwidth"] * 1e9)
    unit = "bf16" if case.dtype == "bfloat16" and ceilings["bf16"] else "fma"
    return case.flops / (ceilings[unit] * 1e9) * 2 / case.threads


def check(outputs: dict[str, np.ndarray], truth: Truth | ModelTruth, row: Row) -> None:
    """Writes the error against float64, and what is wrong if it is too large."""
    row.status = truth.complaint(outputs) or "ok"
    if truth.values.keys() <= outputs.keys():
        row.error = f"{truth.error(outputs):.2e}"


def prepare(case: Case, suite: Suite, rows: dict[str, Row]) -> Iterator[tuple[str, Prepared]]:
    """Providers that can run `case` and compute the right thing; the others get their reason
    written into their row.
    """
    inputs = case.inputs()
    truth = suite.truth(case, inputs)
    for provider in suite.providers:
        row = rows[provider.name]
        reasons = provider.reasons_against(case)
        if reasons:
            row.status = "; ".join(reasons)
            continue
        try:
            prepared = provider.prepare(case, inputs)
            if provider.kind == "yardstick":
                prepared.run()
            else:
                check(prepared.outputs(), truth, row)
        except Exception as error:
            message = (str(error).splitlines() or [""])[0]
            row.status = f"failed: {type(error).__name__}: {message[:160]}"
        if row.status != "ok":
            continue
        yield provider.name, prepared


def settle(prepared: Prepared, calls: int, seconds: float = 60.0) -> None:
    """Calls it `calls` times, or until the time is up."""
    end = time.monotonic() + seconds
    for _ in range(calls):
        prepared.run()
        if time.monotonic() > end:
            break


def measure_case(
    name: str, suite: Suite, case: Case, args: argparse.Namespace, ceilings: measure.Ceilings
) -> tuple[list[Row], dict[str, float]]:
    rows = {p.name: Row.of(name, case, p) for p in suite.providers}
    ready = dict(prepare(case, suite, rows))
    for prepared in ready.values():
        settle(prepared, suite.settling_calls)
    before = ceilings.measure(2)
    timings = measure.interleave(
        {name: prepared.run for name, prepared in ready.items()}, args.samples, args.seconds
    )
    limits = measure.best([before, ceilings.measure(2)])
    floor = floor_seconds(case, limits)
    for provider, timing in timings.items():
        row = rows[provider]
        median, p20, p80 = (t / suite.calls for t in (timing.median, timing.p20, timing.p80))
        row.median_ms, row.p20_ms, row.p80_ms = (f"{1e3 * t:.4g}" for t in (median, p20, p80))
        row.samples = str(timing.samples)
        row.floor_ms = f"{1e3 * floor:.4g}"
        row.fraction_of_floor = f"{floor / median:.3f}"
        if isinstance(case, models.ModelCase):
            row.tokens_per_s = f"{case.tokens / median:.4g}"
    ready.clear()
    gc.collect()
    return list(rows.values()), limits


def show(case: Case, rows: list[Row]) -> None:
    """Prints one case as a table, fastest first, each row against the best peer."""
    timed = sorted((r for r in rows if r.median_ms), key=lambda r: float(r.median_ms))
    peers = [r for r in timed if r.kind == "peer"]
    print(f"\n{case.name}" + (f"   floor {timed[0].floor_ms} ms" if timed else ""))
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


def measure_memory(name: str, rows: list[Row]) -> None:
    """Fills in the peak extra memory of one call, each provider in a fresh process."""
    for row in rows:
        if row.status == "ok":
            command = [sys.executable, __file__, "--memory-of", name, row.case, row.provider]
            result = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if result.returncode == 0:
                row.peak_extra_mb = result.stdout.split()[-1]
            else:
                row.status = f"failed: {result.stderr.strip().splitlines()[-1][:160]}"
        print(f"  {row.provider:34s}{row.peak_extra_mb or row.status:>12s} MB", flush=True)


def unmeasured_rows(name: str, suite: Suite, case: Case) -> list[Row]:
    """A row for every provider, with the reason where it cannot run the case."""
    rows = []
    for provider in suite.providers:
        row = Row.of(name, case, provider)
        row.status = "; ".join(provider.reasons_against(case)) or "ok"
        rows.append(row)
    return rows


def memory_of(name: str, case_name: str, provider_name: str) -> None:
    """Child process: prepares one provider, calls it on a small case to warm it up, prints the MB
    of one call.

    The first call of the full size compiles and fills the allocators' pools. What it leaves behind
    counts, what it needed to compile does not.
    """
    suite = all_suites()[name]
    case = next(c for c in suite.cases if c.name == case_name)
    provider = next(p for p in suite.providers if p.name == provider_name)
    small = replace(case, batch=1, queries=64, keys=64)
    provider.prepare(small, small.inputs()).run()
    prepared = provider.prepare(case, case.inputs())

    def second_call() -> None:
        prepared.run()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        prepared.run()

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what malloc kept from the preparation is not in use
    print(f"{measure.peak_extra_bytes(second_call) / 1e6:.1f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", action="append", help="default: all; --list names them")
    parser.add_argument(
        "--providers", action="append", help="keep rows whose kind or name contains this word"
    )
    parser.add_argument("--samples", type=int, default=20, help="per provider and case")
    parser.add_argument("--seconds", type=float, default=30.0, help="per case, over all providers")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument(
        "--list", action="store_true", help="print suites and providers, measure nothing"
    )
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.suite or ()) - set(all_suites())
    if unknown:
        parser.error(f"unknown suite {', '.join(unknown)}; --list names them")
    return args


def chosen_suites(args: argparse.Namespace) -> dict[str, Suite]:
    """The suites asked for, with the providers asked for."""
    suites = all_suites()
    wanted = args.providers or [""]

    def keep(p: Provider) -> bool:
        return any(w in p.name or w == p.kind for w in wanted)

    return {
        name: replace(suites[name], providers=[p for p in suites[name].providers if keep(p)])
        for name in args.suite or suites
    }


def show_list(suites: dict[str, Suite]) -> None:
    for name, suite in suites.items():
        print(f"{name:20s}{len(suite.cases)} cases, {len(suite.providers)} providers")
    for p in {p.name: p for suite in suites.values() for p in suite.providers}.values():
        print(f"{p.name:36s}{p.kind:10s}{p.package} {p.version}")


def start_log(args: argparse.Namespace, suites: dict[str, Suite]) -> Log:
    started = datetime.datetime.now(datetime.timezone.utc)
    name = f"{started:%Y-%m-%d-%H%M}-{measure.commit().rstrip('+')}"
    meta: dict[str, object] = {
        "machine": measure.machine(),
        "commit": measure.commit(),
        "started": started.isoformat(timespec="seconds"),
        "versions": {p.package: p.version for s in suites.values() for p in s.providers},
        "arguments": {"samples": args.samples, "seconds": args.seconds},
        "ceilings": {},
    }
    return Log(RESULTS / measure.machine_slug() / f"{name}.csv", meta)


def main() -> None:
    warnings.filterwarnings("ignore")
    args = parse()
    if args.memory_of:
        memory_of(*args.memory_of)
        return
    suites = chosen_suites(args)
    if args.list:
        show_list(suites)
        return
    log = start_log(args, suites)
    ceilings = measure.Ceilings()
    for name, suite in suites.items():
        print(f"\n== {name}", flush=True)
        for case in suite.cases:
            begin = time.monotonic()
            if suite.timed:
                rows, limits = measure_case(name, suite, case, args, ceilings)
                log.meta["ceilings"][case.name] = limits  # type: ignore[index]
                show(case, rows)
            else:
                rows = unmeasured_rows(name, suite, case)
            if suite.memory:
                measure_memory(name, rows)
            print(f"  ({time.monotonic() - begin:.0f} s)", flush=True)
            if not args.no_save:
                log.add(rows)
    if not args.no_save and log.rows:
        print(f"\nwritten: {log.path}")


if __name__ == "__main__":
    main()
