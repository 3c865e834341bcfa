"""Every way of asking MindSpore for a gradient, and gradients of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import alibi_kernels
from tests import oracle
from tests.custom_tools import normal

# The gradients of the reference are tested in test_reference.py.
pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)

SLOPES = np.array([0.5, 0.125], np.float32)
SHAPE = (1, 2, 11, 8)


def qkv(ms: Any) -> tuple[Any, Any, Any]:
    q, k, v = (normal(ms, *SHAPE, seed=i) for i in range(3))
    return q, k, v


def truth(ms: Any, dout: Any, dlse: Any = None, **options: Any) -> Any:
    arrays = [x.asnumpy() for x in qkv(ms)]
    return oracle.attention_grad(*arrays, SLOPES, dout, dlse, **options)


def assert_near(got: Any, want: Any) -> None:
    """Sums of 11 terms of size about 1, times 8 dimensions: 1e-5 is some 10 roundings."""
    assert len(got) == len(want)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x.asnumpy(), y, rtol=1e-5, atol=1e-5)


def total(q, k, v, slopes, backend):  # type: ignore[no-untyped-def]  # compiled in the tests
    return alibi_kernels.alibi_attention(q, k, v, slopes, backend=backend).sum()


def test_grad_value_and_grad_and_vjp(ms: Any, mode: Any, backend: str) -> None:
    def loss(q, k, v, slopes):  # type: ignore[no-untyped-def]
        return total(q, k, v, slopes, backend)

    def attention(q, k, v, slopes):  # type: ignore[no-untyped-def]
        return alibi_kernels.alibi_attention(q, k, v, slopes, backend=backend)

    arguments = (*qkv(ms), ms.Tensor(SLOPES))
    want = truth(ms, np.ones(SHAPE))
    assert_near(mode(ms.grad(loss, (0, 1, 2, 3)))(*arguments), want)
    value, grads = mode(ms.value_and_grad(loss, (0, 1, 2, 3)))(*arguments)
    assert_near(grads, want)
    out, vjp = ms.vjp(attention, *arguments)
    assert_near(vjp(ms.Tensor(np.ones(SHAPE, np.float32))), want)
    np.testing.assert_allclose(value.asnumpy(), out.asnumpy().sum(), rtol=1e-5)


def test_gradient_of_one_input(ms: Any, mode: Any, backend: str) -> None:
    def loss(v, q, k):  # type: ignore[no-untyped-def]
        return total(q, k, v, (0.5, 0.125), backend)

    q, k, v = qkv(ms)
    assert_near([mode(ms.grad(loss))(v, q, k)], [truth(ms, np.ones(SHAPE))[2]])


def test_gradient_through_lse_alone(ms: Any, mode: Any, backend: str) -> None:
    dlse = normal(ms, *SHAPE[:3], seed=7)

    def loss(q, k, v, slopes):  # type: ignore[no-untyped-def]
        _, lse = alibi_kernels.alibi_attention(q, k, v, slopes, return_lse=True, backend=backend)
        return (lse * dlse).sum()

    got = mode(ms.grad(loss, (0, 1, 2, 3)))(*qkv(ms), ms.Tensor(SLOPES))
    assert_near(got, truth(ms, np.zeros(SHAPE), dlse.asnumpy()))


def test_gradients_with_spans(ms: Any, mode: Any, backend: str) -> None:
    """spans are an integer operand: they get no gradient, and must not stand in the way of one."""
    spans = np.array([[2, 10, 1]], np.int32)

    def loss(q, k, v, slopes, spans):  # type: ignore[no-untyped-def]
        return alibi_kernels.alibi_attention(q, k, v, slopes, spans=spans, backend=backend).sum()

    got = mode(ms.grad(loss, (0, 1, 2, 3)))(*qkv(ms), ms.Tensor(SLOPES), ms.Tensor(spans))
    assert_near(got, truth(ms, np.ones(SHAPE), spans=spans))


def test_recompute(ms: Any, mode: Any, backend: str) -> None:
    class Net(ms.nn.Cell):
        def construct(self, q, k, v):  # type: ignore[no-untyped-def]
            return alibi_kernels.alibi_attention(q * 1.0, k, v, SLOPES, backend=backend)

    net = Net()
    net.recompute()

    def loss(q, k, v):  # type: ignore[no-untyped-def]
        return net(q, k, v).sum()

    assert_near(mode(ms.grad(loss, (0, 1, 2)))(*qkv(ms)), truth(ms, np.ones(SHAPE))[:3])


def test_repeated_calls_give_the_same_bits(ms: Any, backend: str) -> None:
    def loss(q, k, v, slopes):  # type: ignore[no-untyped-def]
        return total(q, k, v, slopes, backend)

    gradient = ms.grad(loss, (0, 1, 2, 3))
    arguments = (*qkv(ms), ms.Tensor(SLOPES))
    first, second = gradient(*arguments), gradient(*arguments)
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x.asnumpy(), y.asnumpy())


def second_order(ms: Any, backend: str, spans: Any, weight: Any) -> Any:
    """(q, k, v, slopes) -> gradients of a function of the gradients."""

    def loss(q, k, v, slopes):  # type: ignore[no-untyped-def]
        out, lse = alibi_kernels.alibi_attention(
            q, k, v, slopes, spans=spans, return_lse=True, backend=backend
        )
        return (out * out * weight).sum() + (lse * lse).sum()

    gradient = ms.grad(loss, (0, 1, 2, 3))

    def function_of_gradients(q, k, v, slopes):  # type: ignore[no-untyped-def]
        dq, dk, dv, dslopes = gradient(q, k, v, slopes)
        return (dq * weight).sum() + (dk * dk).sum() + dv.sum() + (dslopes * dslopes).sum()

    return function_of_gradients, ms.grad(function_of_gradients, (0, 1, 2, 3))


@pytest.mark.parametrize("with_spans", [False, True])
def test_gradients_of_gradients(ms: Any, backend: str, with_spans: bool, mode: Any) -> None:
    """Against central differences of the first gradients.

    MindSpore 2.10 gets second derivatives of matmul and others wrong in PyNative mode, so those of
    this operator are taken in a graph in either mode.
    """
    shape = (1, 2, 5, 4)
    q, k, v, weight = (normal(ms, *shape, seed=i) for i in range(4))
    spans = ms.Tensor(np.array([[0, 5, 0]], np.int32)) if with_spans else None
    function, gradient = second_order(ms, backend, spans, weight)
    arguments = [q, k, v, ms.Tensor(SLOPES)]
    got = mode(gradient)(*arguments)
    for i, x in enumerate(arguments):
        direction = normal(ms, *x.shape, seed=10 + i)
        h = 2.0**-8
        ahead, behind = (
            float(function(*[y + s * h * direction if y is x else y for y in arguments]))
            for s in (1, -1)
        )
        want = (ahead - behind) / (2 * h)
        slope = float((got[i] * direction).sum())
        # h^2 times third derivatives, and float32 rounding of the difference divided by 2h.
        assert slope == pytest.approx(want, rel=2e-2, abs=0.05), f"argument {i}"
