"""Finds a kernel library, checks that it fits this package, and asks it how it was built."""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# ALIBI_ABI_VERSION of csrc/alibi_attention.h: the layout of the structs that this package was
# written for.
ABI_VERSION = 2

# How a library comes to be where it is looked for.
_HOW = {
    "cpu": "build it with `pip install .` or `make build`",
    "cuda": (
        "nvcc was not found when the kernels were built; put it on PATH or set CUDA_HOME, and "
        "build again with `pip install .` or `make build`"
    ),
}

DIRECTORY = Path(__file__).resolve().parent / "_lib"


class LibraryError(RuntimeError):
    """Why a kernel library cannot be used; the text is a reason for explain()."""


@dataclass(frozen=True)
class Library:
    """A kernel library that is loaded and fits."""

    name: str
    path: str
    build: dict[str, Any]  # what alibi_build_info() says


@cache
def load(name: str) -> Library:
    """The library of a backend, such as "cpu". LibraryError says why there is none."""
    path = DIRECTORY / f"libalibi_{name}.so"
    if not path.exists():
        raise LibraryError(f"{path} is not there; {_HOW[name]}")
    try:
        library = ctypes.CDLL(str(path))
        version = library.alibi_abi_version()
        info = library.alibi_build_info
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{path} cannot be loaded ({error}); build it again") from error
    if version != ABI_VERSION:
        raise LibraryError(
            f"{path} has ABI version {version}, but this package needs {ABI_VERSION}; "
            "build it again from the same checkout"
        )
    info.restype = ctypes.c_char_p
    return Library(name, str(path), json.loads(info()))


def device_error(library: Library, dtype: int = 0) -> str:
    """Why a library cannot use the accelerator that it is for, with tensors of this AlibiDtype; ""
    if it can."""
    kernels = ctypes.CDLL(library.path)
    if kernels.alibi_device_status(dtype) == 0:
        return ""
    kernels.alibi_last_error.restype = ctypes.c_char_p
    return kernels.alibi_last_error().decode()
