"""What the rows of the registry are made of: reasons against a call, how to build and describe it.

A function of reasons returns why its row cannot run a call, in words that explain(), errors and
test skips print; an empty list means that it can.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mindspore as ms
from mindspore import Tensor

from alibi_kernels import _cann, _library, ascend, custom, reference
from alibi_kernels.contract import DTYPES, Signature
from alibi_kernels.custom import Run, Slopes

# ALIBI_MAX_HEAD_DIM of csrc/alibi_attention.h, kMaxHeadDim of csrc/ascend/tiling.h.
MAX_HEAD_DIM = 256
# kMaxRowStride of csrc/ascend/tiling.h: elements from one row to the next.
_MAX_ROW_STRIDE = 65535
# What speed_fusion_attention takes: field of a Signature -> (largest value, what it must divide).
_BUILTIN_SIZES = {
    "batch": (2048, 1),
    "heads_q": (256, 1),
    "len_q": (524288, 1),
    "head_dim": (512, 16),
}
_HALVES = ("float16", "bfloat16")


def device_target() -> str:
    """ "CPU", "GPU" or "Ascend": where MindSpore runs operators."""
    return ms.get_context("device_target")


def cpu_library() -> tuple[_library.Library | None, list[str]]:
    """The CPU kernels, and why they cannot run here, whatever the call."""
    library, reasons = _load("cpu")
    if library is not None and not library.build.get("selected"):
        reasons.append(
            "it has no instruction set for this CPU, or not the one that ALIBI_CPU_ISA names"
        )
    return library, reasons


def cpu_reasons(signature: Signature) -> list[str]:
    return [*cpu_library()[1], *wrong_device("CPU"), *_wide_heads(signature)]


def cuda_reasons(signature: Signature) -> list[str]:
    library, reasons = _load("cuda")
    reasons += wrong_device("GPU")
    if library is not None and not reasons:
        # Asked only where MindSpore uses a GPU: the question starts the driver.
        error = _library.device_error(library, DTYPES.index(signature.dtype))
        reasons += [f"the library cannot use the GPU ({error})"] if error else []
    return [*reasons, *_wide_heads(signature)]


def ascend_reasons(signature: Signature) -> list[str]:
    reasons = [*wrong_device("Ascend"), *_op_reasons(ascend.PAIRS[signature.op])]
    reasons += [*_ascend_reasons(signature), *_wide_heads(signature)]
    heads, dim = signature.heads_q or 0, signature.head_dim or 0
    if signature.input_layout == "BSND" and heads * dim > _MAX_ROW_STRIDE:
        reasons.append(
            f"heads * head_dim is {heads * dim}, and layout BSND takes at most {_MAX_ROW_STRIDE}"
        )
    return reasons


def ascend_builtin_reasons(signature: Signature) -> list[str]:
    s = signature
    against = (
        (s.op == "alibi_attention_weights", "it does not return the weights"),
        (s.graph, "it runs in PyNative mode only, and this call is compiled into a graph"),
        (not s.fixed_slopes, "slopes are a tensor, and it has no gradient for them"),
        (s.spans, "it takes no spans"),
        (s.bias != "symmetric", f'bias is "{s.bias}", and it knows "symmetric" only'),
        (s.len_q != s.len_k, f"q has length {s.len_q} and k {s.len_k}, and it needs them equal"),
    )
    reasons = wrong_device("Ascend") + [text for holds, text in against if holds]
    reasons += _ascend_reasons(signature)
    for name, (largest, multiple) in _BUILTIN_SIZES.items():
        size = getattr(signature, name) or 0
        if size > largest:
            reasons.append(f"{name} is {size}, and it takes at most {largest}")
        if size % multiple:
            reasons.append(f"{name} is {size}, and it takes multiples of {multiple}")
    return reasons


def _load(name: str) -> tuple[_library.Library | None, list[str]]:
    try:
        return _library.load(name), []
    except _library.LibraryError as error:
        return None, [str(error)]


def wrong_device(device: str) -> list[str]:
    """Why kernels for a device cannot run where MindSpore runs operators."""
    target = device_target()
    return [] if target == device else [f"it runs on device {device}, but the device is {target}"]


def _wide_heads(signature: Signature) -> list[str]:
    dim = signature.head_dim
    if dim is None or dim <= MAX_HEAD_DIM:
        return []
    return [f"head_dim is {dim}, and the kernels take at most {MAX_HEAD_DIM}"]


def _op_reasons(names: Iterable[str]) -> list[str]:
    """Why an op of the package cannot be called; what is missing for one is missing for all."""
    try:
        for name in names:
            _cann.header_of(name)
    except _cann.PackageError as error:
        return [str(error)]
    missing = _cann.compiler_reason()
    return [missing] if missing else []


def _ascend_reasons(signature: Signature) -> list[str]:
    """What both rows for Ascend refuse."""
    s = signature
    reasons = []
    if s.dtype not in _HALVES:
        reasons.append(f"dtype is {s.dtype}, and it takes float16 and bfloat16")
    sizes = (s.batch, s.heads_q, s.len_q, s.len_k, s.head_dim)
    if None in sizes:
        reasons.append("a graph with dynamic shapes; it needs every size when it is compiled")
    elif 0 in sizes:
        reasons.append("a tensor is empty")
    return reasons


def build_cpu(signature: Signature, slopes: Slopes) -> Run:
    return custom.build(_library.load("cpu"), signature, slopes, build_reference)


def build_cuda(signature: Signature, slopes: Slopes) -> Run:
    library = _library.load("cuda")
    return custom.build(library, signature, slopes, build_reference, on_device=True)


def build_ascend(signature: Signature, slopes: Slopes) -> Run:
    return ascend.build(signature, slopes, build_reference)


def build_ascend_builtin(signature: Signature, slopes: Slopes) -> Run:
    assert slopes is not None, "a tensor of slopes is a reason against this row"
    return ascend.build_builtin(signature, slopes)


def build_reference(signature: Signature, slopes: Slopes) -> Run:
    """Every operator in terms of reference.py."""
    fixed = None if slopes is None else Tensor(slopes, ms.float32)
    scale, order, weights = signature.scale, signature.order, "weights" in signature.op
    thirds = [] if order is None else [order.index(name) for name in "qkv"]
    options: dict[str, Any] = {
        "causal": signature.causal,
        "bias": signature.bias,
        "input_layout": signature.input_layout,
    }

    def run(tensors, slopes, spans, key_norms):
        s = slopes if fixed is None else fixed
        z = tensors[0].shape[-1] ** -0.5 if scale is None else scale
        if weights:
            q, k = tensors
            return reference.attention_weights(q, k, s, spans, scale=z, **options)
        if order is None:
            q, k, v = tensors
        else:
            # Through float32: the CPU cannot differentiate the indexing of bfloat16.
            packed, dtype = tensors[0].astype(ms.float32), tensors[0].dtype
            q, k, v = [packed[:, :, i].astype(dtype) for i in thirds]
        return reference.attention(q, k, v, s, spans, scale=z, **options)

    return run


def describe_cpu() -> str:
    return f"cpu-{_library.load('cpu').build['selected']}"


def describe_cuda() -> str:
    return ", ".join(_library.load("cuda").build["implementations"])
