"""The benchmark as a program: suites in processes of their own, interruptions, targets."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import one_case
import run
import targets
from cases import FORWARD, Case
from peers_ggml import PATH_VARIABLE
from providers import Prepared, Provider, all_providers
from record import Log, Marker, Row, read_marker
from suites import Suite, all_suites

import alibi_kernels

SUITES = all_suites()
CASES = [Case(FORWARD, 1, 1, n, n, 8) for n in (4, 8, 16)]


def _provider(name: str) -> Provider:
    prepare = lambda case, inputs: Prepared(lambda: None, dict)  # noqa: E731
    return Provider(name, "peer", "numpy", prepare, lambda case: [], "")


SUITE = Suite(CASES, [_provider("good"), _provider("bad")])

# Stands in for run.py: `bad` takes the process down on the second case, once it is asked to run.
CHILD = """
import os, signal, sys
sys.path.insert(0, {directory!r})
from pathlib import Path
from record import Log, Marker, Row
arguments = sys.argv[sys.argv.index("--child") + 1:]
name, path = arguments[0], Path(arguments[1])
log, mark = Log.load(path), Marker(path.with_suffix(".doing"))
for case in {cases!r}:
    if (name, case) in log.done():
        continue
    crashed = log.section("crashed")
    rows = [Row(name, case, p, "peer", "1") for p in ("good", "bad")]
    for row in rows:
        row.status = crashed.get(f"{{name}}/{{case}}/{{row.provider}}", "ok")
        mark(row.provider)
        if row.provider == "bad" and case == {cases!r}[1] and row.status == "ok":
            os.kill(os.getpid(), signal.SIGKILL)
    log.add(rows)
"""


def test_a_provider_that_ends_the_process_costs_its_own_row_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [case.name for case in CASES]
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(directory=str(Path(run.__file__).parent), cases=names))
    monkeypatch.setattr(run, "__file__", str(script))
    log = Log(tmp_path / "run.csv", {"commit": "abc"})
    run.run_all(run.parse(["--minutes", "1"]), {"forward": SUITE}, log)
    rows = Log.load(log.path).rows
    assert [(r.case, r.provider) for r in rows] == [(n, p) for n in names for p in ("good", "bad")]
    wrong = [(r.case, r.provider, r.status) for r in rows if r.status != "ok"]
    assert wrong == [(names[1], "bad", "failed: the process died of signal 9")]
    assert not log.path.with_suffix(".doing").exists()


@pytest.mark.parametrize(("large", "done"), [(0.0, 1), (1e18, len(CASES))])
def test_a_process_that_has_grown_large_leaves_the_rest_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: float, done: int
) -> None:
    monkeypatch.setattr(run, "LARGE_BYTES", large)
    Log(tmp_path / "run.csv", {"commit": "abc"}).save()
    args = run.parse(["--child", "forward", str(tmp_path / "run.csv"), str(time.monotonic() + 9)])
    run.run_suite(args, {"forward": Suite(CASES, [_provider("good")], timed=False)})
    assert len(Log.load(tmp_path / "run.csv").done()) == done


def test_memory_that_could_not_be_measured_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that measures it dies, or fails; and after each case another process goes on."""
    script = tmp_path / "child.py"
    script.write_text(
        "import os, sys\n"
        "if sys.argv[-1] == 'good': print('1.5')\n"
        "elif sys.argv[-1] == 'bad': os.kill(os.getpid(), 9)\n"
        "else: sys.exit('no room')\n"
    )
    monkeypatch.setattr(one_case, "RUN", script)
    providers = [_provider(name) for name in ("good", "bad", "worse")]
    suite = Suite(CASES, providers, timed=False, memory=lambda case: True)
    Log(tmp_path / "run.csv", {"commit": "abc"}).save()
    args = run.parse(["--child", "forward", str(tmp_path / "run.csv"), str(time.monotonic() + 9)])
    run.run_suite(args, {"forward": suite})
    rows = Log.load(tmp_path / "run.csv").rows
    assert [(r.case, r.provider, r.peak_extra_mb, r.status) for r in rows] == [
        (CASES[0].name, "good", "1.5", "ok"),
        (CASES[0].name, "bad", "", "memory: the process died of signal 9"),
        (CASES[0].name, "worse", "", "memory: no room"),
    ]


