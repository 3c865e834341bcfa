"""The demo, from end to end at toy size, and its small parts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import pytest

from alibi.demo.progress import Progress
from alibi.demo.speed import measure
from alibi.demo.table import Table
from alibi.demo.train_short import FULL, draw

ROOT = Path(__file__).parents[1]


def test_demo(tmp_path: Path) -> None:
    """`python -m alibi.demo` prints its parts and writes its files; nothing goes wrong quietly."""
    out = tmp_path / "results"
    command = [sys.executable, "-m", "alibi.demo", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for text in ("(8, 100, 256)", "speed-up", "ALiBi  ", "sinusoidal  ", "Everything took"):
        assert text in done.stdout

    results = json.loads((out / "results.json").read_text())
    # Six layers, each off by a few float32 roundings of numbers up to 10; 0 would mean that both
    # ran on the same path.
    assert 0 < results["largest_difference_fused_plain"] < 1e-4
    assert results["machine"]["processor"]
    assert [row["pass"] for row in results["speed"]] == ["forward", "forward+backward"]
    assert [row["tested at"] for row in results["perplexity"]] == ["64 (1x)", "128 (2x)"]
    assert all(1 < float(row[name]) < 400 for row in results["perplexity"] for name in MODELS)
    measured = (out / "measured.md").read_text()
    assert results["machine"]["processor"] in measured
    assert "| tested at | ALiBi | sinusoidal |" in measured
    assert results["machine"]["family"] in measured
    assert (out / "extrapolation.png").read_bytes().startswith(b"\x89PNG")


MODELS = ("ALiBi", "sinusoidal")


def test_demo_speaks_of_the_papers_model() -> None:
    """The measured curve is that of the paper's settings, over 1 to 16 times the length."""
    assert FULL.config.slopes == "paper"
    assert FULL.config.scale == FULL.config.head_dim**-0.5
    assert FULL.plan.length == 64
    assert FULL.multiples == (1, 2, 4, 8, 16)
    assert FULL.held_out >= 16 * 64 * 16


@pytest.fixture
def _mode_as_before() -> Iterator[None]:
    mode = ms.get_context("mode")
    yield
    ms.set_context(mode=mode)


@pytest.mark.usefixtures("ms", "_mode_as_before")
@pytest.mark.parametrize("name", ["reference", "fused"])
def test_measure(name: str) -> None:
    """Every pass has a time and a peak that is not negative."""
    results = measure(name, (1, 2, 48, 8), seconds=0.0)
    assert results.keys() == {"forward", "forward+backward"}
    for result in results.values():
        assert result["dense_ms"] > 0
        assert result["peak_mb"] >= 0
        assert ("pruned_ms" in result) == (name == "fused")


def test_table() -> None:
    table = Table("Title.", ("shape", "ms"))
    table.add("a", "1.5")
    table.add("longer", "10")
    assert table.text() == "shape    ms\n------  ---\na       1.5\nlonger   10"
    assert table.markdown() == "| shape | ms |\n| --- | --: |\n| a | 1.5 |\n| longer | 10 |"
    assert table.as_dicts() == [{"shape": "a", "ms": "1.5"}, {"shape": "longer", "ms": "10"}]
    with pytest.raises(ValueError, match="must have 2 cells, but got 1"):
        table.add("only")


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A few lines, the last one at the end, no control characters."""
    progress = Progress("model", 101)
    for step in range(1, 102):
        progress(step, 2.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all("\r" not in line for line in lines)
    assert lines[-1].startswith(f"model        [{'#' * 30}] 101/101 steps,")
    assert lines[-1].endswith("loss 2.000")


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that is drawn over and over, closed by a line end."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    progress = Progress("model", 4)
    for step in range(1, 5):
        progress(step, float(step))
    printed = capsys.readouterr().out
    assert printed.count("\r") == 4
    assert printed.count("\n") == 1
    assert printed.endswith("\n")
    assert "loss 1.000" in printed


def test_no_plot_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw(tmp_path / "x.png", [1, 2], {"ALiBi": [1.0, 1.0]})
    assert not (tmp_path / "x.png").exists()
    assert capsys.readouterr().out == (
        "No plot: matplotlib is not installed (pip install matplotlib).\n"
    )
