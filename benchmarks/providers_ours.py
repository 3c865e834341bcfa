"""Our kernels through NumPy and through MindSpore, and the pure-ops reference."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from cases import DECODE, FORWARD, TRAINING, Case, numpy_dtype
from measure import CEILINGS_LIBRARY, UNITS, ceilings_library
from providers import SETTLING_CALLS, Arrays, Prepared, Provider, finished, in_graph
from tables import FLOAT32, FLOOR, ONE_THREAD, PLAIN_READ

LEAST_FLOPS = 1e7  # of a floor that is measured in turns


def _to_float32(arrays: Arrays) -> Arrays:
    return {name: np.asarray(a, np.float32) for name, a in arrays.items()}


def _native(
    case: Case,
    inputs: Arrays,
    *,
    prune: bool,
    isa: str | None = None,
    norms: bool = False,
    threads: int | None = None,
    dtype: str | None = None,
) -> Prepared:
    from alibi_kernels import native

    stored = numpy_dtype(dtype or case.dtype)
    q, k, v, dout = (inputs[n].astype(stored, copy=False) for n in ("q", "k", "v", "dout"))
    slopes = case.slopes.astype(np.float32)
    options = {"causal": case.causal, "prune": prune, "isa": isa, "spans": case.spans}
    options["threads"] = threads or case.threads
    # Results go to arrays that are kept, as in MindSpore, whose pool keeps its memory.
    out = np.empty_like(q)
    grads = (np.empty_like(q), np.empty_like(k), np.empty_like(v), np.empty_like(slopes))
    kept_norms = {"key_norms": native.key_norms(k)} if norms else {}

    def forward() -> tuple[np.ndarray, np.ndarray]:
        return native.attention_forward(q, k, v, slopes, out=out, **options, **kept_norms)

    def training() -> tuple[np.ndarray, ...]:
        result, lse = forward()
        return native.attention_backward(q, k, v, slopes, result, lse, dout, grads=grads, **options)

    def outputs() -> Arrays:
        if case.mode != TRAINING:
            return _to_float32({"out": forward()[0]})
        dq, dk, dv, _ = training()
        return _to_float32({"out": out, "dq": dq, "dk": dk, "dv": dv})

    def kept() -> float:
        """Share of K and V that pruning leaves."""
        stats: dict[str, int] = {}
        native.attention_forward(q, k, v, slopes, out=out, stats=stats, **options, **kept_norms)
        values = stats["tiles_visited"]
        keys = stats["tiles_scored"] if stats["decode_rows"] else values
        return (keys + values) / (2 * stats["tiles_allowed"])

    run = training if case.mode == TRAINING else forward
    return Prepared(run, outputs, kept if prune else None)


def _native_unsupported(case: Case, isa: str | None = None) -> list[str]:
    from alibi_kernels import native

    supported = [row["name"] for row in native.isas() if row["supported"]]
    return [] if isa is None or isa in supported else [f"this CPU has no {isa}"]


def _norms_unsupported(case: Case) -> list[str]:
    return [] if case.mode == DECODE else ["key norms are kept beside a cache, for decoding"]


def _plain_read(case: Case, inputs: Arrays) -> Prepared:
    """What decoding cannot beat unless it prunes: the cache read once, at the same moment."""
    k, v = (inputs[n].astype(numpy_dtype(case.dtype), copy=False) for n in ("k", "v"))
    read = ceilings_library().alibi_ceiling_read
    read.restype = ctypes.c_bool
    read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]

    def run() -> None:
        if not read(k.ctypes.data, v.ctypes.data, k.nbytes, case.threads):
            raise OSError("the plain read needs AVX2")

    return Prepared(run, dict)


def _floor(case: Case, inputs: Arrays) -> Prepared:
    """What no dense kernel can beat: as many multiply-adds, from registers, at the same moment."""
    work = ceilings_library().alibi_ceiling_work
    work.restype = ctypes.c_bool
    work.argtypes = [ctypes.c_int, ctypes.c_double, ctypes.c_int]
    units = [UNITS[n] for n in (("bf16", "fma") if case.dtype == "bfloat16" else ("fma",))]

    def run() -> None:
        if not any(work(unit, case.flops, case.threads) for unit in units):
            raise OSError("the multiply-adds need AVX2")

    return Prepared(run, dict)


def _not_built() -> list[str]:
    return [] if CEILINGS_LIBRARY.exists() else ["built with -DALIBI_WITH_BENCH=ON"]


def _read_unsupported(case: Case) -> list[str]:
    decode = case.mode == DECODE
    return [*([] if decode else ["the bytes of K and V bound decoding only"]), *_not_built()]


def _floor_unsupported(case: Case) -> list[str]:
    if case.mode == DECODE:
        return ["decoding is bound by the bytes of K and V", *_not_built()]
    small = case.flops < LEAST_FLOPS
    return [*(["waking the threads would take longer"] if small else []), *_not_built()]


def _mindspore(case: Case, inputs: Arrays, *, backend: str, graph: bool, prune: bool) -> Prepared:
    import mindspore as ms

    from alibi_kernels import alibi_attention

    ms.set_device("CPU")
    dtype = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}[case.dtype]
    q, k, v = (ms.Tensor(inputs[n]).astype(dtype) for n in ("q", "k", "v"))
    slopes = ms.Tensor(case.slopes.astype(np.float32))
    options = {"causal": case.causal, "prune": prune, "backend": backend}
    options["spans"] = None if case.spans is None else ms.Tensor(case.spans)

    def attend(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        return alibi_attention(q, k, v, slopes, **options)

    def training(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor, dout: ms.Tensor) -> tuple[Any, Any]:
        out, pull_back = ms.vjp(attend, q, k, v)
        return out, pull_back(dout)

    call: Callable[..., Any] = attend
    arguments = [q, k, v]
    if case.mode == TRAINING:
        call = training
        arguments.append(ms.Tensor(inputs["dout"]).astype(dtype))
    if graph:
        call = in_graph(call)

    def run() -> Any:
        return finished(call(*arguments))

    def outputs() -> Arrays:
        result = run()
        out, gradients = result if case.mode == TRAINING else (result, ())
        tensors = {"out": out, **dict(zip(("dq", "dk", "dv"), gradients, strict=False))}
        return {n: t.astype(ms.float32).asnumpy() for n, t in tensors.items()}

    return Prepared(run, outputs)


# Copies of the scores that plain operators were seen to hold at once, of (1,32,2048,128); training
# ran out of 22 GB. MindSpore keeps what it has allocated, so that all cases and rows of a process
# share the memory of the machine: only one row is given much.
SCORE_COPIES = {FORWARD: 20, DECODE: 20, TRAINING: 45}
_MUCH, _LITTLE = 11.0, 4.0  # gigabytes


def _mindspore_unsupported(case: Case, *, reference: bool, graph: bool) -> list[str]:
    reasons = []
    if case.threads != 2:
        reasons.append("the number of threads is set for the whole process")
    copies = SCORE_COPIES[case.mode]
    gigabytes = copies * case.batch * case.heads * case.queries * case.keys * 4e-9
    limit = _MUCH if graph and case.dtype == "float32" else _LITTLE
    if reference and gigabytes > limit:
        reasons.append(
            f"{copies} copies of the scores would need {gigabytes:.1f} GB (limit {limit:.0f} GB)"
        )
    return reasons


PROVIDERS = [
    Provider(
        "alibi-kernels dense",
        "ours",
        "alibi_kernels.native",
        partial(_native, prune=False),
        _native_unsupported,
        "fused, every tile",
    ),
    Provider(
        "alibi-kernels pruned",
        "ours",
        "alibi_kernels.native",
        partial(_native, prune=True),
        _native_unsupported,
        "fused, tiles within the bound",
    ),
    Provider(
        "alibi-kernels pruned, norms kept",
        "ours",
        "alibi_kernels.native",
        partial(_native, prune=True, norms=True),
        _norms_unsupported,
        "fused, tiles within the bound, whose key norms the cache keeps",
    ),
    Provider(
        PLAIN_READ,
        "yardstick",
        "numpy",
        _plain_read,
        _read_unsupported,
        "of K and V, from the same arrays",
    ),
    Provider(
        FLOOR,
        "yardstick",
        "numpy",
        _floor,
        _floor_unsupported,
        "as many as two products of the forward have, seven with the backward",
    ),
    Provider(
        "alibi-kernels dense avx2",
        "ours",
        "alibi_kernels.native",
        partial(_native, prune=False, isa="avx2"),
        partial(_native_unsupported, isa="avx2"),
        "fused, every tile, AVX2 only",
        unit="fma_avx2",
    ),
    Provider(
        "alibi-kernels in MindSpore (graph)",
        "ours",
        "mindspore",
        partial(_mindspore, backend="cpu", graph=True, prune=False),
        partial(_mindspore_unsupported, reference=False, graph=True),
        "the dense kernel as a Custom op in a graph",
        SETTLING_CALLS,
    ),
    Provider(
        "MindSpore pure ops (graph)",
        "reference",
        "mindspore",
        partial(_mindspore, backend="reference", graph=True, prune=False),
        partial(_mindspore_unsupported, reference=True, graph=True),
        "scores in memory",
        SETTLING_CALLS,
    ),
    Provider(
        "MindSpore pure ops (PyNative)",
        "reference",
        "mindspore",
        partial(_mindspore, backend="reference", graph=False, prune=False),
        partial(_mindspore_unsupported, reference=True, graph=False),
        "scores in memory",
    ),
]

# What our dense kernel is compared with in some suites: itself, in turns, so that a slow minute
# does not count as the difference.
COMPARED = {
    "threads": Provider(
        ONE_THREAD,
        "ours",
        "alibi_kernels.native",
        partial(_native, prune=False, threads=1),
        lambda case: [] if case.threads > 1 else ["so has the dense row"],
        "fused, every tile",
    ),
    "forward-float16": Provider(
        FLOAT32,
        "ours",
        "alibi_kernels.native",
        partial(_native, prune=False, dtype="float32"),
        lambda case: [],
        "fused, every tile, the same numbers in float32",
    ),
}
