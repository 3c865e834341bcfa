"""key_norms: what a cache keeps beside its keys, so that pruned decode steps leave far ones unread.

On the CPU it is a kernel (csrc/alibi_cache.h); elsewhere, and under ALIBI_BACKEND=reference, the
same formula in MindSpore's operators. As in ops.py, the body of the public function runs as Python
or is compiled, and `_planner` is what happens in Python either way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from alibi_kernels import contract, custom, norms_contract, registry, rows
from alibi_kernels.forms import form, require_tensor, spec
from alibi_kernels.norms_contract import NORM_KEYS

# raised(k, start [B] int32, norms) -> norms, raised
Raise = Callable[[Tensor, Tensor, Tensor], Tensor]
_OP = "key_norms"


def key_norms(
    k: Tensor,
    *,
    start: int | Tensor = 0,
    norms: Tensor | None = None,
    input_layout: str = "BNSD",
) -> Tensor:
    r"""The largest norm of each 16 keys, for alibi_attention(key_norms=...).

    .. math:: norms_{bht} = \max_j |k_{bhj}|, \qquad 16 t \le j < 16 t + 16

    A cache keeps them beside its keys and has them raised by all that is written to it. They remain
    upper bounds, whatever is overwritten, which is all that pruning needs. No gradient flows back.

    Args:
        k (Tensor): [B, Hkv, S, D] ("BNSD") or [B, S, Hkv, D] ("BSND"); float32, float16 or
            bfloat16. Keys that stand at the positions from `start` on.
        start (int or Tensor): position of the first of them, or [B] int32, one per batch item,
            which lets one compiled graph serve every step; spans[:, 2] where queries and keys are
            those of the same tokens. Default: 0.
        norms (Tensor): [B, Hkv, blocks] float32 of the keys so far, at least as many blocks as
            the keys reach. Default: None, which is none, and no more blocks than needed.
        input_layout (str): "BNSD" or "BSND". Default: "BNSD".

    Returns:
        Tensor, [B, Hkv, blocks] float32: `norms` raised, which itself stays as it is. With norms
        None there are ceil((start + S) / 16) blocks.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes do not fit together, or a key stands where norms have no block. The
            values of a start that is a Tensor are checked in PyNative mode; in a compiled graph the
            kernel refuses bad ones with a RuntimeError.

    Supported Platforms:
        ``CPU`` as a kernel; ``GPU`` ``Ascend`` as MindSpore's operators

    Source: Train Short, Test Long (arXiv 2108.12409); the bound is Rule D of docs/maths.md.
    """
    run = _planner(form(k), start, form(norms), input_layout)
    return run(k, start, norms)


class _Plan(NamedTuple):
    """How a call is run."""

    run: Raise
    sizes: Any  # batch, heads, length and head_dim of k; None where unknown
    first: int | None  # the start; None when it is a tensor
    blocks: int | None  # of the result


def _plan(k: tuple[Any, ...], start: Any, norms: tuple[Any, ...], layout: str) -> _Plan:
    """The plan of a call; TypeError or ValueError if it breaks a rule."""
    require_tensor("k", k, op=_OP)
    require_tensor("norms", norms, op=_OP, optional=True)
    contract.check_choice("input_layout", layout, contract.LAYOUTS, op=_OP)
    keys, kept = spec(*k[1:]), spec(*norms[1:]) if norms[0] else None
    sizes = norms_contract.check_keys(keys, layout, op=_OP)
    first = None
    if isinstance(start, Tensor):
        starts = spec(start.shape, start.dtype)
        norms_contract.check_starts(starts, sizes.batch, kept is not None, op=_OP)
    else:
        first = norms_contract.check_start(start, op=_OP)
    blocks = None
    if sizes.length is not None:
        blocks = norms_contract.blocks((first or 0) + sizes.length)
    if kept is not None:
        norms_contract.check_norms(kept, sizes.batch, sizes.heads, blocks, op=_OP)
        blocks = kept.shape[2] if len(kept.shape) == 3 else None
    run = _raise(layout, rows.device_target(), os.environ.get("ALIBI_BACKEND"))
    return _Plan(run, sizes, first, blocks)


@lru_cache(maxsize=64)
def _raise(layout: str, device: str, environment: str | None) -> Raise:
    """The kernel, or the operators that do the same; `environment` is part of the key only."""
    path = registry.cpu_kernels(_OP) if device == "CPU" else None
    return _plain(layout) if path is None else _kernel(path, layout)


def _kernel(path: str, layout: str) -> Raise:
    operator = custom.Operator(path, "AlibiKeyNorms", {"input_layout": layout})

    def bprop(k, start, norms, out, dout):
        return ops.zeros_like(k), ops.zeros_like(start), ops.zeros_like(norms)

    def run(k, start, norms):
        return operator(k, start, norms)[0]

    operator.bprop = bprop
    return run


def _plain(layout: str) -> Raise:
    def run(k, start, norms):
        k = ops.stop_gradient(k).astype(ms.float32)
        length = ops.sqrt((k * k).sum(-1))
        length = length if layout == "BNSD" else length.transpose(0, 2, 1)
        length = ops.where(length == length, length, float("inf"))  # a maximum may pass over NaN
        batch, heads, keys = length.shape
        block = (start.reshape(-1, 1, 1) + _up_to(keys)) // NORM_KEYS
        b, h = _up_to(batch).reshape(-1, 1, 1), _up_to(heads).reshape(1, -1, 1)
        places = [ops.broadcast_to(x, (batch, heads, keys)) for x in (b, h, block)]
        return ops.tensor_scatter_max(ops.stop_gradient(norms), ops.stack(places, -1), length)

    return run


def _up_to(count: int) -> Tensor:
    return ops.arange(count).astype(ms.int32)


def _plan_in_graph(
    k: tuple[Any, ...], start: Any, norms: tuple[Any, ...], layout: str
) -> Callable[[Tensor, Any, Any], Tensor]:
    plan = _plan(k, start, norms, layout)
    raised, first, has_norms = plan.run, plan.first, norms[0]
    heads, length = (1, 2) if layout == "BNSD" else (2, 1)

    def run(k, start, norms):
        if first is not None:
            start = ops.full((k.shape[0],), first, dtype=ms.int32)
        if not has_norms:
            blocks = (first + k.shape[length] + NORM_KEYS - 1) // NORM_KEYS
            norms = ops.zeros((k.shape[0], k.shape[heads], blocks), ms.float32)
        return raised(k, start, norms)

    return run


class _Planner(ms.constexpr(_plan_in_graph, get_instance=False, check=False)):  # type: ignore[misc]
    """A compile-time constant in graphs, where the call operator below is not used."""

    def __call__(
        self, k: tuple[Any, ...], start: Any, norms: tuple[Any, ...], layout: str
    ) -> Callable[[Tensor, Any, Any], Tensor]:
        plan = _plan(k, start, norms, layout)
        (batch, heads, length, _), blocks, table = plan.sizes, plan.blocks, None
        assert blocks is not None, "every size is known here"
        if plan.first is None:
            norms_contract.check_positions(start.asnumpy().tolist(), length, blocks, op=_OP)
            first = start
        else:
            first = Tensor(np.full(batch, plan.first, np.int32))
        if not norms[0]:
            table = Tensor(np.zeros((batch, heads, blocks), np.float32))

        def run(k: Tensor, _: Any, norms: Any) -> Tensor:
            with custom.FullPrecision():
                return plan.run(k, first, norms if table is None else table)

        return run


_planner = _Planner()
