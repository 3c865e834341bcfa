"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import mindspore as ms

import alibi_kernels


def facts() -> dict[str, str]:
    """Returns processor, cores and versions."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "mindspore": ms.__version__,
        "alibi_kernels": alibi_kernels.__version__,
    }


def describe() -> str:
    """Returns the facts as one line."""
    found = facts()
    return (
        f"{found['processor']}, {found['cores']} cores; Python {found['python']}, "
        f"MindSpore {found['mindspore']}, alibi-kernels {found['alibi_kernels']}"
    )


def _processor() -> str:
    """The model name that Linux knows, else the architecture."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
