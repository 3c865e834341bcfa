"""Turns a kernel library into differentiable MindSpore operators.

Each operator is a pair of ahead-of-time `ops.Custom`, forward and backward, tied by `bprop`; the
operands and attributes they exchange with csrc/aot/bridge.cc are listed at the top of that file.
Shapes and types are inferred in C++, so one compiled graph serves every length.

What distinguishes two operators is fixed when they are made: a Custom takes a constant number of
inputs, so whether there are spans is part of the operator, and so are fixed slopes: an attribute,
where mixed precision cannot round them, or, for kernels that read the memory of a device, a float32
constant. Constants are not among the inputs that graphs cast, and PyNative mode casts nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import mindspore as ms
from mindspore import Tensor, ops
from mindspore._c_expression import MixedPrecisionType
from mindspore.common.api import _pynative_executor

from alibi_kernels._library import Library
from alibi_kernels.contract import Signature

# Fixed slopes, or None when they are a tensor.
Slopes = tuple[float, ...] | None
# run((q, k, v), slopes, spans, key_norms) -> results: what every backend makes of a Signature.
Run = Callable[[tuple[Tensor, ...], Any, Any, Any], Any]
Build = Callable[[Signature, Slopes], Run]


@dataclass(frozen=True)
class _Pair:
    """The two symbols of an operator in a library, and what surrounds them."""

    forward: str
    backward: str
    tensors: int  # operands before the slopes
    results: int  # of the forward


class Form(NamedTuple):
    """What the operands of an operator are: tensors, then slopes, then spans, as far as present."""

    tensors: int
    results: int  # of the forward
    slopes: bool  # whether they are an operand
    trained: bool  # whether that operand gets a gradient
    spans: bool

    @property
    def operands(self) -> int:
        return self.tensors + self.slopes + self.spans

    @property
    def differentiated(self) -> int:
        """The operands that get a gradient; they come first."""
        return self.tensors + self.trained


# name of the public function -> its operators
_PAIRS = {
    "alibi_attention": _Pair("AlibiAttentionFwd", "AlibiAttentionBwd", 3, 2),
    "alibi_attention_weights": _Pair("AlibiWeightsFwd", "AlibiWeightsBwd", 2, 1),
    "alibi_attention_packed": _Pair("AlibiPackedFwd", "AlibiPackedBwd", 1, 2),
}


# Fields of a Signature that one operator serves all values of.
NOT_DISTINGUISHING: dict[str, Any] = {
    **dict.fromkeys(("batch", "heads_q", "heads_kv", "len_q", "len_k", "head_dim", "backend")),
    "dtype": "",
    "graph": False,
}


class FullPrecision:
    """While it is active, MindSpore's mixed precision casts no input of an operator.

    Inside a cell with `.to_float(float16)`, PyNative mode casts every float input of every
    operator to float16, trained slopes and positions too. Compiled graphs cast only where a tensor
    enters a cell, so there is nothing to do for them.
    """

    def __enter__(self) -> None:
        _pynative_executor.set_mixed_precision_type(MixedPrecisionType.NOTSET)

    def __exit__(self, *_: object) -> None:
        _pynative_executor.set_mixed_precision_type(MixedPrecisionType.NOTSET, False)


def in_full_precision(run: Run) -> Run:
    """`run` for PyNative mode."""

    def guarded(tensors: tuple[Tensor, ...], slopes: Any, spans: Any, key_norms: Any) -> Any:
        with FullPrecision():
            return run(tensors, slopes, spans, key_norms)

    return guarded


class Operator(ops.Custom):
    """An operator of a kernel library."""

    def __init__(self, library: str, symbol: str, attributes: dict[str, Any]) -> None:
        super().__init__(f"{library}:{symbol}", None, None, "aot")
        # The last two are what shape inference in C++ needs.
        for name, value in {**attributes, "reg_op_name": symbol, "multi_output": True}.items():
            self.add_prim_attr(name, value)

    def __call__(self, *operands: Tensor) -> Any:
        # Reached in PyNative mode only. The backward runs outside `in_full_precision`.
        with FullPrecision():
            return super().__call__(*operands)


def build(
    library: Library,
    signature: Signature,
    slopes: Slopes,
    reference: Build,
    on_device: bool = False,
) -> Run:
    """The operator of `library` for calls like `signature`.

    slopes: fixed slopes, or None when they are a tensor. reference: makes the same call in
    differentiable operators; gradients of gradients come from there. on_device: whether the kernels
    read device memory.
    """
    plain = replace(signature, **NOT_DISTINGUISHING)
    return _build(library.path, plain, slopes, reference, on_device)


@lru_cache(maxsize=1024)
def _build(
    library: str, signature: Signature, slopes: Slopes, reference: Build, on_device: bool
) -> Run:
    pair = _PAIRS[signature.op]
    trained, has_spans, single = slopes is None, signature.spans, pair.results == 1
    form = Form(pair.tensors, pair.results, trained or on_device, trained, has_spans)
    has_slopes, floats, known = form.slopes, form.differentiated, form.operands  # for graphs
    has_norms = signature.key_norms and not on_device  # which only the CPU kernels read
    constant = Tensor(slopes, ms.float32) if on_device and not trained else None
    attributes = _attributes(signature, slopes, on_device)
    forward = Operator(library, pair.forward, attributes)
    backward = Operator(library, pair.backward, attributes)

    def run(tensors, slopes, spans, key_norms):
        operands = tensors
        if has_slopes:
            operands = (*operands, slopes if constant is None else constant)
        if has_spans:
            operands = (*operands, spans)
        if has_norms:
            operands = (*operands, key_norms)
        results = forward(*operands)
        return results[0] if single else results

    def bprop(args):
        inputs, results, gradients = args[:-2], args[-2], args[-1]
        grads = backward(*inputs[:known], *results, *gradients)
        return (*grads, *[ops.zeros_like(x) for x in inputs[floats:]])

    forward.bprop = _with_arity(known + has_norms + 2, bprop)
    again = bprop_of_backward(form, reference(signature, slopes))
    backward.bprop = _with_arity(known + 2 * form.results + 2, again)
    return run


def bprop_of_backward(form: Form, reference: Run) -> Callable[[tuple[Any, ...]], Any]:
    """Gradients of gradients: the backward operator differentiated as if it were the reference's.

    The operands of a backward are (operands of the forward, its results, their gradients). Its
    value depends on the first and the last, the results being what the forward makes of the first:
    it is the gradient of `inner`, and its own gradient is that of `outer`. Both are taken in a
    compiled graph, also in PyNative mode, where MindSpore 2.10 gets second derivatives of some
    built-in operators wrong.
    """
    floats, operands = form.differentiated, form.operands
    tensors, trained, has_spans, single = form.tensors, form.trained, form.spans, form.results == 1
    count = operands + form.results  # arguments of inner: operands, gradients of the results
    wanted = tuple(range(floats)) + tuple(range(operands, count))

    def inner(args):
        slopes = args[tensors] if trained else None
        spans = args[operands - 1] if has_spans else None
        results = reference(args[:tensors], slopes, spans, None)
        return dot((results,) if single else results, args[operands:])

    inner_gradient = ms.grad(_with_arity(count, inner), tuple(range(floats)))

    def outer(args):
        return dot(inner_gradient(*args[:count]), args[count:])

    outer_gradient = ms.grad(_with_arity(count + floats, outer), wanted)
    if not hasattr(outer_gradient, "__wrapped_by_jit__"):  # in graph mode MindSpore has done it
        outer_gradient = ms.jit(outer_gradient)

    def dot(xs, ys):
        total = ops.zeros((), ms.float32)
        for i in range(len(xs)):
            total = total + (xs[i].astype(ms.float32) * ys[i].astype(ms.float32)).sum()
        return total

    def bprop(args):
        inputs, cotangents = args[:-2], args[-1]
        results = inputs[operands:count]
        arguments = inputs[:operands] + inputs[count:] + cotangents
        # A graph drops the gradient of what it knows to be constant; depend hides that.
        grads = outer_gradient(*[ops.depend(x, cotangents[0]) for x in arguments])
        zeros = [ops.zeros_like(x) for x in inputs[floats:operands] + results]
        return (*grads[:floats], *zeros, *grads[floats:])

    return bprop


def _with_arity(count: int, inner: Callable[[tuple[Any, ...]], Any]) -> Callable[..., Any]:
    """inner, which takes a tuple, as a function of `count` parameters, 3 to 11.

    MindSpore differentiates only functions whose parameters are written out.
    """

    def f3(a, b, c):
        return inner((a, b, c))

    def f4(a, b, c, d):
        return inner((a, b, c, d))

    def f5(a, b, c, d, e):
        return inner((a, b, c, d, e))

    def f6(a, b, c, d, e, f):
        return inner((a, b, c, d, e, f))

    def f7(a, b, c, d, e, f, g):
        return inner((a, b, c, d, e, f, g))

    def f8(a, b, c, d, e, f, g, h):
        return inner((a, b, c, d, e, f, g, h))

    def f9(a, b, c, d, e, f, g, h, i):
        return inner((a, b, c, d, e, f, g, h, i))

    def f10(a, b, c, d, e, f, g, h, i, j):
        return inner((a, b, c, d, e, f, g, h, i, j))

    def f11(a, b, c, d, e, f, g, h, i, j, k):
        return inner((a, b, c, d, e, f, g, h, i, j, k))

    functions: tuple[Callable[..., Any], ...] = (f3, f4, f5, f6, f7, f8, f9, f10, f11)
    return functions[count - 3]


def _attributes(signature: Signature, slopes: Slopes, on_device: bool) -> dict[str, Any]:
    """What csrc/aot/bridge.cc reads. No scale: head_dim ** -0.5, once head_dim is known."""
    attributes = {
        "scale": signature.scale,
        "causal": signature.causal,
        "bias": signature.bias,
        "input_layout": signature.input_layout,
        "prune": signature.prune,
        "order": signature.order,
        "has_spans": signature.spans,
        "has_key_norms": (signature.key_norms and not on_device) or None,
        "slopes": None if slopes is None or on_device else list(slopes),
        "fixed_slopes": slopes is not None if on_device else None,
    }
    return {name: value for name, value in attributes.items() if value is not None}
