"""The NEON kernels, cross-compiled for aarch64 and run under qemu, against float64 loops."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "neon"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
SYSROOT = "/usr/aarch64-linux-gnu"

missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(missing),
    reason=f"no {' and no '.join(missing)}: apt-get install g++-aarch64-linux-gnu qemu-user",
)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    print(result.stdout + result.stderr)
    return result


@pytest.fixture(scope="module")
def program() -> Path:
    """native_test, compiled for aarch64 by the same CMakeLists.txt as everything else."""
    cmake = [sys.executable, "-m", "cmake"]
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
        "ALIBI_OUTPUT_DIR": BUILD,
        "ALIBI_WITH_CUDA": "OFF",
        "ALIBI_WITH_ASCEND": "OFF",
        "ALIBI_WITH_PYTHON": "OFF",
        "ALIBI_WITH_NATIVE_TEST": "ON",
        "ALIBI_WERROR": "ON",
    }
    configured = run(*cmake, "-S", ROOT, "-B", BUILD, *(f"-D{k}={v}" for k, v in options.items()))
    assert configured.returncode == 0, "configuring for aarch64 failed"
    jobs = str(os.cpu_count() or 1)
    built = run(*cmake, "--build", BUILD, "--parallel", jobs)
    assert built.returncode == 0, "compiling for aarch64 failed"
    return BUILD / "tests" / "neon" / "native_test"


@pytest.mark.parametrize("isa", ["neon", "scalar"])
def test_kernels_agree_with_float64(program: Path, isa: str) -> None:
    result = run(EMULATOR, "-L", SYSROOT, program, isa)
    assert result.returncode == 0, "see the FAIL lines above"
    counts = re.search(r"(\d+) cases, 0 failures", result.stdout)
    assert counts
    assert int(counts[1]) >= 30


def test_neon_is_the_default_choice(program: Path) -> None:
    result = run(EMULATOR, "-L", SYSROOT, program, "neon")
    assert '"selected": "neon"' in result.stdout


def test_an_isa_of_another_architecture_is_refused(program: Path) -> None:
    result = run(EMULATOR, "-L", SYSROOT, program, "avx2")
    assert result.returncode == 1
    assert "attention_fwd returned isa" in result.stdout
