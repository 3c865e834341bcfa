"""What the default build does not compile: older and newer architectures, other CUDA versions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda.compile import FEW, compile_source, read_report

REPORT = """\
ptxas info    : Compiling entry function 'clean' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers
ptxas info    : Compiling entry function 'spilled' for 'sm_80'
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
file.cuh(3): warning #177-D: variable "x" was declared but never referenced
"""


def toolkits() -> list[str]:
    """The nvcc on the PATH, and those of other versions beside it."""
    others = sorted(map(str, Path("/usr/local").glob("cuda-*/bin/nvcc")))
    return [nvcc for nvcc in (shutil.which("nvcc"), *others) if nvcc is not None]


def version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return text.split("release ")[1].split(",")[0]


def newest_first() -> list[str]:
    """One nvcc per version."""
    return list({version(nvcc): nvcc for nvcc in reversed(toolkits())}.values())


def test_spills_and_warnings_are_read_from_the_report() -> None:
    found = read_report(REPORT)
    assert (found.kernels, found.spills, len(found.warnings)) == (2, {"spilled": 12}, 1)
    assert not found.clean
    assert not read_report("error: no such file", failed=True).clean
    assert read_report(REPORT.partition("ptxas info    : Compiling entry function 'sp")[0]).clean


@pytest.mark.slow
@pytest.mark.parametrize("source", ["sm80/forward", "sm80/backward"])
@pytest.mark.parametrize("architecture", ["86", "89"])
def test_architectures_outside_the_default_build(source: str, architecture: str) -> None:
    """head_dim 64; docs/design/0023 says what was compiled besides, with what outcome."""
    if not toolkits():
        pytest.skip("nvcc was not found")
    found = compile_source(toolkits()[0], source, architecture, FEW)
    assert found.clean, (found.errors, found.warnings, found.spills)
    assert found.kernels >= 4


@pytest.mark.slow
@pytest.mark.parametrize("source", ["entry", "sm80/forward", "sm80/backward", "sm80/weights"])
def test_every_cuda_version_that_is_installed(source: str) -> None:
    if len(newest_first()) < 2:
        pytest.skip(f"no other CUDA version than {[version(x) for x in toolkits()]} is installed")
    for nvcc in newest_first():
        found = compile_source(nvcc, source, "80", FEW)
        assert found.clean, (version(nvcc), found.errors, found.warnings, found.spills)