def test_a_process_that_says_nothing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "STALLED_SECONDS", 0.5)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert run.wait_for(process, tmp_path / "none") == "failed: no answer in 0 s"  # type: ignore[arg-type]
    assert process.returncode == -signal.SIGKILL


def test_marker_is_read_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "a" / "marker"
    assert read_marker(path) == ("", "")
    mark = Marker(path)
    mark("one with a longer name")
    mark("two")
    assert read_marker(path) == ("2", "two")


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    """What is in the CSV is done; the time is shared among the rest, by weight."""
    path = tmp_path / "run.csv"
    rows = [Row.of("forward", CASES[0], p) for p in SUITE.providers]
    Log(path, {"commit": "abc", "seconds": {f"forward/{CASES[0].name}": 30.0}}).add(rows)
    log = Log.load(path)
    assert log.rows == rows
    schedule = run.Schedule({"forward": SUITE}, log, time.monotonic() + 100)
    assert [case for _, case in schedule.pending()] == [c.name for c in CASES[1:]]
    shares = [schedule.share(key) for key in schedule.pending()]
    assert sum(shares) == pytest.approx(100, abs=1)
    # Two equal cases are left, and the first took half a minute.
    assert schedule.describe() == "1 of 3 cases, about 1 min left"


@pytest.mark.usefixtures("commit")
def test_rows_of_two_commits_do_not_get_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    Log(path, {"commit": "another"}).save()
    with pytest.raises(SystemExit, match="was measured on commit another, but this is"):
        run.old_log(str(path))
    with pytest.raises(SystemExit, match=r"has no \.json beside it"):
        run.old_log(str(tmp_path / "other.csv"))


def test_suites_are_named_by_commas(capsys: pytest.CaptureFixture[str]) -> None:
    args = run.parse(["--suites", "decode,memory", "--providers", "ours", "--quick"])
    chosen = run.chosen_suites(args)
    assert list(chosen) == ["decode", "memory"]
    assert {p.kind for s in chosen.values() for p in s.providers} == {"ours"}
    again = run.parse(run.options_of(args))
    assert (again.suites, again.providers, again.quick) == (args.suites, ["ours"], True)
    with pytest.raises(SystemExit):
        run.parse(["--suites", "decode,typo"])
    assert "unknown suite typo" in capsys.readouterr().err


def test_quick_cases_are_small_and_full_ones_are_not() -> None:
    quick = all_suites(quick=True)
    assert list(quick) == list(SUITES)
    assert max(c.keys for s in quick.values() for c in s.cases) <= 320
    assert max(c.keys for c in SUITES["growth"].cases) == 65536
    for suite in quick.values():
        assert len({c.name for c in suite.cases}) == len(suite.cases)


