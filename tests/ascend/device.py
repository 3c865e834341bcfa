"""Builds csrc/ascend with the emulator and runs it on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KERNELS = ROOT / "csrc" / "ascend"
CXX = shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-Werror"]
DTYPES = {"float16": ("half", np.float16), "bfloat16": ("bfloat16_t", ml_dtypes.bfloat16)}
# op_kernel/<entry>.cpp, compiled once per dtype
ENTRIES = (
    "alibi_attention",
    "alibi_attention_grad",
    "alibi_attention_weights",
    "alibi_attention_weights_grad",
)
TILE = 128  # query rows and keys per tile, tiling.h
NO_REACH = 1 << 30


class Fault(RuntimeError):
    """The emulator stopped the kernel: a race, a broken limit, a deadlock, memory out of bounds."""


class _Call(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in ("batch", "heads_q", "heads_kv", "len_q", "len_k")),
        ("head_dim", ctypes.c_int64),
        *((n, ctypes.c_int32) for n in ("sequence_first", "causal", "symmetric")),
        *((n, ctypes.c_int32) for n in ("bfloat16", "cores")),
        ("seed", ctypes.c_uint32),
        ("scale", ctypes.c_float),
    ]


class _Report(ctypes.Structure):
    _fields_ = [
        ("error", ctypes.c_char * 512),
        ("instructions", ctypes.c_uint64),
        ("vector_elements", ctypes.c_uint64),
        ("macs", ctypes.c_uint64),
    ]


class Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "head", "row")]


class Tiling(ctypes.Structure):
    """AttentionTiling of tiling.h."""

    _fields_ = [
        *((n, ctypes.c_int32) for n in ("batch", "heads_q", "heads_kv", "len_q", "len_k")),
        *((n, ctypes.c_int32) for n in ("head_dim", "causal", "symmetric", "has_spans")),
        *((n, ctypes.c_int32) for n in ("has_reach", "q_start", "row_step", "tiles_q", "tiles_k")),
        *((n, ctypes.c_int32) for n in ("parts", "tasks", "key_tasks")),
        ("scale", ctypes.c_float),
        ("blocks", ctypes.c_int32),
        ("q", Strides),
        ("kv", Strides),
    ]


class Forward(NamedTuple):
    out: Any
    lse: Any
    instructions: int
    vector_elements: int


class Backward(NamedTuple):
    dq: Any
    dk: Any
    dv: Any
    dslopes: Any  # per row [B, Hq, Sq]: the op leaves the last sum to the caller
    vector_elements: int


class Weights(NamedTuple):
    p: Any
    vector_elements: int


class WeightsGrad(NamedTuple):
    dq: Any
    dk: Any
    dslopes: Any  # per row, as in Backward
    vector_elements: int


def build(
    kernels: Path,
    where: Path,
    entries: Sequence[str] = ENTRIES,
    dtypes: Sequence[str] = tuple(DTYPES),
    runtime: Path | None = None,
) -> Path:
    """The shared library of the kernels in `kernels` on the emulator, made in `where`.

    runtime: folder of an earlier build whose emulator and harness are taken over. Entries or dtypes
    left out are missing from the library, and must not be called.
    """
    where.mkdir(parents=True, exist_ok=True)
    include = [f"-I{p}" for p in (HERE, HERE / "emulator", kernels)]
    runtime_sources = {
        "machine.o": HERE / "emulator" / "machine.cc",
        "memory.o": HERE / "emulator" / "memory.cc",
        "harness.o": HERE / "harness.cc",
    }
    jobs = []
    if runtime is None:
        runtime = where
        jobs = [(source, target, []) for target, source in runtime_sources.items()]
    for entry in entries:
        for dtype in dtypes:
            symbol = f"{entry}_{'half' if dtype == 'float16' else dtype}"
            defines = [f"-DDTYPE_Q={DTYPES[dtype][0]}", f"-D{entry}={symbol}"]
            jobs.append((kernels / "op_kernel" / f"{entry}.cpp", f"{symbol}.o", defines))

    def compile_one(job: tuple[Path, str, list[str]]) -> str:
        source, target, defines = job
        command = [CXX, *FLAGS, *include, *defines, "-c", str(source), "-o", str(where / target)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    with ThreadPoolExecutor(2) as pool:
        errors = "".join(pool.map(compile_one, jobs))
    if errors:
        raise RuntimeError(errors)
    library = where / "libemulated.so"
    objects = {str(where / target) for _, target, _ in jobs}
    objects |= {str(runtime / target) for target in runtime_sources}
    subprocess.run(
        [CXX, "-shared", "-Wl,-z,lazy", *sorted(objects), "-o", str(library)], check=True
    )
    return library


def build_cached() -> Path:
    """The library of the sources as they are, rebuilt only when they change."""
    sources = sorted(
        [*KERNELS.rglob("*.h"), *KERNELS.rglob("*.cpp"), *HERE.rglob("*.h"), *HERE.rglob("*.cc")]
    )
    contents = b"".join(p.name.encode() + p.read_bytes() for p in sources)
    digest = hashlib.sha256(contents + repr(FLAGS).encode()).hexdigest()
    where = ROOT / "build" / "ascend" / digest[:16]
    library = where / "libemulated.so"
    return library if library.exists() else build(KERNELS, where)


def _pointer(x: Any) -> Any:
    return None if x is None else x.ctypes.data_as(ctypes.c_void_p)


class Device:
    """One AI processor with `cores` AI Cores."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library), mode=os.RTLD_LAZY)

    def _run(self, function: str, call: _Call, *arrays: Any) -> _Report:
        report = _Report()
        pointers = [_pointer(x) for x in arrays]
        if getattr(self.library, function)(ctypes.byref(call), *pointers, ctypes.byref(report)):
            raise Fault(report.error.decode())
        return report

    def forward(
        self,
        q: Any,
        k: Any,
        v: Any,
        slopes: Any,
        *,
        scale: float,
        causal: bool = True,
        bias: str = "symmetric",
        spans: Any = None,
        reach: Any = None,
        input_layout: str = "BNSD",
        cores: int = 2,
        seed: int = 0,
    ) -> Forward:
        call = make_call(q, k, scale, causal, bias, input_layout, cores, seed)
        out = np.full_like(q, np.nan)
        lse = np.full((call.batch, call.heads_q, call.len_q), np.nan, np.float32)
        report = self._run("run_forward", call, q, k, v, slopes, spans, reach, out, lse)
        return Forward(out, lse, report.instructions, report.vector_elements)

    def backward(
        self,
        q: Any,
        k: Any,
        v: Any,
        slopes: Any,
        lse: Any,
        delta: Any,
        dout: Any,
        *,
        scale: float,
        causal: bool = True,
        bias: str = "symmetric",
        spans: Any = None,
        reach: Any = None,
        input_layout: str = "BNSD",
        cores: int = 2,
        seed: int = 0,
    ) -> Backward:
        call = make_call(q, k, scale, causal, bias, input_layout, cores, seed)
        dq, dk, dv = (np.full_like(x, np.nan) for x in (q, k, v))
        dslopes = np.full(lse.shape, np.nan, np.float32)
        arrays = (q, k, v, slopes, lse, delta, dout, spans, reach, dq, dk, dv, dslopes)
        report = self._run("run_backward", call, *arrays)
        return Backward(dq, dk, dv, dslopes, report.vector_elements)

    def weights(
        self,
        q: Any,
        k: Any,
        slopes: Any,
        *,
        scale: float,
        causal: bool = True,
        bias: str = "symmetric",
        spans: Any = None,
        input_layout: str = "BNSD",
        cores: int = 2,
        seed: int = 0,
    ) -> Weights:
        call = make_call(q, k, scale, causal, bias, input_layout, cores, seed)
        p = np.full((call.batch, call.heads_q, call.len_q, call.len_k), np.nan, q.dtype)
        report = self._run("run_weights", call, q, k, slopes, spans, p)
        return Weights(p, report.vector_elements)

    def weights_grad(
        self,
        q: Any,
        k: Any,
        p: Any,
        dp: Any,
        *,
        scale: float,
        causal: bool = True,
        bias: str = "symmetric",
        spans: Any = None,
        input_layout: str = "BNSD",
        cores: int = 2,
        seed: int = 0,
    ) -> WeightsGrad:
        call = make_call(q, k, scale, causal, bias, input_layout, cores, seed)
        dq, dk = (np.full_like(x, np.nan) for x in (q, k))
        dslopes = np.full(p.shape[:3], np.nan, np.float32)
        report = self._run("run_weights_grad", call, q, k, p, dp, spans, dq, dk, dslopes)
        return WeightsGrad(dq, dk, dslopes, report.vector_elements)

    def tile_range(
        self, call: _Call, span: tuple[int, int, int], row: int, rows: int, reach: int
    ) -> tuple[int, int]:
        """Key tiles [first, end) that query rows [row, row + rows) visit."""
        report, result = _Report(), np.zeros(2, np.int32)
        arguments = (_pointer(np.array(span, np.int32)), row, rows, reach, _pointer(result))
        if self.library.tile_range(ctypes.byref(call), *arguments, ctypes.byref(report)):
            raise Fault(report.error.decode())
        return int(result[0]), int(result[1])

    def tiling(self, call: _Call, fused_forward: bool) -> Tiling:
        report, tiling = _Report(), Tiling()
        arguments = (int(fused_forward), ctypes.byref(tiling), ctypes.byref(report))
        if self.library.tiling_of(ctypes.byref(call), *arguments):
            raise Fault(report.error.decode())
        return tiling

    def part(self, tiles: tuple[int, int], part: int, parts: int) -> tuple[int, int]:
        """Part `part` of `parts` of the key tiles [first, end)."""
        result = np.zeros(2, np.int32)
        self.library.part_range(_pointer(np.array(tiles, np.int32)), part, parts, _pointer(result))
        return int(result[0]), int(result[1])

    def budgets(self) -> dict[str, tuple[int, int]]:
        """Bytes of L1 and UB that each op takes at the largest head_dim."""
        result = np.zeros((len(ENTRIES), 2), np.int32)
        self.library.budgets(_pointer(result))
        return {entry: (int(a), int(b)) for entry, (a, b) in zip(ENTRIES, result, strict=True)}

    def workspace(self, tiling: Tiling, entry: str) -> list[int]:
        """Offsets of the pieces of one AI Core, their end, and the bytes of the whole."""
        result = np.zeros(16, np.int64)
        op = ENTRIES.index(entry)
        count = self.library.workspace_of(ctypes.byref(tiling), op, _pointer(result))
        return [int(x) for x in result[:count]]


def make_call(
    q: Any, k: Any, scale: float, causal: bool, bias: str, input_layout: str, cores: int, seed: int
) -> _Call:
    head, row = (1, 2) if input_layout == "BNSD" else (2, 1)
    return _Call(
        batch=q.shape[0],
        heads_q=q.shape[head],
        heads_kv=k.shape[head],
        len_q=q.shape[row],
        len_k=k.shape[row],
        head_dim=q.shape[3],
        sequence_first=input_layout == "BSND",
        causal=causal,
        symmetric=bias == "symmetric",
        bfloat16=q.dtype == ml_dtypes.bfloat16,
        cores=cores,
        seed=seed,
        scale=scale,
    )
