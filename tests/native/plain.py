"""What the native tests share: the instruction sets, a rival for the error bounds, guarded memory.

The rival is attention in plain NumPy float32, the way a user would write it. Its error against the
float64 oracle says what float32 arithmetic costs on an input; the kernels may have twice that error
plus a floor.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from alibi_kernels import native
from tests import oracle
from tests.cases import Case, make_inputs
from tests.compare import EPSILON

LIBRARY = ctypes.CDLL(str(Path(native.__file__).parent / "_lib" / "libalibi_cpu.so"))
ISAS = [row["name"] for row in native.isas() if row["built"] and row["supported"]]

# Four float32 roundings of the largest element: the exponentials (2^-22.3 each), the division by
# the row sum, the product with v and its sum. The rival's error has them too, but where its result
# happens to be exact (one key, equal scores) the kernels may still round.
FLOOR = 4 * 2.0**-23


def floor(truth: Any) -> float:
    finite = np.abs(truth[np.isfinite(truth)])
    return FLOOR * max(1.0, float(finite.max(initial=0.0)))


def elementwise(hook: str, x: Any, isa: str) -> Any:
    """y = f(x) by a function of csrc/cpu/testing.h, into memory full of NaN."""
    y = np.full_like(x, np.nan)
    f = LIBRARY[hook]
    f.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p]
    assert f(x.ctypes.data, y.ctypes.data, x.size, isa.encode()) == 0
    return y


def choose_tuning(row: int) -> int:
    """The kernels are tuned as on the CPU of a row of csrc/cpu/tuning.cc, -1: as on this one; how
    many rows there are."""
    return int(LIBRARY.alibi_cpu_tuning(row))


def takes_pairs(dtype: str, isa: str | None) -> bool:
    """Does this call multiply pairs of bfloat16 (csrc/cpu/vec_avx512_bf16.h)? Then weights are
    rounded to bfloat16 for their product with v, and subnormal numbers count as 0."""
    return dtype == "bfloat16" and (isa or ISAS[0]) == "avx512_bf16"


@cache
def rounded_weights(case: Case, dtype: str) -> float:
    """By how much weights rounded to `dtype` may move out: max over i, x of eta sum_j P_ij |v_jx|
    (docs/maths.md, section 4)."""
    x = make_inputs(case, dtype)
    p, _ = rival_weights(case, x.q, x.k, x.slopes, x.spans)
    v = x.v if case.layout == "BNSD" else x.v.transpose(0, 2, 1, 3)
    size = np.repeat(np.abs(v.astype(np.float32)), case.Hq // case.Hkv, axis=1)
    return EPSILON[dtype] / 2 * float((p @ size).max(initial=0.0))


def rival_weights(case: Case, q: Any, k: Any, slopes: Any, spans: Any) -> tuple[Any, Any]:
    """(P, lse) in float32."""
    if case.layout == "BSND":
        q, k = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)
    group = case.Hq // case.Hkv
    q, k = q.astype(np.float32), np.repeat(k.astype(np.float32), group, axis=1)
    if spans is None:
        spans = np.tile(np.int32([0, case.Sk, case.Sk - case.Sq]), (case.B, 1))
    start, end, first = (spans[:, i, None, None, None] for i in range(3))
    position = (first + np.arange(case.Sq)[:, None]).astype(np.float32)
    key = np.arange(case.Sk).astype(np.float32)
    ramp = -np.abs(position - key) if case.bias == "symmetric" else key - position
    s = np.float32(case.options["scale"]) * (q @ k.swapaxes(2, 3)) + slopes[:, None, None] * ramp
    allowed = (start <= key) & (key < end) & ((key <= position) | (not case.causal))
    s = np.where(allowed, s, np.float32(-np.inf))
    top = s.max(axis=3, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isinf(top), np.float32(0), top))
    total = e.sum(axis=3, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    return e / np.where(total == 0, np.float32(1), total), lse


@cache
def truth_and_rival(case: Case, dtype: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """((out, lse) in float64, (out, lse) of the rival, out rounded to the dtype)."""
    x = make_inputs(case, dtype)
    options = {**case.options, "spans": x.spans}
    truth = oracle.attention(x.q, x.k, x.v, x.slopes, **options)
    p, lse = rival_weights(case, x.q, x.k, x.slopes, x.spans)
    v = x.v if case.layout == "BNSD" else x.v.transpose(0, 2, 1, 3)
    out = p @ np.repeat(v.astype(np.float32), case.Hq // case.Hkv, axis=1)
    out = out if case.layout == "BNSD" else out.transpose(0, 2, 1, 3)
    return truth, (out.astype(x.q.dtype), lse)


def nan_like(x: Any) -> Any:
    """Where a result goes: an element that is not written stays NaN and fails every comparison."""
    return np.full_like(x, np.nan)


class Guarded:
    """Arrays whose memory ends at (or begins after) a page that may not be touched.

    An access outside the array, read or write, kills the process instead of passing unseen.
    """

    def __init__(self, at_end: bool) -> None:
        self._at_end = at_end
        self._maps: list[Any] = []  # mappings live as long as this object

    def copy(self, x: Any) -> Any:
        page = mmap.PAGESIZE
        size = -(-max(x.nbytes, 1) // page) * page
        memory = mmap.mmap(-1, size + 2 * page)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (address, address + page + size):
            assert libc.mprotect(ctypes.c_void_p(guard), page, 0) == 0
        self._maps.append(memory)
        offset = page + (size - x.nbytes if self._at_end else 0)
        array = np.frombuffer(memory, x.dtype, x.size, offset).reshape(x.shape)
        array[...] = x
        return array
