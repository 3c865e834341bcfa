"""The one table of backends: which can run a call, which does, and why not the others.

Adding a backend is adding a row. Rows stand best first; the reference runs everything and stands
last.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import mindspore as ms
from mindspore import Tensor

from alibi_kernels import _library, contract, custom, reference
from alibi_kernels.contract import Signature
from alibi_kernels.custom import Run, Slopes

_log = logging.getLogger("alibi_kernels")

# ALIBI_MAX_HEAD_DIM of csrc/alibi_attention.h.
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Backend:
    """A row of the table."""

    name: str
    library: str | None  # _library.load(library) finds its kernels
    not_supported_reasons: Callable[[Signature], list[str]]  # empty: it can run the call
    build: Callable[[Signature, Slopes], Run]
    describe: Callable[[], str]  # what would run, such as "cpu-avx512"


def _library_reasons(name: str, device: str, signature: Signature) -> list[str]:
    """What every kernel library has in common."""
    reasons = []
    try:
        library = _library.load(name)
        if not library.build.get("selected"):
            reasons.append(
                "it has no instruction set for this CPU, or not the one that ALIBI_CPU_ISA names"
            )
    except _library.LibraryError as error:
        reasons.append(str(error))
    target = ms.get_context("device_target")
    if target != device:
        reasons.append(f"it runs on device {device}, but the device is {target}")
    if signature.head_dim is not None and signature.head_dim > MAX_HEAD_DIM:
        reasons.append(
            f"head_dim is {signature.head_dim}, and the kernels take at most {MAX_HEAD_DIM}"
        )
    return reasons


def _cpu_reasons(signature: Signature) -> list[str]:
    return _library_reasons("cpu", "CPU", signature)


def _build_cpu(signature: Signature, slopes: Slopes) -> Run:
    return custom.build(_library.load("cpu"), signature, slopes, _build_reference)


def _describe_cpu() -> str:
    return f"cpu-{_library.load('cpu').build['selected']}"


def _build_reference(signature: Signature, slopes: Slopes) -> Run:
    """Every operator in terms of reference.py."""
    fixed = None if slopes is None else Tensor(slopes, ms.float32)
    scale, order, weights = signature.scale, signature.order, "weights" in signature.op
    thirds = [] if order is None else [order.index(name) for name in "qkv"]
    options: dict[str, Any] = {
        "causal": signature.causal,
        "bias": signature.bias,
        "input_layout": signature.input_layout,
    }

    def run(tensors, slopes, spans):
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


BACKENDS = (
    Backend("cpu", "cpu", _cpu_reasons, _build_cpu, _describe_cpu),
    Backend("reference", None, lambda _: [], _build_reference, lambda: "reference"),
)


class Plan(NamedTuple):
    """The two forms in which a call is run."""

    compiled: Run  # in a graph
    eager: Run  # in PyNative mode


def plan(signature: Signature, slopes: Slopes) -> Plan:
    """What runs a call; slopes are its fixed slopes, or None when they are a tensor."""
    run = select(signature).build(signature, slopes)
    return Plan(run, custom.in_full_precision(run))


def select(signature: Signature) -> Backend:
    """The backend that runs a call: the one asked for, or the first that can.

    Asked for by the call, or else by the environment variable ALIBI_BACKEND.

    Raises:
        ValueError: ALIBI_BACKEND is not the name of a backend.
        RuntimeError: the backend that was asked for cannot run the call; the text says why.
    """
    wanted = signature.backend or environment_choice(signature.op)
    rejected: dict[str, list[str]] = {}
    for row in BACKENDS:
        if wanted in (None, row.name):
            reasons = row.not_supported_reasons(signature)
            if not reasons:
                _log_fallback(signature.op, row.name, rejected)
                return row
            rejected[row.name] = reasons
    reasons = rejected.get(str(wanted), ["this version does not have it"])
    raise contract.error("backend.cannot", signature.op, backend=wanted, reasons="; ".join(reasons))


def environment_choice(op: str = "alibi_kernels") -> str | None:
    """The backend that ALIBI_BACKEND asks for; None if it is unset or empty."""
    choice = os.environ.get("ALIBI_BACKEND") or None
    if choice is not None:
        contract.check_choice("backend", choice, contract.BACKENDS, op=f"{op}: ALIBI_BACKEND")
    return choice


def _log_fallback(op: str, chosen: str, rejected: dict[str, list[str]]) -> None:
    if rejected:
        why = "; ".join(f"not {name}: {', '.join(reasons)}" for name, reasons in rejected.items())
        _warn_once(f"{op} runs on backend {chosen} ({why})")


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def explain(q: Any, k: Any, v: Any, slopes: Any, *, spans: Any = None, **options: Any) -> str:
    """Which backend would run alibi_attention on these arguments, and why not the others.

    Args:
        q, k, v, slopes, spans: as in alibi_attention; tensors or arrays, read for shape and dtype.
        **options: the other arguments of alibi_attention.

    Returns:
        str, one line per backend, best first.

    Raises:
        TypeError, ValueError: what alibi_attention would raise.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``
    """
    fixed = not isinstance(slopes, Tensor)
    slopes = (
        contract.Spec((len(contract.fixed_slopes(slopes)),), "float32")
        if fixed
        else contract.spec(slopes)
    )
    spans = None if spans is None else contract.spec(spans)
    q, k, v = (contract.spec(x) for x in (q, k, v))
    return explain_signature(
        contract.validate_attention(q, k, v, slopes, spans, fixed_slopes=fixed, **options)
    )


def explain_signature(signature: Signature) -> str:
    """The text of explain(), for any operator."""
    wanted = signature.backend or environment_choice(signature.op)
    lines, chosen = [], False
    for row in BACKENDS:
        reasons = row.not_supported_reasons(signature)
        if wanted not in (None, row.name):
            state = f"not asked for (backend {wanted} is)"
        elif reasons:
            state = "cannot run it: " + "; ".join(reasons)
        elif chosen:
            state = "could run it too"
        else:
            state, chosen = f"runs it, as {row.describe()}", True
        lines.append(f"{row.name}: {state}")
    if wanted is not None and wanted not in [row.name for row in BACKENDS]:
        lines.append(f"{wanted}: asked for, but this version does not have it")
    return "\n".join(lines)
