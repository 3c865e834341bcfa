"""The public operators: check the arguments, have a backend chosen, call it.

The bodies of the public functions run as Python in PyNative mode and are compiled by MindSpore in
graphs. All that must happen in Python in both cases is behind `_planner`: in PyNative mode it is an
ordinary call; in a graph it runs once per compilation, where dynamic sizes are None and slopes and
spans are placeholders with a shape and a dtype but no values. What it returns is called, or
compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from alibi_kernels import contract, norms_contract, registry
from alibi_kernels import slopes as _slopes
from alibi_kernels.contract import Signature, Spec
from alibi_kernels.forms import form, require_tensor, spec
from alibi_kernels.registry import Run

_slopes.compute = ms.constexpr(_slopes.compute, name="alibi_slopes", check=False)

# public function -> what validates its arguments, and the names of its tensors.
_OPERATORS: dict[str, tuple[Callable[..., Signature], tuple[str, ...]]] = {
    "alibi_attention": (contract.validate_attention, ("q", "k", "v")),
    "alibi_attention_packed": (contract.validate_packed, ("packed",)),
    "alibi_attention_weights": (contract.validate_weights, ("q", "k")),
}


def alibi_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Any,
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Tensor | None = None,
    key_norms: Tensor | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    r"""Attention with linear biases, fused: the score matrix never exists in memory.

    .. math::
        s_{ij} = scale \cdot \langle q_i, k_j \rangle + bias(p_i, j), \qquad
        out_i = \sum_j \mathrm{softmax}_j(s_{ij}) \, v_j, \qquad
        lse_i = \log \sum_j e^{s_{ij}}

    with :math:`p_i = q\_start + i`, over the keys :math:`kv\_start \le j < kv\_end` and, if
    causal, :math:`j \le p_i`. The bias is :math:`-slope_h |p_i - j|` ("symmetric") or
    :math:`slope_h (j - p_i)` ("signed"); they differ only for later keys. A row that may see no
    key gives out 0 and lse -inf. Differentiable in q, k, v and slopes, also through lse.

    Args:
        q (Tensor): [B, Hq, Sq, D] ("BNSD") or [B, Sq, Hq, D] ("BSND"); float32, float16 or
            bfloat16. Sums are accumulated in float32.
        k, v (Tensor): the same layout and dtype with Hkv heads, which divide Hq (query head h
            reads head h / (Hq / Hkv)), and length Sk.
        slopes: [Hq], one per query head, in logits per position of distance. Fixed: a NumPy array,
            tuple or list, such as alibi_slopes(Hq). Trained: a float32 Tensor or Parameter; in a
            compiled float16 cell keep the Parameter in a TrainedSlopes cell.
        scale (float): factor of the dot products. Default: None, which is D ** -0.5.
        causal (bool): whether a query sees only keys up to its own position. Default: True.
        bias (str): "symmetric" or "signed". Default: "symmetric".
        spans (Tensor): [B, 3] int32, per batch item (kv_start, kv_end, q_start) in positions on
            the key axis: padding, caches and chunks without a mask. Default: None, which is
            (0, Sk, Sk - Sq).
        key_norms (Tensor): [B, Hkv, ceil(Sk / 16)] float32, what key_norms() made of k. With them
            a pruned call on the CPU, a decode step above all, reads no keys that do not matter;
            without them it reads every key, and the other backends do so either way. They must be
            at least the norms of the allowed keys. They get no gradient. Default: None.
        input_layout (str): "BNSD" or "BSND". Default: "BNSD".
        prune (bool): skip keys whose weights provably vanish in float32 rounding. Default: True.
        return_lse (bool): return lse too. Default: False.
        backend (str): "cpu", "cuda", "ascend", "ascend_builtin" or "reference". Default: None, the
            best that can run the call; explain() says which.

    Returns:
        Tensor like q; with return_lse a tuple with lse, [B, Hq, Sq] float32, natural logarithm.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes do not fit together, or a value is out of range. The values of spans and
            of slopes that are no Parameter are checked in PyNative mode; in a compiled graph the
            CPU kernels refuse bad spans with a RuntimeError, while those of "cuda" and "ascend"
            clamp them to the keys there are.
        RuntimeError: `backend` cannot run the call.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source: Train Short, Test Long (arXiv 2108.12409).
    """
    options = (scale, causal, bias, input_layout, prune, return_lse, backend)
    forms, norms = (form(q), form(k), form(v)), form(key_norms)
    run = _planner("alibi_attention", forms, slopes, spans, norms, options, None)
    out, lse = run((q, k, v), slopes, spans, key_norms)
    if return_lse:
        return out, lse
    return out


def alibi_attention_packed(
    packed: Tensor,
    slopes: Any,
    *,
    order: str = "qkv",
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Tensor | None = None,
    prune: bool = True,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    r"""alibi_attention straight from a fused projection, without splitting or copying it.

    .. math:: q, k, v = packed[:, :, order.index("q")], \ldots \qquad
        out = alibi\_attention(q, k, v)

    Args:
        packed (Tensor): [B, S, 3, H, D], the reshaped output of one key-query-value projection;
            float32, float16 or bfloat16.
        order (str): how the three lie on axis 2, a permutation of "qkv". Default: "qkv".
        slopes, scale, causal, bias, spans, prune, return_lse, backend: as in alibi_attention.

    Returns:
        Tensor, [B, S, H, D]; with return_lse a tuple with lse, [B, H, S] float32. The gradient is
        one tensor like packed.

    Raises:
        TypeError, ValueError, RuntimeError: as alibi_attention.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source: Train Short, Test Long (arXiv 2108.12409).
    """
    options = (scale, causal, bias, "BSND", prune, return_lse, backend)
    forms = (form(packed),)
    run = _planner("alibi_attention_packed", forms, slopes, spans, form(None), options, order)
    out, lse = run((packed,), slopes, spans, None)
    if return_lse:
        return out, lse
    return out


def alibi_attention_weights(
    q: Tensor,
    k: Tensor,
    slopes: Any,
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Tensor | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    backend: str | None = None,
) -> Tensor:
    r"""The attention weights of ALiBi, as a tensor: for those who need to look at or change them.

    .. math:: p_{ij} = \mathrm{softmax}_j (scale \cdot \langle q_i, k_j \rangle + bias(p_i, j))

    over the allowed keys, 0 elsewhere and in rows that may see no key. Differentiable in q, k and
    slopes.

    Args:
        q, k, slopes, scale, causal, bias, spans, input_layout, backend: as in alibi_attention.
        prune (bool): weights that provably vanish next to float32 rounding of the row may be
            written as 0. Default: True.

    Returns:
        Tensor, [B, Hq, Sq, Sk] in either layout, dtype of q.

    Raises:
        TypeError, ValueError, RuntimeError: as alibi_attention.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source: Train Short, Test Long (arXiv 2108.12409).
    """
    options = (scale, causal, bias, input_layout, prune, False, backend)
    forms = (form(q), form(k))
    run = _planner("alibi_attention_weights", forms, slopes, spans, form(None), options, None)
    return run((q, k), slopes, spans, None)


class TrainedSlopes(nn.Cell):
    """Trained slopes that keep float32 in every mode and at every level of mixed precision.

    Calling it returns its Parameter. A compiled cell casts the Parameters it owns to its own
    precision; this cell owns the slopes and stays at float32 whatever the cell around it is set to.

    Args:
        slopes: [Hq] float32, the values to start from, such as alibi_slopes(Hq).

    Returns:
        Tensor, [Hq] float32.

    Raises:
        TypeError: slopes is not a flat sequence of numbers.
        ValueError: a slope is not a finite float32 number.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``
    """

    def __init__(self, slopes: Any) -> None:
        super().__init__()
        values = np.array(contract.fixed_slopes(slopes, op="TrainedSlopes"), np.float32)
        self.slopes = Parameter(Tensor(values), name="slopes")
        self.to_float(ms.float32)

    def _add_mixed_precision_flag(self, **flags: bool) -> None:
        """What to_float does, of this cell or one around it: float32, whatever was asked for."""
        super()._add_mixed_precision_flag(fp32=True)

    def construct(self) -> Tensor:
        # Without an operator on it, the Parameter would be resolved, and cast, by the caller.
        return self.slopes.astype(ms.float32)


class _Plan(NamedTuple):
    """How one kind of call is run."""

    run: Run
    len_k: int  # what spans are checked against; -1 in a graph of dynamic shapes
    causal: bool


def _plan(
    op: str,
    forms: tuple[Any, ...],
    slopes: Any,
    spans: Any,
    norms: tuple[Any, ...],
    options: tuple[Any, ...],
    order: Any,
    graph: bool,
) -> _Plan:
    """The plan of a call; contract.py's TypeError or ValueError if it breaks a rule."""
    for name, x in zip(_OPERATORS[op][1], forms, strict=True):
        require_tensor(name, x, op=op)
    require_tensor("key_norms", norms, op=op, optional=True)
    if spans is not None:
        contract.require_type("spans", spans, Tensor, op=op)
    arguments = (
        op,
        forms,
        None if spans is None else (spans.shape, spans.dtype),
        norms,
        order,
        graph,
        os.environ.get("ALIBI_BACKEND"),
        *options,
    )
    trained = isinstance(slopes, Tensor)
    key = (slopes.shape, slopes.dtype) if trained else _hashable(slopes)
    try:
        return _cached_plan(trained, key, *arguments)
    except TypeError:
        pass  # a broken rule, or an argument without a hash, which breaks another rule
    return _make_plan(trained, key if trained else slopes, *arguments)


