"""Finds our op package among the op packages of CANN, where MindSpore will look for it.

Each op of an installed package has a C header, from which `ops.Custom` reads the types of its
arguments. Packages lie under the folders of ASCEND_CUSTOM_OPP_PATH, and under vendors/ of
ASCEND_OPP_PATH as far as vendors/config.ini names them.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

VENDOR = "alibi"  # the name under which csrc/ascend/build.sh has the package install itself

_INSTALL = (
    "build it with csrc/ascend/build.sh and run the alibi_ascend.run that it leaves (csrc/ascend/"
    "README.md)"
)


class PackageError(RuntimeError):
    """Why an op cannot be used; the text is a reason for explain()."""


def header_of(op: str) -> Path:
    """The header of an op such as "AlibiAttention". PackageError says why there is none."""
    opp = os.environ.get("ASCEND_OPP_PATH")
    if not opp:
        raise PackageError("ASCEND_OPP_PATH is not set; run `source <CANN>/set_env.sh` first")
    vendors = Path(opp) / "vendors"
    named = _load_priority(vendors / "config.ini")
    folders = [Path(p) for p in os.environ.get("ASCEND_CUSTOM_OPP_PATH", "").split(":") if p]
    folders += [vendors / name for name in named]
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", op).lower()
    for folder in folders:
        header = folder / "op_api" / "include" / f"aclnn_{snake}.h"
        if header.exists():
            return header
    if (vendors / VENDOR).is_dir() and VENDOR not in named:
        raise PackageError(
            f"the op package lies in {vendors / VENDOR}, but load_priority in "
            f"{vendors / 'config.ini'} does not name {VENDOR}; add it there, or install it again"
        )
    looked = ", ".join(map(str, folders)) or f"{vendors} (which names no package)"
    raise PackageError(f"the op {op} is not installed (looked in {looked}); {_INSTALL}")


def compiler_reason() -> str | None:
    """MindSpore compiles a small call-back for each op when it is first used."""
    if shutil.which("g++"):
        return None
    return "g++ is not on PATH, with which MindSpore connects to an op; install it"


def _load_priority(config: Path) -> list[str]:
    """The vendors in a line such as "load_priority=alibi,customize"; none without the file."""
    if not config.is_file():
        return []
    for line in config.read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "load_priority":
            return [name.strip() for name in value.split(",") if name.strip()]
    return []
