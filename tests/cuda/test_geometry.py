"""The index arithmetic of the CUDA kernels, tested on the CPU against brute force."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cuda.model import MODEL, ROOT


def test_index_arithmetic_against_brute_force(tmp_path: Path) -> None:
    program = tmp_path / "geometry_test"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    command = ["g++", *flags, str(MODEL / "geometry_test.cc"), "-o", str(program)]
    subprocess.run(command, check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
