"""The one command that gathers what a GPU can show, rehearsed: steps, budget, crashes, tables."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import correctness, evidence, machine, peers, summary, timing
from benchmarks.gpu.evidence import CORRECTNESS, TIMING, Run
from benchmarks.gpu.rows import ORIGIN, Rows, read
from tests.cuda.model import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu" / "run_h200.sh"
LIBRARY = ROOT / "alibi_kernels" / "_lib" / "libalibi_cpu.so"

needs_library = pytest.mark.skipif(
    not LIBRARY.exists() or shutil.which("g++") is None, reason="needs libalibi_cpu.so and g++"
)


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    every = {**os.environ, "PYTHON": sys.executable, **environment}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=every)


# ---- the whole


@needs_library
def test_the_rehearsal_does_every_step_and_then_has_nothing_left_to_do(tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    done = run_script(str(out), "--rehearse", "--minutes", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in out.iterdir()}
    tables = {"correctness.csv", "sanitizer.csv", "timing.csv", "counters.csv"}
    assert names == tables | {"machine.json", "sm80.json", "log.txt"}
    rows = read(out / "correctness.csv")
    assert len(rows) == len(list(correctness.quick()))
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["tool"] for row in read(out / "sanitizer.csv")} == set(evidence.SANITIZERS)
    times = read(out / "timing.csv")
    own = {"ours, dense", "ours, pruned", "ours, dense, with dslopes", "ours, pruned, with dslopes"}
    providers = {p.name for p in peers.providers("cpu")} | own
    assert len(times) == len(providers) * len(list(timing.rehearsal_cases()))
    assert {row["provider"] for row in times} == providers
    for row in times:
        if row["provider"] in own:
            timed = row["mode"] == "training" or not row["provider"].endswith("with dslopes")
            assert (row["status"] == "ok") == timed == bool(row["median_ms"]), row
    assert all(row["status"] and (row["median_ms"] or row["status"] != "ok") for row in times)
    facts = json.loads((out / "machine.json").read_text())
    assert {row["commit"] for row in rows + times} == {facts["commit"]}
    before = {name: (out / name).read_text() for name in tables}
    assert run_script(str(out), "--rehearse").returncode == 0
    assert before == {name: (out / name).read_text() for name in tables}
    assert "a rehearsal without a GPU" in (out / "log.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--no-such",), "unknown option --no-such"), (("--help",), "--rehearse runs the same")],
)
def test_the_script_explains_itself(arguments: tuple[str, ...], words: str) -> None:
    done = run_script(*arguments)
    assert words in done.stdout + done.stderr
    assert done.returncode == (0 if "--help" in arguments else 2)


def test_a_python_without_numpy_is_named() -> None:
    done = run_script(PYTHON="false")
    assert done.returncode == 2
    assert "false has no numpy; PYTHON names another" in done.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_without_a_gpu_the_script_says_what_can_be_done(tmp_path: Path) -> None:
    done = run_script(str(tmp_path / "evidence"))
    assert done.returncode == 1
    assert "PyTorch cannot use a GPU here" in done.stderr
    assert "--rehearse runs the same steps on the CPU" in done.stderr
    assert not (tmp_path / "evidence").exists()


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run_script(str(tmp_path / "evidence"), "--rehearse", "--library", "no/such.so")
    assert done.returncode == 1
    assert "there is no library no/such.so; `make build` builds" in done.stderr


# ---- steps that fail


def a_run(out: Path, **more: Any) -> Run:
    out.mkdir(exist_ok=True)
    values = {"library": LIBRARY, "device": "host", "rehearse": True, **more}
    return Run(out, time.monotonic() + 60, **values)


CHECK = next(correctness.checks())


@pytest.mark.parametrize(
    ("name", "keys", "line", "key"),
    [
        ("correctness", CORRECTNESS, " ".join(CHECK.key), CHECK.key),
        ("timing", TIMING, "a case | a peer", ("a case", "a peer")),
    ],
)
@pytest.mark.parametrize(
    ("status", "words"), [(-11, "crashed: exit status -11"), (None, "hung; it was ended")]
)
def test_a_worker_that_dies_costs_one_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, keys: Any, line: str, key: Any,
    status: int | None, words: str,
) -> None:  # fmt: skip
    answers = iter([(status, f"{line}\nSegmentation fault\n"), (evidence.RESTART, ""), (0, "")])
    monkeypatch.setattr(evidence, "run_process", lambda *_: next(answers))
    evidence.work(a_run(tmp_path), name, [], 10, keys)
    (row,) = read(tmp_path / f"{name}.csv")
    assert tuple(row.values())[: len(key)] == tuple(key)
    assert row["status"] == words
    assert next(answers, None) is None  # it went on, twice


def test_a_worker_that_never_begins_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []
    monkeypatch.setattr(evidence, "run_process", lambda *a: (calls.append(a), (1, "no module"))[1])
    evidence.work(a_run(tmp_path), "timing", [], 10, TIMING)
    assert len(calls) == 1
    assert "no module" in (tmp_path / "log.txt").read_text()


def test_a_process_that_hangs_is_ended() -> None:
    begin = time.monotonic()
    status, output = evidence.run_process(["bash", "-c", "echo begun; sleep 60"], 1.0)
    assert (status, output) == (None, "begun\n")
    assert time.monotonic() - begin < 20


@needs_library
@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("shift 4; \"$@\"; echo '========= ERROR SUMMARY: 0 errors'", "ok"),
        ("echo '========= ERROR SUMMARY: 3 errors'; exit 99", "failed"),
        ("echo Device not supported", "failed"),
    ],
    ids=["clean", "errors", "refused"],
)
def test_the_verdict_of_a_sanitizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, status: str
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/bash\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(evidence, "SANITIZERS", ("memcheck",))
    evidence.sanitize(a_run(tmp_path / "out"), 60)
    (row,) = read(tmp_path / "out" / "sanitizer.csv")
    assert row["status"] == status, row
    count = len(list(correctness.sanitizer())) if status == "ok" else 0
    assert row["detail"].startswith(f"{count} checks")


def test_a_sanitizer_that_needs_more_time_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(evidence, "run_process", lambda *_: (None, "still at it"))
    run = a_run(tmp_path)
    evidence.sanitize(run, 50)
    assert read(tmp_path / "sanitizer.csv") == []
    run.end += 10_000
    evidence.sanitize(run, 2000)
    rows = read(tmp_path / "sanitizer.csv")
    assert [row["status"] for row in rows] == [evidence.UNFINISHED] * len(evidence.SANITIZERS)


NCU = """\
==PROF== Connected to process 1
==PROF== Disconnected from process 1
"ID","Kernel Name","CC","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name"
"0","attention_forward","9.0","LaunchStats","Registers Per Thread","register/thread","168",""
"0","attention_forward","9.0","LaunchStats","","","","SomeRule"
"""


@needs_library
def test_what_ncu_counts_becomes_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in that runs the program, as ncu does, and prints such a table."""
    tool = tmp_path / "ncu"
    run_program = 'while [[ $1 != *python* ]]; do shift; done; "$@" || exit'
    tool.write_text(f"#!/bin/bash\n{run_program}\ncat <<'END'\n{NCU}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(evidence.counters, "cases", lambda _: [next(timing.rehearsal_cases())])
    run = a_run(tmp_path / "out")
    for _ in range(2):  # the second time there is nothing left to do
        evidence.count(run, 60)
    (row,) = read(run.out / "counters.csv")
    assert row["kernel"] == "attention_forward"
    assert (row["metric"], row["value"]) == ("Registers Per Thread", "168")


def test_a_field_that_the_driver_does_not_know_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    known = 'case $1 in *=name) echo "A GPU";; *=driver_version) echo 580;; *) exit 2;; esac'
    tool.write_text(f"#!/bin/bash\n{known}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    facts = machine.gpu()
    assert (facts["gpu"], facts["driver"], facts["power_limit"]) == ("A GPU", "580", "")
    assert timing.sm_clock() == ""


def test_results_of_two_machines_are_kept_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = machine.write(tmp_path, "abc")
    assert facts["commit"] == "abc"
    assert machine.write(tmp_path, "abc") == facts
    monkeypatch.setattr(machine, "gpu", lambda: {"gpu": "Another", "driver": "1"})
    with pytest.raises(ValueError, match=r"holds results with gpu '.*', now it is 'Another'; give"):
        machine.write(tmp_path)


def test_rows_say_where_they_come_from(tmp_path: Path) -> None:
    origin = {"commit": "abc", "gpu": "A GPU", "driver": "580"}
    (tmp_path / "machine.json").write_text(json.dumps(origin))
    Rows(tmp_path / "t.csv", ("a", "b"), keys=1).add(("1", "2"))
    assert read(tmp_path / "t.csv") == [{"a": "1", "b": "2", **origin}]
    assert tuple(origin) == ORIGIN


# ---- the summary


@pytest.mark.parametrize(
    ("checks", "tools", "fault"),
    [
        (["ok", "ok"], ["ok", "not run"], False),
        (["ok", "AssertionError: dq"], [], True),
        (["ok"], ["ok", "failed"], True),
        ([], [], True),
    ],
)
def test_the_exit_status_tells_of_faults(
    tmp_path: Path, checks: list[str], tools: list[str], fault: bool
) -> None:
    table = Rows(tmp_path / "correctness.csv", correctness.COLUMNS, keys=4)
    for status in checks:
        table.add(("a", "float16", "True", "forward", status, "1"))
    table = Rows(tmp_path / "sanitizer.csv", evidence.SANITIZER_COLUMNS, keys=1)
    for tool in tools:
        table.add(("memcheck", tool, "", ""))
    assert summary.found_fault(tmp_path) == fault


def test_the_summary_names_the_best_peer_and_every_failure(tmp_path: Path) -> None:
    machine.write(tmp_path, "abc")
    times = {"ours, dense": "2.0", "ours, pruned": "0.5", "A": "3.0", "B": "1.0", "C": ""}
    table = Rows(tmp_path / "timing.csv", timing.COLUMNS, keys=2)
    for name, median in times.items():
        fields = {"case": "x", "provider": name, "median_ms": median, "tflops": "7"}
        fields["status"] = "ok" if median else "no such peer"
        table.add([fields.get(column, "") for column in timing.COLUMNS])
    table = Rows(tmp_path / "correctness.csv", correctness.COLUMNS, keys=4)
    table.add(("a", "float16", "True", "forward", "ok", "1"))
    table.add(("b", "float16", "True", "backward", "AssertionError: dq", "1"))
    text = summary.of(tmp_path)
    assert "correctness: 1 of 2 ok\n  b float16 backward: AssertionError: dq\n" in text
    assert "ours, dense: 0.50 times as fast as B" in text
    assert "ours, pruned: 2.00 times as fast as B" in text
    assert "1 x no such peer" in text
    with (tmp_path / "correctness.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 3
