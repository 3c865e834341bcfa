"""Our kernels through NumPy and through MindSpore, and the pure-ops reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from cases import DECODE, TRAINING, Case, numpy_dtype
from providers import SETTLING_CALLS, Arrays, Prepared, Provider


def _to_float32(arrays: Arrays) -> Arrays:
    return {name: np.asarray(a, np.float32) for name, a in arrays.items()}


def _native(
    case: Case, inputs: Arrays, *, prune: bool, isa: str | None = None, norms: bool = False
) -> Prepared:
    from alibi_kernels import native

    dtype = numpy_dtype(case.dtype)
    q, k, v, dout = (inputs[n].astype(dtype, copy=False) for n in ("q", "k", "v", "dout"))
    slopes = case.slopes.astype(np.float32)
    options = {"causal": case.causal, "prune": prune, "threads": case.threads, "isa": isa}
    out = np.empty_like(q)
    kept_norms = {"key_norms": native.key_norms(k)} if norms else {}

    def forward() -> tuple[np.ndarray, np.ndarray]:
        return native.attention_forward(q, k, v, slopes, out=out, **options, **kept_norms)

    def training() -> tuple[np.ndarray, ...]:
        result, lse = forward()
        return native.attention_backward(q, k, v, slopes, result, lse, dout, **options)

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


def _mindspore(case: Case, inputs: Arrays, *, backend: str, graph: bool, prune: bool) -> Prepared:
    import mindspore as ms

    from alibi_kernels import alibi_attention

    ms.set_device("CPU")
    dtype = {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}[case.dtype]
    q, k, v, dout = (ms.Tensor(inputs[n]).astype(dtype) for n in ("q", "k", "v", "dout"))
    slopes = ms.Tensor(case.slopes.astype(np.float32))

    def attend(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        return alibi_attention(q, k, v, slopes, causal=case.causal, prune=prune, backend=backend)

    def loss(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        return (attend(q, k, v) * dout).sum()

    call: Callable[..., object] = ms.grad(loss, (0, 1, 2)) if case.mode == TRAINING else attend
    if graph:
        call = ms.jit(call)

    def run() -> object:
        result = call(q, k, v)
        for tensor in result if isinstance(result, tuple) else (result,):
            # Not ms.runtime.synchronize(): its first call on the CPU does not wait.
            tensor.asnumpy()
        return result

    def outputs() -> Arrays:
        arrays = {"out": attend(q, k, v).astype(ms.float32).asnumpy()}
        if case.mode == TRAINING:
            gradients = call(q, k, v)
            arrays |= {
                n: g.astype(ms.float32).asnumpy()
                for n, g in zip(("dq", "dk", "dv"), gradients, strict=True)
            }
        return arrays

    return Prepared(run, outputs)


def _mindspore_unsupported(case: Case, *, reference: bool) -> list[str]:
    reasons = []
    if case.threads != 2:
        reasons.append("the number of threads is set for the whole process")
    # A graph of plain operators was seen to hold eight copies of the scores at once.
    scores = case.batch * case.heads * case.queries * case.keys * 4e-9
    if reference and 10 * scores > 8:
        reasons.append(f"scores in memory would need over 8 GB ({scores:.1f} GB a copy)")
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
        "alibi-kernels dense avx2",
        "ours",
        "alibi_kernels.native",
        partial(_native, prune=False, isa="avx2"),
        partial(_native_unsupported, isa="avx2"),
        "fused, every tile, AVX2 only",
        unit="fma_avx2",
    ),
    Provider(
        "alibi-kernels in MindSpore (jit)",
        "ours",
        "mindspore",
        partial(_mindspore, backend="cpu", graph=True, prune=False),
        partial(_mindspore_unsupported, reference=False),
        "the dense kernel as a Custom op in a graph",
        SETTLING_CALLS,
    ),
    Provider(
        "MindSpore pure ops (jit)",
        "reference",
        "mindspore",
        partial(_mindspore, backend="reference", graph=True, prune=False),
        partial(_mindspore_unsupported, reference=True),
        "scores in memory",
        SETTLING_CALLS,
    ),
    Provider(
        "MindSpore pure ops (PyNative)",
        "reference",
        "mindspore",
        partial(_mindspore, backend="reference", graph=False, prune=False),
        partial(_mindspore_unsupported, reference=True),
        "scores in memory",
    ),
]
