"""The one table of backends: which can run a call, which does, and why not the others.

Adding a backend is adding a row. Rows stand best first; the reference runs everything and stands
last.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import mindspore as ms
from mindspore import Tensor

from alibi_kernels import contract, custom, norms_contract, rows
from alibi_kernels.contract import Signature
from alibi_kernels.custom import Run, Slopes

_log = logging.getLogger("alibi_kernels")


@dataclass(frozen=True)
class Backend:
    """A row of the table."""

    name: str
    device: str | None  # the device target that it runs on; None: any
    library: str | None  # _library.load(library) finds its kernels
    not_supported_reasons: Callable[[Signature], list[str]]  # empty: it can run the call
    build: Callable[[Signature, Slopes], Run]
    describe: Callable[[], str]  # what would run, such as "cpu-avx512"


BACKENDS = (
    Backend("cpu", "CPU", "cpu", rows.cpu_reasons, rows.build_cpu, rows.describe_cpu),
    Backend("cuda", "GPU", "cuda", rows.cuda_reasons, rows.build_cuda, rows.describe_cuda),
    Backend("ascend", "Ascend", None, rows.ascend_reasons, rows.build_ascend, lambda: "ascend"),
    Backend(
        "ascend_builtin",
        "Ascend",
        None,
        rows.ascend_builtin_reasons,
        rows.build_ascend_builtin,
        lambda: "ops.speed_fusion_attention",
    ),
    Backend("reference", None, None, lambda _: [], rows.build_reference, lambda: "reference"),
)


def plan(signature: Signature, slopes: Slopes) -> Run:
    """What runs a call; slopes are its fixed slopes, or None when they are a tensor."""
    run = select(signature).build(signature, slopes)
    return run if signature.graph else custom.in_full_precision(run)


def select(signature: Signature) -> Backend:
    """The backend that runs a call: the one asked for, or the first that can.

    Asked for by the call, or else by the environment variable ALIBI_BACKEND.

    Raises:
        ValueError: ALIBI_BACKEND is not the name of a backend.
        RuntimeError: the backend that was asked for cannot run the call; the text says why.
    """
    wanted = signature.backend or environment_choice(signature.op)
    rejected: dict[Backend, list[str]] = {}
    for row in BACKENDS:
        if wanted in (None, row.name):
            reasons = row.not_supported_reasons(signature)
            if not reasons:
                _log_fallback(signature.op, row, rejected)
                return row
            rejected[row] = reasons
    (reasons,) = rejected.values()  # of the one that was asked for: the reference has none
    raise contract.error("backend.cannot", signature.op, backend=wanted, reasons="; ".join(reasons))


def environment_choice(op: str = "alibi_kernels") -> str | None:
    """The backend that ALIBI_BACKEND asks for; None if it is unset or empty."""
    choice = os.environ.get("ALIBI_BACKEND") or None
    if choice is not None:
        contract.check_choice("backend", choice, contract.BACKENDS, op=f"{op}: ALIBI_BACKEND")
    return choice


def _log_fallback(op: str, chosen: Backend, rejected: dict[Backend, list[str]]) -> None:
    """Says once why not a better row; that rows of other devices do not run here is no news."""
    better = {row.name: why for row, why in rejected.items() if row.device == rows.device_target()}
    if better:
        text = "; ".join(f"not {name}: {', '.join(reasons)}" for name, reasons in better.items())
        warn_once(f"{op} runs on backend {chosen.name} ({text})")


def cpu_kernels(op: str) -> str | None:
    """The path of the CPU library for an operator whose alternative is MindSpore's own operators;
    None where it cannot run, or is not asked for."""
    if environment_choice(op) not in (None, "cpu"):
        return None
    library, reasons = rows.cpu_library()
    if library is not None and not reasons:
        return library.path
    warn_once(f"{op} runs on MindSpore's operators (not cpu: {'; '.join(reasons)})")
    return None


@cache
def warn_once(message: str) -> None:
    _log.warning(message)


def explain(
    q: Any,
    k: Any,
    v: Any,
    slopes: Any,
    *,
    spans: Any = None,
    key_norms: Any = None,
    **options: Any,
) -> str:
    """Which backend would run alibi_attention on these arguments, and why not the others.

    The call is taken as one in the mode that MindSpore is set to, PyNative or graph.

    Args:
        q, k, v, slopes, spans, key_norms: as in alibi_attention; tensors or arrays, read for shape
            and dtype.
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
    spans = None if spans is None else _spec("spans", spans)
    q, k, v = (_spec(name, x) for name, x in (("q", q), ("k", k), ("v", v)))
    signature = contract.validate_attention(q, k, v, slopes, spans, fixed_slopes=fixed, **options)
    if key_norms is not None:
        norms_contract.check_kept(_spec("key_norms", key_norms), signature)
    return explain_signature(replace(signature, graph=ms.get_context("mode") == ms.GRAPH_MODE))


def _spec(name: str, x: Any) -> contract.Spec:
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        fields = {"expected": "mindspore.Tensor or numpy.ndarray", "got": contract.describe(x)}
        raise contract.error("tensor.type", "alibi_attention", name=name, **fields)
    return contract.spec(x)


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
    return "\n".join(lines)
