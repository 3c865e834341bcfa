"""The library's symbols: what it exports, and nothing that lets one CPU's code run on another.

The linker keeps one copy of each weak symbol (an inline function of the standard library, say) of
all object files. If an object compiled for AVX-512 holds one, its copy may be the one that is kept,
and the whole library then crashes on CPUs without AVX-512. So objects built with extra instruction
sets may define no weak symbol at all.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The contract, and how many functions of it this library exports.
HEADERS = {"alibi_attention.h": 7, "alibi_cache.h": 1, "alibi_layer.h": 4}
LIBRARY = ROOT / "alibi_kernels" / "_lib" / "libalibi_cpu.so"
OBJECTS = sorted((ROOT / "build" / "csrc" / "cpu" / "CMakeFiles" / "alibi_cpu.dir").glob("isa_*.o"))
OBJECTS = [path for path in OBJECTS if not path.name.startswith(("isa_table", "isa_scalar"))]

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")


def nm(*arguments: str | Path) -> list[tuple[str, str]]:
    """(type letter, demangled name) of every symbol."""
    lines = subprocess.run(
        ["nm", "--demangle", *map(str, arguments)], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    matches = (re.match(r"\s*[0-9a-f]*\s+(\S) (.*)", line) for line in lines)
    return [(match[1], match[2]) for match in matches if match]


@pytest.mark.skipif(not OBJECTS, reason="no object files in build/: run `make build`")
def test_every_vector_isa_has_an_object() -> None:
    source = (ROOT / "csrc" / "cpu" / "CMakeLists.txt").read_text()
    listed = {name for line in re.findall(r"set\(isas (.*)\)", source) for name in line.split()}
    built = {path.name.removeprefix("isa_").removesuffix(".cc.o") for path in OBJECTS}
    assert built
    assert built <= listed - {"scalar"}


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_vector_objects_define_no_weak_symbol(path: Path) -> None:
    weak = [name for letter, name in nm("--defined-only", path) if letter in "uVvWw"]
    assert not weak, f"{path.name} defines weak symbols compiled for one instruction set: {weak}"


def test_the_weak_symbol_rule_can_fail(tmp_path: Path) -> None:
    """The two tests above would also pass if nm's output were misread."""
    source = tmp_path / "weak.cc"
    source.write_text("inline int twice(int x) { return 2 * x; }\nint (*f)(int) = twice;\n")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    subprocess.run([compiler, "-c", str(source), "-o", str(tmp_path / "weak.o")], check=True)
    assert ("W", "twice(int)") in nm("--defined-only", tmp_path / "weak.o")


def test_the_library_exports_the_contract_and_nothing_else() -> None:
    declared: set[str] = set()
    for header, count in HEADERS.items():
        text = (ROOT / "csrc" / header).read_text()
        found = re.findall(r"ALIBI_EXPORT [\w\s*]*?(alibi_\w+)\(", text)
        assert len(found) == count
        declared |= set(found)
    exported = {
        name for letter, name in nm("--dynamic", "--defined-only", LIBRARY) if letter == "T"
    }
    assert declared <= exported
    # Besides: the symbols MindSpore looks up by name, and the hooks of the tests.
    others = {name for name in exported - declared if not name.startswith(("Alibi", "alibi_cpu_"))}
    assert not others, f"unexpected exports: {sorted(others)}"
