"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import mindspore as ms

import alibi_kernels


def facts() -> dict[str, str]:
    """Returns processor, its family (family/model/stepping), cores and versions."""
    info = _cpuinfo()
    family = [info[key] for key in ("cpu family", "model", "stepping") if key in info]
    return {
        "processor": info.get("model name", platform.machine()),
        "family": "/".join(family),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "mindspore": ms.__version__,
        "alibi_kernels": alibi_kernels.__version__,
    }


def describe() -> str:
    """Returns the facts as one line."""
    found = facts()
    family = f" (family {found['family']})" if found["family"] else ""
    return (
        f"{found['processor']}{family}, {found['cores']} cores; Python {found['python']}, "
        f"MindSpore {found['mindspore']}, alibi-kernels {found['alibi_kernels']}"
    )


def _cpuinfo() -> dict[str, str]:
    """What Linux knows of the first processor; the names of the fields differ by architecture."""
    info: dict[str, str] = {}
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        info.setdefault(name.strip(), value.strip())
    return info
