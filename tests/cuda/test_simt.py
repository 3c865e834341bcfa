"""The CPU model itself: what it must report, and that it has no memory errors of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cuda.model import MACHINE, MODEL, ROOT

SIMT = MODEL / "simt"


def run_self_test(folder: Path, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    program = folder / name
    names = (f"{name}.cc", *MACHINE)
    every = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", f"-I{MODEL}", *flags]
    subprocess.run(
        ["g++", *every, *(str(SIMT / name) for name in names), "-o", str(program)], check=True
    )
    # A block that is given up leaves what its fibers held: no leak check.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [str(program)], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.parametrize("name", ["selftest", "selftest_hopper", "selftest_runs"])
@pytest.mark.parametrize("flags", [(), ("-g", "-fsanitize=address")], ids=["plain", "asan"])
def test_wrong_kernels_are_reported_and_right_ones_are_not(
    tmp_path: Path, name: str, flags: tuple[str, ...]
) -> None:
    result = run_self_test(tmp_path, name, *flags)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_kernels_include_nothing_of_the_model() -> None:
    """One switch in each of the files that talk to the GPU; everything else is unaware."""
    aware = {
        path.relative_to(ROOT / "csrc" / "cuda").as_posix()
        for path in (ROOT / "csrc" / "cuda").rglob("*")
        if path.is_file() and "ALIBI_CPU_MODEL" in path.read_text()
    }
    assert aware == {"sm80/device.cuh", "sm90/device.cuh", "launch.cuh", "entry.cu"}
