"""Where the operands of a call lie: NumPy arrays on the host, or PyTorch tensors on a device.

Every array lies between two guards of a known pattern, and an output starts as NaN: a kernel that
writes too far, or leaves an element out, is found. `bare` leaves both out, for tools that watch
every access themselves: to them a guard is memory like any other, and NaN a value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.gpu.aot import Operand
from tests.cases import NUMPY_DTYPES

GUARD = 256  # bytes; also keeps the payload aligned for every kind of copy
PATTERN = 0xA5
DTYPES = {**NUMPY_DTYPES, "int32": np.int32}
_NAMES = {np.dtype(value): name for name, value in DTYPES.items()}


class HostMemory:
    """NumPy arrays: for the CPU library."""

    stream = 0

    def upload(self, block: Any) -> tuple[Any, int]:
        """A copy of these bytes on the device: a handle for `download`, and its address."""
        room = np.empty(block.size + GUARD, np.uint8)
        start = -room.ctypes.data % GUARD
        copy = room[start : start + block.size]
        copy[...] = block
        return copy, copy.ctypes.data

    def reserve(self, size: int) -> tuple[Any, int]:
        """Memory that nobody has written to."""
        return self.upload(np.empty(size, np.uint8))

    def download(self, handle: Any) -> Any:
        return handle

    def synchronize(self) -> None:
        pass


class TorchMemory:
    """PyTorch tensors on `device`, which may be "cpu"."""

    def __init__(self, device: str, own_stream: bool = True) -> None:
        import torch

        self._torch, self.device = torch, device
        # A stream of its own, as MindSpore has, unless PyTorch is to time the calls.
        self._cuda = device.startswith("cuda")
        self._stream = torch.cuda.Stream(device) if self._cuda and own_stream else None
        self.stream = self._stream.cuda_stream if self._stream else 0

    def upload(self, block: Any) -> tuple[Any, int]:
        handle = self._torch.from_numpy(block).to(self.device, copy=True)
        self.synchronize()
        return handle, handle.data_ptr()

    def reserve(self, size: int) -> tuple[Any, int]:
        handle = self._torch.empty(size, dtype=self._torch.uint8, device=self.device)
        return handle, handle.data_ptr()

    def download(self, handle: Any) -> Any:
        self.synchronize()
        return handle.cpu().numpy()

    def synchronize(self) -> None:
        if self._cuda:
            self._torch.cuda.synchronize(self.device)


def memory_on(device: str, own_stream: bool = True) -> HostMemory | TorchMemory:
    """NumPy arrays on the "host"; anything else is a device of PyTorch."""
    return HostMemory() if device == "host" else TorchMemory(device, own_stream)


class Array:
    """One operand on the device."""

    def __init__(self, place: Arrays, shape: tuple[int, ...], dtype: Any, values: Any) -> None:
        self.place, self.shape, self.dtype = place, tuple(shape), np.dtype(dtype)
        payload = int(np.prod(self.shape)) * self.dtype.itemsize
        guard = 0 if place.bare else GUARD
        self._inside = slice(guard, guard + payload)
        if values is None and place.bare:
            self._handle, address = place.memory.reserve(payload)
        else:
            block = np.full(payload + 2 * guard, PATTERN, np.uint8)
            # All bits set is NaN in every floating-point type.
            block[self._inside] = 0xFF if values is None else _bytes(values)
            self._handle, address = place.memory.upload(block)
        self.operand = Operand(address + guard, self.shape, _NAMES[self.dtype])

    def numpy(self) -> Any:
        """A copy on the host; an error if anything around it was changed."""
        block = self.place.memory.download(self._handle)
        before, after = block[: self._inside.start], block[self._inside.stop :]
        if (before != PATTERN).any() or (after != PATTERN).any():
            raise AssertionError(f"memory around {self.shape} {self.dtype} was overwritten")
        return block[self._inside].copy().view(self.dtype).reshape(self.shape)


def _bytes(values: Any) -> Any:
    return np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)


class Arrays:
    """Makes the arrays of one kind of memory, and checks their surroundings."""

    def __init__(self, memory: HostMemory | TorchMemory, bare: bool = False) -> None:
        self.memory, self.bare = memory, bare
        self._made: list[Array] = []

    def of(self, values: Any) -> Array:
        return self._keep(Array(self, values.shape, values.dtype, values))

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self._keep(Array(self, shape, dtype, None))

    def _keep(self, array: Array) -> Array:
        self._made.append(array)
        return array

    def check_all(self) -> None:
        """Inputs too: a kernel may not write there either."""
        for array in self._made:
            array.numpy()
