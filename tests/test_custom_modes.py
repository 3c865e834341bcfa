"""The operators against the float64 oracle, in every way MindSpore runs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import alibi_kernels
from tests import oracle
from tests.cases import DTYPES, SITUATIONS, SMALL, Case, make_dp, make_inputs
from tests.compare import EPSILON, assert_close_to_truth, assert_close_when_small
from tests.custom_tools import (
    assert_all_close,
    normal,
    step,
    stored_out_error,
    tensor,
    tensors,
)

MODES = tuple(case for case in SMALL if case not in SITUATIONS)
SLOPES = (0.5, 0.25)


@pytest.fixture
def graph_mode(ms: Any) -> Iterator[None]:
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)


def check(ms: Any, case: Case, dtype: str, backend: str, wrap: Any) -> None:
    x = make_inputs(case, dtype)
    arrays = (x.q, x.k, x.v, x.slopes)
    truth = (
        *oracle.attention(*arrays, spans=x.spans, **case.options),
        *oracle.attention_grad(*arrays, x.dout, x.dlse, spans=x.spans, **case.options),
    )
    operands = (
        *tensors(ms, x),
        ms.Tensor(x.slopes),
        tensor(ms, x.spans),
        ms.Tensor(x.dout.astype(np.float32)),
        ms.Tensor(x.dlse),
    )
    op = alibi_kernels.alibi_attention
    got = wrap(step(op, backend=backend, **case.options))(*operands)
    rival = step(op, backend="reference", **case.options)(*operands)
    floor = stored_out_error(case, x, truth[0], dtype)
    assert_all_close(got, truth, rival, dtype, case.name, floor)


@pytest.mark.parametrize("case", SMALL, ids=str)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_pynative(ms: Any, case: Case, backend: str) -> None:
    check(ms, case, "float32", backend, lambda f: f)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", MODES[::2], ids=str)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_low_precision(ms: Any, case: Case, dtype: str, backend: str) -> None:
    check(ms, case, dtype, backend, lambda f: f)


@pytest.mark.parametrize("case", MODES[1::4], ids=str)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_compiled(ms: Any, case: Case, backend: str) -> None:
    check(ms, case, "float32", backend, ms.jit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", MODES[1::3], ids=str)
def test_weights(ms: Any, case: Case, dtype: str, backend: str) -> None:
    x = make_inputs(case, dtype)
    dp, spans = make_dp(case, dtype), tensor(ms, x.spans)
    options = {**case.options, "spans": spans}
    cotangent = ms.Tensor(dp.astype(np.float32))

    def results(name: str) -> Any:
        def loss(q: Any, k: Any, slopes: Any) -> Any:
            p = alibi_kernels.alibi_attention_weights(q, k, slopes, backend=name, **options)
            return (p.astype(ms.float32) * cotangent).sum(), p

        gradient = ms.value_and_grad(loss, (0, 1, 2), has_aux=True)
        (_, p), grads = gradient(tensor(ms, x.q), tensor(ms, x.k), ms.Tensor(x.slopes))
        return p, *grads

    arrays = (x.q, x.k, x.slopes)
    truth = (
        oracle.weights(*arrays, spans=x.spans, **case.options),
        *oracle.weights_grad(*arrays, dp, spans=x.spans, **case.options),
    )
    compared = zip(
        ("p", "dq", "dk", "dslopes"), results(backend), truth, results("reference"), strict=True
    )
    for name, got, want, rival in compared:
        # As in assert_all_close: pruned weights are below 2^-24 of their row.
        floor = np.abs(want).max(initial=0.0) * (8 * EPSILON["float32"] + EPSILON[dtype])
        assert_close_to_truth(got, want, rival, 3, floor, f"{case.name} {name}")


@pytest.mark.parametrize("order", ["qkv", "kqv", "vkq"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_equals_separate(ms: Any, order: str, dtype: str, backend: str) -> None:
    """Strides are all that differs, so results and gradient are the same bits."""
    packed = normal(ms, 2, 33, 3, 4, 24).astype(getattr(ms, dtype))
    spans = ms.Tensor(np.array([[0, 33, 0], [5, 30, 0]], np.int32))
    slopes = alibi_kernels.alibi_slopes(4)
    weight = normal(ms, 2, 33, 4, 24, seed=1)

    def from_packed(packed: Any) -> Any:
        out, lse = alibi_kernels.alibi_attention_packed(
            packed, slopes, order=order, spans=spans, return_lse=True, backend=backend
        )
        return (out.astype(ms.float32) * weight).sum(), out, lse

    def from_parts(packed: Any) -> Any:
        parts = ms.ops.split(packed, 1, axis=2)  # the CPU cannot differentiate bfloat16 indexing
        q, k, v = (parts[order.index(name)].reshape(2, 33, 4, 24) for name in "qkv")
        out, lse = alibi_kernels.alibi_attention(
            q, k, v, slopes, spans=spans, input_layout="BSND", return_lse=True, backend=backend
        )
        return (out.astype(ms.float32) * weight).sum(), out, lse

    (_, out, lse), grad = ms.value_and_grad(from_packed, 0, has_aux=True)(packed)
    (_, out2, lse2), grad2 = ms.value_and_grad(from_parts, 0, has_aux=True)(packed)
    assert out.shape == (2, 33, 4, 24)
    assert grad.shape == packed.shape
    for a, b in ((out, out2), (lse, lse2), (grad, grad2)):
        np.testing.assert_array_equal(
            a.astype(ms.float32).asnumpy(), b.astype(ms.float32).asnumpy()
        )


def attend(q, k, v):  # type: ignore[no-untyped-def]  # compiled in the tests below
    return alibi_kernels.alibi_attention(q, k, v, SLOPES)


def inputs_of_length(ms: Any, length: int) -> tuple[Any, Any, Any]:
    q, k, v = (normal(ms, 1, 2, length, 8, seed=i) for i in range(3))
    return q, k, v


def compilations(ms: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one at every compilation that plans one of our operators."""
    from alibi_kernels import ops

    seen: list[int] = []
    planner = type(ops._planner)
    infer = planner.__infer__

    def counting(self: Any, *args: Any) -> Any:
        seen.append(1)
        return infer(self, *args)

    monkeypatch.setattr(planner, "__infer__", counting)
    return seen


