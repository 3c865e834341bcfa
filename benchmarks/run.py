"""Measures ALiBi attention: our kernels, the pure-ops reference and public peers, interleaved, on
the same inputs.

    python benchmarks/run.py                      every suite, every provider: `make bench`
    python benchmarks/run.py --suites decode      some suites, comma-separated; --list names them
    python benchmarks/run.py --providers ours     only rows whose kind or name contains the word
    python benchmarks/run.py --resume             goes on with the newest run of this commit
    python benchmarks/run.py --quick --no-save    small cases: whether everything works

Each result is compared with float64 first; a wrong one is reported and never timed. A provider that
cannot run gets a row that says why, also when it takes the process down: each suite runs in a
process of its own, which is started again without the culprit. Raw rows go to
benchmarks/results/<machine>/<date>-<commit>.csv as they are measured, the ceilings of the machine
and the versions to the .json beside it; report.py turns both into tables and plots.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import measure
from one_case import measure_case, measure_memory, memory_of, note_reasons, show
from peers_ggml import PATH_VARIABLE
from placement import Places
from providers import Provider
from record import Log, Marker, Row, read_marker
from suites import Suite, all_suites

RESULTS = Path(__file__).resolve().parent / "results"
# Of a process, after a case: then another one goes on. MindSpore keeps all that a graph took.
LARGE_BYTES = 8e9
LEAST_SHARE = 0.3  # of the time of a case is for timing, however long memory takes
STALLED_SECONDS = 420.0  # without a sign of life, after which a process is ended


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suites", help="comma-separated; default: all, --list names them")
    parser.add_argument(
        "--providers", action="append", help="keep rows whose kind or name contains this word"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=32.0,
        help="shared by all cases; setting up takes some more",
    )
    parser.add_argument("--samples", type=int, default=20, help="per provider and case, at most")
    parser.add_argument("--quick", action="store_true", help="small cases, as a rehearsal")
    parser.add_argument(
        "--ggml", metavar="PATH", help=f"libggml.so of a ggml build; default: ${PATH_VARIABLE}"
    )
    parser.add_argument(
        "--resume", nargs="?", const="newest", metavar="CSV", help="go on with an interrupted run"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument(
        "--list", action="store_true", help="print suites and providers, measure nothing"
    )
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    # Of the process of one suite: the suite, the CSV that it goes on with, when to be done.
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.ggml:
        os.environ[PATH_VARIABLE] = str(Path(args.ggml).resolve())  # processes started here too
    args.suites = args.suites.split(",") if args.suites else None
    unknown = set(args.suites or ()) - set(all_suites())
    if unknown:
        parser.error(f"unknown suite {', '.join(sorted(unknown))}; --list names them")
    return args


def options_of(args: argparse.Namespace) -> list[str]:
    """The arguments that another process needs to see the same cases and providers."""
    options = ["--quick"] * args.quick + ["--samples", str(args.samples)]
    if args.suites:
        options += ["--suites", ",".join(args.suites)]
    for word in args.providers or ():
        options += ["--providers", word]
    return options


def chosen_suites(args: argparse.Namespace) -> dict[str, Suite]:
    """The suites asked for, with the providers asked for."""
    suites = all_suites(args.quick)
    wanted = args.providers or [""]

    def keep(p: Provider) -> bool:
        return any(w in p.name or w == p.kind for w in wanted)

    return {
        name: replace(suites[name], providers=[p for p in suites[name].providers if keep(p)])
        for name in args.suites or suites
    }


def show_list(suites: dict[str, Suite]) -> None:
    for name, suite in suites.items():
        print(f"{name:20s}{len(suite.cases)} cases, {len(suite.providers)} providers")
    for p in {p.name: p for suite in suites.values() for p in suite.providers}.values():
        print(f"{p.name:36s}{p.kind:10s}{p.package} {p.version}")


class Schedule:
    """Shares the time that is left among the cases that are left, by their weight."""

    def __init__(self, suites: dict[str, Suite], log: Log, until: float) -> None:
        self.until = until
        self._log = log
        self.weights = {(n, c.name): s.weight(c) for n, s in suites.items() for c in s.cases}

    def pending(self) -> dict[tuple[str, str], float]:
        done = self._log.done()
        return {key: weight for key, weight in self.weights.items() if key not in done}

    def share(self, key: tuple[str, str]) -> float:
        """Seconds for one case."""
        left = max(0.0, self.until - time.monotonic())
        return left * self.weights[key] / sum(self.pending().values())

    def describe(self) -> str:
        """How far the run is; the rest is estimated from what the cases so far have taken."""
        pending, spent = self.pending(), self._log.section("seconds")
        taken = sum(float(seconds) for seconds in spent.values())  # type: ignore[arg-type]
        known = sum(w for (n, c), w in self.weights.items() if f"{n}/{c}" in spent)
        left = sum(pending.values())
        estimate = left * taken / known if known else self.until - time.monotonic()
        done = len(self.weights) - len(pending)
        return f"{done} of {len(self.weights)} cases, about {estimate / 60:.0f} min left"


def run_suite(args: argparse.Namespace, suites: dict[str, Suite]) -> None:
    """Child process: the cases of one suite that the log does not have yet, or the first of them if
    it leaves little memory, or if memory is measured.
    """
    name, path, until = args.child
    log = Log.load(Path(path))
    schedule = Schedule(suites, log, float(until))
    marker = Marker(Path(path).with_suffix(".doing"))
    suite, places = suites[name], Places()
    ceilings = measure.Ceilings() if suite.timed else None
    crashed = log.section("crashed")
    for case in suite.cases:
        if (name, case.name) not in schedule.pending():
            continue
        begin = time.monotonic()
        rows = {p.name: Row.of(name, case, p) for p in suite.providers}
        for row in rows.values():
            row.status = str(crashed.get(f"{name}/{case.name}/{row.provider}", "ok"))
        share, troubles = schedule.share((name, case.name)), {}
        print(f"\n{case.name}", flush=True)
        note_reasons(rows, suite, case)
        if suite.memory(case):  # first, while this process leaves room for another
            troubles = measure_memory(name, list(rows.values()), options_of(args), marker)
        if ceilings is not None:
            left = max(begin + share - time.monotonic(), share * LEAST_SHARE)
            limits = measure_case(rows, suite, case, args.samples, left, ceilings, marker, places)
            log.section("ceilings")[f"{name}/{case.name}"] = limits
            show(list(rows.values()))
        for row in rows.values():
            if row.status == "ok":
                row.status = troubles.get(row.provider, "ok")
        seconds = time.monotonic() - begin
        log.section("seconds")[f"{name}/{case.name}"] = round(seconds, 1)
        log.add(list(rows.values()))
        print(f"  ({seconds:.0f} s; {schedule.describe()})", flush=True)
        if suite.memory(case) or measure.resident_bytes() > LARGE_BYTES:
            return


def wait_for(process: subprocess.Popen[bytes], doing: Path) -> str:
    """Waits for a suite; empty if it went well, otherwise what happened to it."""
    last, since = read_marker(doing), time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if read_marker(doing) != last:
            last, since = read_marker(doing), time.monotonic()
        if time.monotonic() - since > STALLED_SECONDS:
            process.kill()
            process.wait()
            return f"failed: no answer in {STALLED_SECONDS:.0f} s"
    code = process.returncode
    if code == 0:
        return ""
    return (
        f"failed: the process died of signal {-code}" if code < 0 else f"failed: exit code {code}"
    )


def run_all(args: argparse.Namespace, suites: dict[str, Suite], log: Log) -> None:
    """Every suite in a process of its own, started again without the provider that ended it."""
    until, doing = time.monotonic() + 60 * args.minutes, log.path.with_suffix(".doing")
    for name in suites:
        print(f"\n== {name}", flush=True)
        while pending := [c for c in suites[name].cases if (name, c.name) not in log.done()]:
            log.save()
            doing.unlink(missing_ok=True)
            child = ["--child", name, str(log.path), str(until)]
            command = [sys.executable, __file__, *options_of(args), *child]
            # Importing MindSpore sets OMP_NUM_THREADS=1 for later processes, behind Python's back.
            trouble = wait_for(subprocess.Popen(command, env=dict(os.environ)), doing)
            _, culprit = read_marker(doing)
            log = Log.load(log.path)
            if trouble:
                pending = [c for c in pending if (name, c.name) not in log.done()]
                if not culprit or not pending:
                    sys.exit(f"suite {name}: {trouble}, before any provider was called")
                print(f"  {culprit}: {trouble}", flush=True)
                log.section("crashed")[f"{name}/{pending[0].name}/{culprit}"] = trouble
    doing.unlink(missing_ok=True)


def new_log(args: argparse.Namespace, suites: dict[str, Suite], directory: Path) -> Log:
    started = datetime.datetime.now(datetime.timezone.utc)
    name = f"{started:%Y-%m-%d-%H%M}-{measure.commit().rstrip('+')}"
    meta: dict[str, object] = {
        "machine": measure.machine(),
        "commit": measure.commit(),
        "started": started.isoformat(timespec="seconds"),
        "versions": {p.package: p.version for s in suites.values() for p in s.providers},
        "arguments": {"samples": args.samples, "minutes": args.minutes, "quick": args.quick},
    }
    return Log(directory / measure.machine_slug() / f"{name}.csv", meta)


def old_log(choice: str) -> Log:
    """The log to go on with: rows of two commits must not get into one file."""
    runs = sorted(RESULTS.glob("*/????-??-??-*.csv"), key=lambda p: p.stem)
    path = Path(choice)
    if choice == "newest":
        if not runs:
            sys.exit(f"--resume: there is no run in {RESULTS}; start one without --resume")
        path = runs[-1]
    if not path.with_suffix(".json").exists():
        sys.exit(f"--resume: {path} has no .json beside it; pass the CSV of an interrupted run")
    log = Log.load(path)
    if log.meta["commit"] != measure.commit():
        sys.exit(
            f"--resume: {path} was measured on commit {log.meta['commit']}, but this is "
            f"{measure.commit()}; check that commit out, or start a new run"
        )
    return log


def main() -> None:
    warnings.filterwarnings("ignore")
    os.environ.setdefault("GLOG_v", "3")  # MindSpore logs errors only
    args = parse()
    if args.memory_of:
        memory_of(*args.memory_of, quick=args.quick)
        return
    suites = chosen_suites(args)
    if args.list:
        show_list(suites)
    elif args.child:
        run_suite(args, suites)
    elif args.resume:
        run_all(args, suites, old_log(args.resume))
    elif args.no_save:
        with tempfile.TemporaryDirectory() as directory:
            run_all(args, suites, new_log(args, suites, Path(directory)))
    else:
        log = new_log(args, suites, RESULTS)
        run_all(args, suites, log)
        print(f"\nwritten: {log.path}")


if __name__ == "__main__":
    main()
