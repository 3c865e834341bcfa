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
    assert len(result.stdout.splitlines()) >= 46