def test_one_compilation_serves_every_length(
    ms: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shape inference in C++ is what makes this work; in Python each length would compile anew."""

    class Net(ms.nn.Cell):
        def construct(self, q, k, v):  # type: ignore[no-untyped-def]
            return alibi_kernels.alibi_attention(q, k, v, SLOPES, backend=backend)

    net = Net()
    dynamic = ms.Tensor(shape=[None, 2, None, 8], dtype=ms.float32)
    net.set_inputs(dynamic, dynamic, dynamic)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        seen = compilations(ms, monkeypatch)
        got = {n: net(*inputs_of_length(ms, n)).asnumpy() for n in (5, 17, 1, 33)}
        compiled = len(seen)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    assert compiled == 1
    for length, out in got.items():
        assert_close_when_small(out, attend(*inputs_of_length(ms, length)), f"length {length}")


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_dynamic_jit_with_gradient(ms: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the lengths have varied, all axes are dynamic, head_dim (hence scale) too."""

    def loss(q, k, v):  # type: ignore[no-untyped-def]
        return alibi_kernels.alibi_attention(q, k, v, SLOPES, backend="cpu").sum()

    gradient = ms.jit(ms.grad(loss, (0, 1, 2)), dynamic=1)
    seen = compilations(ms, monkeypatch)
    counts = []
    for length in (5, 9, 6, 21, 1):
        got = gradient(*inputs_of_length(ms, length))
        counts.append(len(seen))
        want = ms.grad(loss, (0, 1, 2))(*inputs_of_length(ms, length))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())
    assert counts[2] == counts[4] > 0