@pytest.mark.usefixtures("commit")
def test_a_run_from_end_to_end(tmp_path: Path) -> None:
    """The program, the process of a suite, the process of a measurement of memory, the CSV."""
    command = [sys.executable, run.__file__, "--quick", "--suites", "memory", "--minutes", "0.1"]
    command += ["--providers", "alibi-kernels dense", "--providers", "ggml"]
    code = "import sys; sys.argv = sys.argv[1:]; sys.path.insert(0, {!r}); import run, pathlib; "
    code += "run.RESULTS = pathlib.Path({!r}); run.main()"
    code = code.format(str(Path(run.__file__).parent), str(tmp_path))
    environment = {k: v for k, v in os.environ.items() if k != PATH_VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code, *command[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/*.csv")
    with path.open(newline="") as file:
        rows = {r["provider"]: r for r in csv.DictReader(file)}
    assert float(rows["alibi-kernels dense"]["peak_extra_mb"]) >= 0
    assert "pass --ggml PATH" in rows["ggml flash_attn_ext"]["status"]
    assert "1 of 1 cases" in done.stdout
    assert json.loads(path.with_suffix(".json").read_text())["machine"]["cpu"]


def test_versions_of_our_own_rows() -> None:
    """A submodule has no version of its own; the table once said "?"."""
    versions = {p.package: p.version for p in all_providers()}
    assert versions["alibi_kernels.native"] == alibi_kernels.__version__


def _row(suite: str, case: Case, provider: str, kind: str, milliseconds: float) -> dict[str, str]:
    row = Row.of(suite, case, _provider(provider))
    row.kind, row.median_ms, row.fraction_of_floor = kind, f"{milliseconds}", f"{1 / milliseconds}"
    return vars(row)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: t.text)
def test_every_target_speaks_about_some_case(target: targets.Target) -> None:
    """A target whose suite or condition matches nothing would never be missed."""
    suite = SUITES[target.suite]
    rows = [vars(Row.of(target.suite, c, p)) for c in suite.cases for p in suite.providers]
    values = targets.judge(target, rows)
    assert values
    assert len(values) == len({r["case"] for r in rows if target.where(r)}), "columns share a name"
    assert targets.verdict(target, values) == "not measured"


def _judge(text: str, rows: list[dict[str, str]]) -> tuple[dict[str, Any], str]:
    (target,) = [t for t in targets.TARGETS if t.text == text]
    values = targets.judge(target, rows)
    return values, targets.verdict(target, values)


def test_targets_are_met_or_missed_by_the_numbers() -> None:
    cases = SUITES["forward"].cases[2:4]
    rows = [
        _row("forward", case, name, kind, ms)
        for case, peer in zip(cases, (1.5, 1.3), strict=True)
        for name, kind, ms in ((targets.OURS, "ours", 1.0), ("p", "peer", peer), ("q", "peer", 9.0))
    ]
    values, verdict = _judge("Forward, float32: dense, times faster than the best peer", rows)
    assert list(values.values()) == [1.5, 1.3]
    assert verdict == "**missed** in 1 of 2"
    page = "\n".join(targets.section(rows))
    assert "(1,16,1024,64) 1.5; (1,32,2048,64) **1.3** |" in page
    assert targets.losses(rows) == ["None in this run."]
    slower = [*rows, _row("forward", cases[0], "r", "peer", 0.5)]
    assert targets.losses(slower) == [
        "- forward, (1,16,1024,64): r takes 0.50 of the time of our dense kernel"
    ]
    slower[0]["error"], slower[-1]["error"] = "1.0e-06", "2.0e-02"
    assert targets.losses(slower)[0].endswith("of our dense kernel; errors 2.0e-02 and 1.0e-06")


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "text"),
    [
        (1.998, 2.0, True, "1.998"),
        (1.9996, 2.0, True, "1.9996"),
        (2.0, 2.0, True, "2"),
        (2.345678, 2.0, True, "2.35"),
        (1.0504, 1.05, False, "1.0504"),
        (1.0496, 1.05, False, "1.05"),
        (14.2, 20, False, "14.2"),
    ],
)
def test_a_missed_value_does_not_look_met(
    value: float, limit: float, at_least: bool, text: str
) -> None:
    target = targets.Target("t", "forward", lambda case: None, limit, at_least=at_least)
    assert targets.shown(target, value) == text


def test_what_is_compared_with_itself_is_compared_within_a_case() -> None:
    one, two = SUITES["threads"].cases[:2]
    rows = [_row("threads", one, targets.OURS, "ours", 9.0)]
    rows += [_row("threads", two, targets.OURS, "ours", 1.5)]
    rows += [_row("threads", two, targets.ONE_THREAD, "ours", 3.0)]
    assert _judge("Two threads against one", rows)[0] == {"forward (1,16,1024,64) t=2": 2.0}
    half = SUITES["forward-float16"].cases[0]
    rows = [_row("forward-float16", half, targets.FLOAT32, "ours", 3.0)]
    rows += [_row("forward-float16", half, targets.OURS, "ours", 4.0)]
    values, verdict = _judge("Forward, float16: dense, times faster than float32", rows)
    assert values == {"(1,8,512,32)": 0.75}
    assert verdict == "**missed** in 1 of 1"
