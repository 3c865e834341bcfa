"""Arrays whose end is watched by the operating system."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

Array = Any


class Guarded:
    """Arrays that end where an unreadable page begins: reading or writing past them is fatal."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []

    def like(self, x: Array) -> Array:
        page = mmap.PAGESIZE
        size = -(-max(x.nbytes, 1) // page) * page
        memory = mmap.mmap(-1, size + page)
        self._maps.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), 0) == 0
        whole = np.frombuffer(memory, np.uint8, count=size)
        view = whole[size - x.nbytes :].view(x.dtype).reshape(x.shape)
        view[...] = x
        return view
