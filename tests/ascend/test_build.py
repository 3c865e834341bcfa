"""build.sh without CANN, and its staging with a stand-in for CANN's project generator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ascend.device import CXX, ENTRIES, HERE, KERNELS

BUILD = KERNELS / "build.sh"

# What build.sh relies on in a project that msopgen makes, and nothing else.
MSOPGEN = """#!/usr/bin/env bash
set -eu
while [ $# -gt 0 ]; do [ "$1" = -out ] && out=$2; shift; done
mkdir -p "$out/op_host" "$out/op_kernel"
touch "$out/op_host/generated.cpp" "$out/op_kernel/generated.cpp"
echo 'add_kernels_compile()' > "$out/op_kernel/CMakeLists.txt"
echo '{"configurePresets": [{"cacheVariables": {
  "ASCEND_CANN_PACKAGE_PATH": {"value": ""}, "vendor_name": {"value": "customize"}}}]}' \\
  > "$out/CMakePresets.json"
echo 'mkdir -p build_out && echo package > build_out/custom_opp.run' > "$out/build.sh"
"""


def run(output: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "ASCEND_HOME_PATH"} | environment
    return subprocess.run(
        ["bash", str(BUILD), str(output)], env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    tools = tmp_path / "cann" / "python" / "site-packages" / "bin"
    tools.mkdir(parents=True)
    (tools / "msopgen").write_text(MSOPGEN)
    (tools / "msopgen").chmod(0o755)
    result = run(tmp_path / "out", ASCEND_HOME_PATH=str(tmp_path / "cann"))
    assert result.returncode == 0, result.stderr
    return tmp_path / "out" / "project"


def test_without_cann_the_message_says_what_to_do(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 1
    assert "ASCEND_HOME_PATH is not set" in result.stderr
    assert "set_env.sh" in result.stderr


def test_a_runtime_without_the_toolkit_is_named(tmp_path: Path) -> None:
    if shutil.which("msopgen"):
        pytest.skip("msopgen is on PATH")
    result = run(tmp_path, ASCEND_HOME_PATH=str(tmp_path))
    assert result.returncode == 1
    assert "msopgen was not found" in result.stderr


def test_staging(project: Path) -> None:
    """Our sources replace the generated ones, and the settings reach CANN's project."""
    assert (project.parent / "alibi_ascend.run").read_text() == "package\n"
    names = {p.name for p in (project / "op_kernel").iterdir()}
    assert {f"{entry}.cpp" for entry in ENTRIES} | {"tiling.h"} <= names
    assert "generated.cpp" not in names | {p.name for p in (project / "op_host").iterdir()}
    lists = (project / "op_kernel" / "CMakeLists.txt").read_text()
    assert lists.index("--cce-auto-sync=off") < lists.index("add_kernels_compile")
    presets = (project / "CMakePresets.json").read_text()
    assert '"alibi"' in presets
    assert str(project.parents[1] / "cann") in presets


@pytest.mark.skipif(CXX is None, reason="no g++")
def test_staged_kernels_need_nothing_from_outside_their_folder(project: Path) -> None:
    for entry in ENTRIES:
        source = project / "op_kernel" / f"{entry}.cpp"
        command = [CXX, "-std=c++17", "-fsyntax-only", "-DDTYPE_Q=half", f"-I{HERE / 'emulator'}"]
        subprocess.run([*command, str(source)], check=True)