@pytest.mark.usefixtures("graph_mode")
def test_graph_mode_cells_with_different_attributes(ms: Any, backend: str) -> None:
    """Kernel objects are shared between operators: attributes of one must not leak into another."""

    class Net(ms.nn.Cell):
        def __init__(self, slopes: Any, **options: Any) -> None:
            super().__init__()
            self.slopes, self.options = slopes, options

        def construct(self, q, k, v):  # type: ignore[no-untyped-def]
            return alibi_kernels.alibi_attention(
                q, k, v, self.slopes, backend=backend, **self.options
            )

    attributes: list[tuple[Any, dict[str, Any]]] = [
        ((0.5, 0.25), {}),
        ((0.5, 0.125), {}),
        ((0.5, 0.25), {"scale": 0.7}),
        ((0.5, 0.25), {"causal": False}),
        ((0.5, 0.25), {"causal": False, "bias": "signed"}),
        (np.array([0.5, 0.25], np.float32), {"prune": False}),
    ]
    nets = [Net(slopes, **options) for slopes, options in attributes]
    q, k, v = inputs_of_length(ms, 19)
    for _ in range(2):
        for net, (slopes, options) in zip(nets, attributes, strict=True):
            truth, _ = oracle.attention(
                *(x.asnumpy() for x in (q, k, v)),
                np.array(slopes),
                **{key: x for key, x in options.items() if key != "prune"},
            )
            assert_close_when_small(net(q, k, v), truth, f"{slopes}, {options}")


def test_strided_inputs(ms: Any, mode: Any, backend: str) -> None:
    """Transposed views reach the kernel as what they look like, not as what lies in memory."""
    x = normal(ms, 1, 21, 2, 8)

    def views(x):  # type: ignore[no-untyped-def]
        y = x.transpose(0, 2, 1, 3)
        return alibi_kernels.alibi_attention(y, y[:, :, ::1], y * 1.0, SLOPES, backend=backend)

    y = x.asnumpy().transpose(0, 2, 1, 3)
    truth, _ = oracle.attention(y, y, y, np.array(SLOPES))
    assert_close_when_small(mode(views)(x), truth)


@pytest.mark.parametrize(("batch", "len_q", "len_k"), [(0, 5, 5), (2, 0, 5), (2, 0, 0), (1, 3, 0)])
def test_empty(ms: Any, mode: Any, backend: str, batch: int, len_q: int, len_k: int) -> None:
    q = ms.Tensor(np.ones((batch, 2, len_q, 4), np.float32))
    k = ms.Tensor(np.ones((batch, 2, len_k, 4), np.float32))
    dummy = np.zeros((batch, 2, len_q))

    def op(q, k):  # type: ignore[no-untyped-def]
        return alibi_kernels.alibi_attention(
            q, k, k, SLOPES, causal=False, return_lse=True, backend=backend
        )

    out, lse = mode(op)(q, k)
    np.testing.assert_array_equal(out.asnumpy(), np.zeros((batch, 2, len_q, 4)))
    np.testing.assert_array_equal(lse.asnumpy(), dummy - np.inf)

    def loss(q, k):  # type: ignore[no-untyped-def]
        return op(q, k)[0].sum()

    dq, dk = mode(ms.grad(loss, (0, 1)))(q, k)
    np.testing.assert_array_equal(dq.asnumpy(), np.zeros((batch, 2, len_q, 4)))
    np.testing.assert_array_equal(dk.asnumpy(), np.zeros((batch, 2, len_k, 4)))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_calls_from_several_threads(ms: Any, backend: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    problems = [inputs_of_length(ms, 16 + i) for i in range(8)]
    want = [attend(*p).asnumpy() for p in problems]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda p: attend(*p).asnumpy(), problems * 4))
    for i, out in enumerate(got):
        np.testing.assert_array_equal(out, want[i % len(problems)])
