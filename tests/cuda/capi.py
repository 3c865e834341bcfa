"""csrc/alibi_attention.h in ctypes: calls a kernel library the way any C program does.

The same code drives the CPU model of the CUDA kernels (arrays in host memory) and the real library
(addresses in device memory): a tensor is an address, strides in elements, and nothing else.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

I32, I64, F32, PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
BIASES = {"symmetric": 0, "signed": 1}


class CTensor(ctypes.Structure):
    _fields_ = [("data", PTR), ("stride_b", I64), ("stride_h", I64), ("stride_s", I64)]


class CProblem(ctypes.Structure):
    _fields_ = [
        *((name, I64) for name in ("batch", "heads_q", "heads_kv", "len_q", "len_k", "head_dim")),
        *((name, I32) for name in ("dtype", "bias", "causal", "prune")),
        *(("scale", F32), ("dropout_p", F32), ("seed", I64), ("window", I64)),
    ]


def _arguments(name: str, *fields: tuple[str, Any]) -> type[ctypes.Structure]:
    every = [("problem", CProblem), *fields, ("options", PTR)]
    return type(name, (ctypes.Structure,), {"_fields_": every})


_QKV = tuple((name, CTensor) for name in ("q", "k", "v"))
_QK = _QKV[:2]
_MODES = (("slopes", PTR), ("spans", PTR), ("segments", PTR))

ARGUMENTS = {
    "alibi_attention_fwd": _arguments(
        "Fwd", *_QKV, *_MODES, ("out", CTensor), ("lse", PTR), ("key_norms", PTR)
    ),
    "alibi_attention_bwd": _arguments(
        "Bwd",
        *_QKV,
        *_MODES,
        ("out", CTensor),
        ("lse", PTR),
        ("dout", CTensor),
        ("dlse", PTR),
        *((name, CTensor) for name in ("dq", "dk", "dv")),
        ("dslopes", PTR),
    ),
    "alibi_attention_weights_fwd": _arguments("WeightsFwd", *_QK, *_MODES, ("p", CTensor)),
    "alibi_attention_weights_bwd": _arguments(
        "WeightsBwd",
        *_QK,
        *_MODES,
        *((name, CTensor) for name in ("p", "dp", "dq", "dk")),
        ("dslopes", PTR),
    ),
}


@dataclass(frozen=True)
class Problem:
    """AlibiProblem, by names."""

    batch: int
    heads_q: int
    heads_kv: int
    len_q: int
    len_k: int
    head_dim: int
    dtype: str
    scale: float
    causal: bool = True
    bias: str = "symmetric"
    prune: bool = True

    def to_c(self) -> CProblem:
        sizes = (self.batch, self.heads_q, self.heads_kv, self.len_q, self.len_k, self.head_dim)
        modes = (DTYPES[self.dtype], BIASES[self.bias], int(self.causal), int(self.prune))
        return CProblem(*sizes, *modes, self.scale, 0.0, 0, 0)


def tensor(address: int, shape: tuple[int, ...], layout: str) -> CTensor:
    """A contiguous rank-4 tensor in "BNSD" or "BSND" order."""
    _, b, c, d = shape
    outer, inner = c * d, d
    heads_first = layout == "BNSD"
    return CTensor(
        address, b * outer, outer if heads_first else inner, inner if heads_first else outer
    )


class Library:
    """A loaded kernel library."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.c = ctypes.CDLL(str(path))
        for name in ("alibi_status_name", "alibi_last_error", "alibi_build_info"):
            getattr(self.c, name).restype = ctypes.c_char_p
        for name, arguments in ARGUMENTS.items():
            getattr(self.c, name).argtypes = [ctypes.POINTER(arguments), PTR]

    def status(self, name: str, problem: Problem, stream: int = 0, **fields: Any) -> str:
        """Calls an entry point; the name of the status it returns."""
        arguments = ARGUMENTS[name](problem=problem.to_c(), **fields)
        code = getattr(self.c, name)(ctypes.byref(arguments), stream)
        return str(self.c.alibi_status_name(code).decode())

    def device_error(self, dtype: str) -> str:
        """Why the GPU cannot be used for tensors of a dtype; "" if it can."""
        return self.last_error() if self.c.alibi_device_status(DTYPES[dtype]) else ""

    def last_error(self) -> str:
        return str(self.c.alibi_last_error().decode())

    def call(self, name: str, problem: Problem, stream: int = 0, **fields: Any) -> None:
        """Calls an entry point that must succeed."""
        status = self.status(name, problem, stream, **fields)
        if status != "ok":
            raise RuntimeError(f"{name} returned {status}: {self.last_error()}")