def _hashable(slopes: Any) -> Any:
    if isinstance(slopes, np.ndarray) and slopes.ndim == 1:
        slopes = slopes.tolist()
    return tuple(slopes) if isinstance(slopes, list) else slopes


def _make_plan(
    trained: bool,
    slopes: Any,
    op: str,
    forms: tuple[Any, ...],
    spans: Any,
    norms: tuple[Any, ...],
    order: str | None,
    graph: bool,
    environment: str | None,  # part of the key only
    *options: Any,
) -> _Plan:
    scale, causal, bias, input_layout, prune, return_lse, backend = options
    if not isinstance(return_lse, bool):
        raise contract.error("flag.type", op, name="return_lse", got=contract.describe(return_lse))
    fixed = None if trained else contract.fixed_slopes(slopes, op=op)
    slopes_spec = spec(*slopes) if fixed is None else Spec((len(fixed),), "float32")
    signature = _OPERATORS[op][0](
        *[spec(*x[1:]) for x in forms],
        slopes_spec,
        None if spans is None else spec(*spans),
        fixed_slopes=fixed is not None,
        scale=scale,
        causal=causal,
        bias=bias,
        input_layout=input_layout,
        prune=prune,
        backend=backend,
        **({} if order is None else {"order": order}),
    )
    if norms[0]:
        norms_contract.check_kept(spec(*norms[1:]), signature)
    signature = replace(signature, key_norms=norms[0], graph=graph)
    len_k = -1 if signature.len_k is None else signature.len_k
    return _Plan(registry.plan(signature, fixed), len_k, signature.causal)


