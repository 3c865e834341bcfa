"""Calls the operators of a kernel library exactly as MindSpore does, without MindSpore.

csrc/aot/bridge.cc lists the operators, their operands and attributes. MindSpore looks up three
symbols per operator: XInit reads the attributes once, XInferShape gives the shapes of the outputs,
X runs on arrays of pointers, ranks, shapes and dtype names. So does this, through aot_caller.cc.

    operator = Operator(library, "AlibiAttentionFwd", {"causal": True, ...})
    shapes = operator.output_shapes(inputs)
    run = operator.bind(inputs + outputs, stream)      # marshalled once
    run()

An operand is an address, a shape and a dtype name; where the memory lies is memory.py's business.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("aot_caller.cc")
HEADER = ROOT / "csrc" / "aot" / "aot_extra.h"
MESSAGE_BYTES = 1024
MAX_OUTPUTS, MAX_RANK = 8, 8


class Operand(NamedTuple):
    address: int
    shape: tuple[int, ...]
    dtype: str  # "float32", "float16", "bfloat16", "int32"


class OperatorError(RuntimeError):
    """What the operator threw, word for word."""


@cache
def caller() -> Any:
    """aot_caller.cc as a library, compiled when its sources have changed."""
    digest = hashlib.sha256(SOURCE.read_bytes() + HEADER.read_bytes()).hexdigest()[:16]
    path = ROOT / "build" / "aot-caller" / f"libaot_caller-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        # MindSpore is built with the old std::string; see aot_extra.h.
        flags += ["-D_GLIBCXX_USE_CXX11_ABI=0", f"-I{ROOT / 'csrc'}"]
        subprocess.run(["g++", *flags, str(SOURCE), "-o", str(part)], check=True)
        os.replace(part, path)
    library = ctypes.CDLL(str(path))
    library.extra_new.restype = ctypes.c_void_p
    return library


class _Marshalled:
    """Operands as the arrays that an operator takes."""

    def __init__(self, operands: Sequence[Operand]) -> None:
        count = len(operands)
        self.count = count
        # MindSpore passes null for an empty tensor.
        addresses = [x.address if all(x.shape) else None for x in operands]
        self.data = (ctypes.c_void_p * count)(*addresses)
        self.ranks = (ctypes.c_int * count)(*(len(x.shape) for x in operands))
        self._sizes = [(ctypes.c_int64 * max(len(x.shape), 1))(*x.shape) for x in operands]
        pointer = ctypes.POINTER(ctypes.c_int64)
        self.shapes = (pointer * count)(*(ctypes.cast(s, pointer) for s in self._sizes))
        self.dtypes = (ctypes.c_char_p * count)(*(x.dtype.encode() for x in operands))


class Operator:
    """One operator with its attributes."""

    def __init__(self, library: Path, symbol: str, attributes: dict[str, Any]) -> None:
        self.symbol = symbol
        self._caller = caller()
        self._library = ctypes.CDLL(str(library))
        self._message = ctypes.create_string_buffer(MESSAGE_BYTES)
        self._extra = ctypes.c_void_p(self._caller.extra_new())
        for name, value in attributes.items():
            self._set(name.encode(), value)
        self._checked("aot_init", self._address("Init"), self._extra)

    def __del__(self) -> None:
        self._caller.extra_delete(self._extra)

    def _set(self, name: bytes, value: Any) -> None:
        if isinstance(value, bool):
            self._caller.extra_set_bool(self._extra, name, value)
        elif isinstance(value, float):
            self._caller.extra_set_float(self._extra, name, ctypes.c_float(value))
        elif isinstance(value, str):
            self._caller.extra_set_string(self._extra, name, value.encode())
        else:
            floats = (ctypes.c_float * len(value))(*value)
            self._caller.extra_set_floats(self._extra, name, floats, len(value))

    def _address(self, suffix: str = "") -> ctypes.c_void_p:
        return ctypes.cast(getattr(self._library, self.symbol + suffix), ctypes.c_void_p)

    def _checked(self, function: str, *arguments: Any) -> int:
        self._message.value = b""
        result = getattr(self._caller, function)(*arguments, self._message, MESSAGE_BYTES)
        if result < 0 or (result != 0 and function != "aot_infer_shape"):
            words = self._message.value.decode(errors="replace")
            raise OperatorError(words or f"{self.symbol}: {function} returned {result}")
        return int(result)

    def output_shapes(self, inputs: Sequence[Operand]) -> list[tuple[int, ...]]:
        ranks = (ctypes.c_int * MAX_OUTPUTS)()
        sizes = (ctypes.c_int64 * (MAX_OUTPUTS * MAX_RANK))()
        x = _Marshalled(inputs)
        symbol = self._address("InferShape")
        count = self._checked(
            "aot_infer_shape", symbol, x.ranks, x.shapes, self._extra, ranks, sizes
        )
        rest = iter(sizes)
        return [tuple(next(rest) for _ in range(rank)) for rank in ranks[:count]]

    def bind(self, operands: Sequence[Operand], stream: int = 0) -> Callable[[], None]:
        """A call on these operands, inputs first; it raises OperatorError."""
        x = _Marshalled(operands)
        arguments = (x.count, x.data, x.ranks, x.shapes, x.dtypes, ctypes.c_void_p(stream))
        symbol = self._address()
        return lambda: (self._checked("aot_run", symbol, *arguments, self._extra), None)[1]
