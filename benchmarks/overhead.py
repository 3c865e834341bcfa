"""What a call costs before and after its arithmetic: each layer of our own code on a problem so
small that the kernel itself takes microseconds.

A timed run is CALLS calls in a row: in PyNative mode a loop and one wait, in a graph one
launch of CALLS nodes that depend on each other. Times are per call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from cases import FORWARD, Case
from providers import Arrays, Prepared, Provider, as_cell, graph_mode, in_graph

CALLS = 400
CASES = [Case(FORWARD, 1, 1, 16, 16, 32)]

Call = Callable[[Any], Any]  # one tensor -> one tensor
Step = Callable[[Case, Arrays], tuple[Call, Any]]  # -> the call, and the tensor to give it

ORDER = "qkv"


def _tensors(inputs: Arrays) -> tuple[Any, Any, Any]:
    import mindspore as ms

    ms.set_device("CPU")
    q, k, v = (ms.Tensor(inputs[n]) for n in ORDER)
    return q, k, v


def _slopes(case: Case) -> tuple[float, ...]:
    return tuple(case.slopes.tolist())


def _add(case: Case, inputs: Arrays) -> tuple[Call, Any]:
    q, k, _ = _tensors(inputs)

    def call(x: Any) -> Any:  # not a lambda: MindSpore reads the source of what it compiles
        return x + k

    return call, q


def _custom(case: Case, inputs: Arrays) -> tuple[Call, Any]:
    """The operator that the registry hands out, without what stands before it."""
    from alibi_kernels import contract, registry

    q, k, v = _tensors(inputs)
    slopes = _slopes(case)
    specs = (*map(contract.spec, (q, k, v)), contract.Spec((len(slopes),), "float32"))
    signature = contract.validate_attention(*specs, fixed_slopes=True)
    operator = registry.select(signature).build(signature, slopes)

    def call(x: Any) -> Any:
        return operator((x, k, v), slopes, None, None)[0]

    return call, q


def _attention(case: Case, inputs: Arrays) -> tuple[Call, Any]:
    from alibi_kernels import alibi_attention

    q, k, v = _tensors(inputs)
    slopes = _slopes(case)

    def call(x: Any) -> Any:
        return alibi_attention(x, k, v, slopes)

    return call, q


def _packed(case: Case, inputs: Arrays) -> tuple[Call, Any]:
    import mindspore as ms

    from alibi_kernels import alibi_attention_packed

    slopes = _slopes(case)
    tensors = [np.swapaxes(inputs[n], 1, 2) for n in ORDER]
    packed = ms.Tensor(np.ascontiguousarray(np.stack(tensors, axis=2)))

    def call(x: Any) -> Any:
        return alibi_attention_packed(x, slopes, order=ORDER)

    return call, packed


def _eager(case: Case, inputs: Arrays, *, step: Step) -> Prepared:
    call, x = step(case, inputs)

    def run() -> None:
        for _ in range(CALLS):
            y = call(x)
        y.asnumpy()  # waits: calls run in the order they were made

    return Prepared(run, lambda: {"out": _as_bnsd(call(x).asnumpy(), case)})


def _in_graph(case: Case, inputs: Arrays, *, step: Step) -> Prepared:
    import mindspore as ms

    call, x = step(case, inputs)

    def chain(x: Any) -> Any:
        y = x
        for _ in range(CALLS):
            # The value is x; the dependence keeps equal calls from being merged into one.
            y = call(ms.ops.depend(x, y))
        return y

    graph = in_graph(chain)

    def run() -> None:
        graph(x).asnumpy()

    return Prepared(run, lambda: {"out": _as_bnsd(graph(x).asnumpy(), case)})


def _launch(case: Case, inputs: Arrays) -> Prepared:
    """CALLS launches of a graph of one node, by the thread that calls."""
    call, x = _add(case, inputs)
    launches = _eager(case, inputs, step=lambda *_: (as_cell(call), x))

    def run() -> None:
        with graph_mode():
            launches.run()

    return Prepared(run, dict)


def _launch_under_jit(case: Case, inputs: Arrays) -> Prepared:
    """The same, handed to another thread one by one."""
    import mindspore as ms

    call, x = _add(case, inputs)
    return _eager(case, inputs, step=lambda *_: (ms.jit(call), x))


def _without_operator(case: Case, inputs: Arrays) -> Prepared:
    """alibi_attention with a backend that returns its first input: our Python alone, from the cache
    of known calls.
    """
    from alibi_kernels import alibi_attention, registry

    def build(signature: Any, slopes: Any) -> Any:
        return lambda tensors, slopes, spans, key_norms: (tensors[0], None)

    (q, k, v), slopes = _tensors(inputs), _slopes(case)
    scale = 0.9 * case.scale  # a call of its own, so that no other gets this plan from the cache
    row = replace(registry.BACKENDS[0], build=build)
    with patch.object(registry, "BACKENDS", (row,)):
        if alibi_attention(q, k, v, slopes, scale=scale) is not q:
            raise RuntimeError("the call has already been planned with another backend")

    def run() -> None:
        for _ in range(CALLS):
            alibi_attention(q, k, v, slopes, scale=scale)

    return Prepared(run, dict)


def _validate_and_select(case: Case, inputs: Arrays) -> Prepared:
    """What the first call with new shapes pays, before the operator is built."""
    from alibi_kernels import contract, registry

    tensors, slopes = _tensors(inputs), contract.Spec((case.heads,), "float32")

    def run() -> None:
        for _ in range(CALLS):
            registry.select(contract.validate_attention(*map(contract.spec, tensors), slopes))

    return Prepared(run, dict)


def _native(case: Case, inputs: Arrays) -> Prepared:
    from alibi_kernels import native

    q, k, v = (inputs[n] for n in ORDER)
    slopes = case.slopes.astype(np.float32)

    def run() -> None:
        for _ in range(CALLS):
            native.attention_forward(q, k, v, slopes)

    return Prepared(run, lambda: {"out": native.attention_forward(q, k, v, slopes)[0]})


def _as_bnsd(out: np.ndarray, case: Case) -> np.ndarray:
    return out.reshape(
        case.batch, case.heads, case.queries, case.head_dim
    )  # one head: H and S swap


# How a step is run, and the word for it in the name of its row.
EAGER, GRAPH = "PyNative", "in a graph"
_RUNNERS = {EAGER: _eager, GRAPH: _in_graph}

_STEPS: list[tuple[str, str, Step, str]] = [
    ("builtin add", "yardstick", _add, "x + y"),
    ("Custom node", "ours", _custom, "what the registry hands out"),
    ("alibi_attention", "ours", _attention, "end to end"),
    ("alibi_attention_packed", "ours", _packed, "end to end"),
]


def _row(name: str, kind: str, package: str, prepare: Any, note: str) -> Provider:
    return Provider(name, kind, package, prepare, lambda case: [], note)


PROVIDERS = [
    *(
        _row(f"{name}, {how}", kind, "mindspore", partial(runner, step=step), note)
        for name, kind, step, note in _STEPS
        for how, runner in _RUNNERS.items()
    ),
    _row("launch of a graph", "yardstick", "mindspore", _launch, "of one add, a Cell"),
    _row("launch under ms.jit", "yardstick", "mindspore", _launch_under_jit, "of one add"),
    _row(
        "alibi_attention without its operator",
        "yardstick",
        "mindspore",
        _without_operator,
        "validation and registry, cached",
    ),
    _row(
        "validation and registry, anew",
        "yardstick",
        "mindspore",
        _validate_and_select,
        "first call with new shapes",
    ),
    _row("native.attention_forward", "ours", "alibi_kernels.native", _native, "NumPy"),
]
