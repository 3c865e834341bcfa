"""What a reader must know of the machine to place the numbers, as OUT/machine.json."""

from __future__ import annotations

import datetime
import hashlib
import importlib
import json
import platform
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.aot import ROOT

GPU_FIELDS = {
    "gpu": "name",
    "driver": "driver_version",
    "capability": "compute_cap",
    "memory": "memory.total",
    "max_sm_clock": "clocks.max.sm",
    "max_memory_clock": "clocks.max.mem",
    "power_limit": "power.limit",
    "ecc": "ecc.mode.current",
}
PACKAGES = ("torch", "triton", "jax", "cudnn", "flash_attn", "numpy")


def last_line(*command: str) -> str:
    """The last line of what a command prints; empty when there is no such command."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return (done.stdout.strip().splitlines() or [""])[-1]


def gpu() -> dict[str, str]:
    """The first GPU; empty strings where there is none, or for what its driver does not know."""
    shape = ("--format=csv,noheader", "--id=0")
    return {
        name: last_line("nvidia-smi", f"--query-gpu={field}", *shape)
        for name, field in GPU_FIELDS.items()
    }


def sources() -> str:
    """A digest of csrc/, which also tells versions apart where there is no git."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def commit() -> str:
    """Short; "+" with uncommitted changes; empty in a copy without git."""
    known = last_line("git", "rev-parse", "--short=10", "HEAD")
    changed = last_line("git", "status", "--porcelain", "--untracked-files=no")
    return known + ("+" if known and changed else "")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = str(getattr(importlib.import_module(name), "__version__", "?"))
        except Exception as error:  # a broken package is a fact too
            found[name] = f"absent ({type(error).__name__})"
    return found


def describe(commit_given: str = "") -> dict[str, object]:
    return {
        "commit": commit_given or commit() or "unknown",
        "sources": sources(),
        **gpu(),
        "nvcc": last_line("nvcc", "--version"),
        "versions": versions(),
        "system": platform.platform(),
        "date": datetime.date.today().isoformat(),
    }


SAME = ("sources", "gpu")


def write(out: Path, commit_given: str = "") -> dict[str, object]:
    """OUT/machine.json; ValueError when OUT holds results of other kernels or another GPU."""
    path, facts = out / "machine.json", describe(commit_given)
    if path.exists():
        before = json.loads(path.read_text())
        for name in SAME:
            if before.get(name) != facts[name]:
                raise ValueError(
                    f"{out} holds results with {name} {before.get(name)!r}, now it is "
                    f"{facts[name]!r}; give another output directory"
                )
        return before
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return facts


if __name__ == "__main__":
    print(json.dumps(describe(*sys.argv[1:2]), indent=1))
