"""Compiles the CUDA sources with any nvcc for any architecture, and reads what ptxas says of them.

python -m tests.cuda.compile NVCC ARCHITECTURE...     a table of all sources, e.g. nvcc 75 86 89
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from tests.cuda.model import ROOT

SOURCES = (
    *("entry", "sm80/forward", "sm80/decode"),
    *("sm80/backward", "sm80/weights", "sm80/prepass"),
)
# A build of one head size per row width: what a test can wait for.
FEW = ("-DALIBI_HEAD_DIMS_16=64", "-DALIBI_HEAD_DIMS_32=64")


@dataclass(frozen=True)
class Compiled:
    kernels: int
    warnings: tuple[str, ...]
    spills: dict[str, int]  # kernel -> bytes stored
    errors: str

    @property
    def clean(self) -> bool:
        return not (self.errors or self.warnings or self.spills)


def read_report(report: str, failed: bool = False) -> Compiled:
    """What nvcc with -Xptxas=-v prints."""
    kernels = re.split(r"Compiling entry function '", report)
    spills = {}
    for part in kernels[1:]:
        found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if found and any(map(int, found.groups())):
            spills[part.split("'", 1)[0]] = int(found[1])
    warnings = [line for line in report.splitlines() if "warning" in line.lower()]
    return Compiled(len(kernels) - 1, tuple(warnings), spills, report if failed else "")


def compile_source(
    nvcc: str, source: str, architecture: str, flags: Sequence[str] = ()
) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", *flags]
        command += ["-Xcompiler=-Wall,-Wextra,-fPIC", "-Xptxas=-v"]
        command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
        command += ["-c", str(ROOT / "csrc" / "cuda" / f"{source}.cu"), "-o", f"{folder}/x.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return read_report(done.stdout + done.stderr, failed=done.returncode != 0)


def main() -> None:
    nvcc, *architectures = sys.argv[1:]
    print(subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.strip())
    for architecture in architectures:
        for source in SOURCES:
            found = compile_source(nvcc, source, architecture)
            state = "failed" if found.errors else f"{found.kernels} kernels"
            print(
                f"sm_{architecture} {source}: {state}, {len(found.warnings)} warnings", flush=True
            )
            for line in (*found.errors.splitlines()[:5], *found.warnings):
                print(f"  {line}")
            for kernel, stored in found.spills.items():
                print(f"  spills {stored} bytes: {kernel}")


if __name__ == "__main__":
    main()
