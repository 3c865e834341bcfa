"""The emulator on programs that are wrong in one respect each, and on their right forms."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.ascend.device import CXX, FLAGS, HERE

pytestmark = pytest.mark.skipif(CXX is None, reason="no g++")


def test_emulator_reports_every_broken_rule(tmp_path: Path) -> None:
    """selftest.cc: one line per program; "ok" when it was reported as it must be, or passed."""
    binary = tmp_path / "selftest"
    sources = [str(HERE / "emulator" / name) for name in ("selftest.cc", "machine.cc", "memory.cc")]
    subprocess.run([CXX, *FLAGS, *sources, "-o", str(binary)], check=True)
    result = subprocess.run([str(binary)], capture_output=True, text=True, check=False)
    wrong = [line for line in result.stdout.splitlines() if not line.endswith(" ok")]
    assert not wrong
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) >= 49


@pytest.mark.parametrize(
    ("question", "accepted"),
    [("if ASCEND_IS_AIV { core /= 2; }", True), ("core = ASCEND_IS_AIC ? core : core / 2;", False)],
)
def test_which_core_runs_is_asked_by_an_if(question: str, accepted: bool) -> None:
    """A device build defines ASCEND_IS_AIC and its like as "constexpr (...)"."""
    program = f'#include "kernel_operator.h"\nvoid f(int core) {{ {question} }}\n'
    command = [CXX, "-std=c++17", "-fsyntax-only", f"-I{HERE / 'emulator'}", "-x", "c++", "-"]
    result = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == accepted, result.stderr
