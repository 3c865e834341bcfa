"""The writer of tables, and the programs that use it."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from tests import results

pytestmark = pytest.mark.usefixtures("commit")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_and_where_they_come_from(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tests/error_table.py", "--save"])
    path = results.save("errors", [{"a": 1, "b": "x, y"}, {"a": 2, "b": ""}])
    assert path.parent.parent == directory
    assert _read(path) == [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]
    meta = json.loads(path.with_suffix(".json").read_text())
    assert meta["commit"].rstrip("+")
    assert meta["machine"]["cores"]
    assert meta["program"] == "error_table --save"
    assert _read(results.save("errors", [{"a": 3, "b": ""}])) == [{"a": "3", "b": ""}]


@pytest.mark.usefixtures("ms")
def test_error_table(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One case of one dtype: errors of both backends, printed and saved."""
    from tests import error_table

    monkeypatch.setattr(error_table, "DTYPES", ("float32",))
    monkeypatch.setattr(error_table, "SMALL", error_table.SMALL[:1])
    monkeypatch.setattr(error_table, "SHAPES", [])
    error_table.main(["--save"])
    (path,) = directory.glob("*/errors.csv")
    rows = _read(path)
    assert [r["result"] for r in rows] == list(error_table.NAMES)
    assert all(float(r[b]) < 1e-5 for r in rows for b in error_table.BACKENDS)
    assert "| float32 | " in capsys.readouterr().out


def test_mutants(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.cuda import mutants

    monkeypatch.setattr(mutants, "outcome", lambda mutant: "differs")
    assert mutants.main(["--save", "0", "2"]) == 0
    (path,) = directory.glob("*/cuda-mutants.csv")
    assert [(r["mutant"], r["outcome"]) for r in _read(path)] == [
        ("0", "differs"),
        ("2", "differs"),
    ]