_cached_plan = lru_cache(maxsize=4096, typed=True)(_make_plan)


def _plan_in_graph(
    op: str,
    forms: tuple[Any, ...],
    slopes: Any,
    spans: Any,
    norms: tuple[Any, ...],
    options: tuple[Any, ...],
    order: Any,
) -> Run:
    return _plan(op, forms, slopes, spans, norms, options, order, True).run


class _Planner(ms.constexpr(_plan_in_graph, get_instance=False, check=False)):  # type: ignore[misc]
    """A compile-time constant in graphs, where the call operator below is not used."""

    def __call__(
        self,
        op: str,
        forms: tuple[Any, ...],
        slopes: Any,
        spans: Any,
        norms: tuple[Any, ...],
        options: tuple[Any, ...],
        order: Any,
    ) -> Run:
        plan = _plan(op, forms, slopes, spans, norms, options, order, False)
        if spans is not None:
            len_k, causal = plan.len_k, plan.causal
            contract.validate_spans_values(spans.asnumpy().tolist(), len_k, causal, op=op)
        # A Parameter is not read back at every step: its values come from training.
        if isinstance(slopes, Tensor) and not isinstance(slopes, Parameter):
            contract.validate_slopes_values(slopes.asnumpy().tolist(), op=op)
        return plan.run


_planner = _Planner()
