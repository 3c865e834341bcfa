"""layer_norm and bias_gelu in MindSpore: both modes, gradients of gradients, fallbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import alibi_kernels
from tests.compare import EPSILON, assert_close, assert_close_to_truth
from tests.custom_tools import normal
from tests.native.test_layer import gelu_truth

WIDTH, NORM_EPSILON = 24, 1e-5
OPS = ("layer_norm", "bias_gelu")


def operands(ms: Any, op: str, *leading: int) -> tuple[Any, ...]:
    """x, and the vectors of the operator."""
    vectors = 2 if op == "layer_norm" else 1
    x = normal(ms, *leading, WIDTH)
    return (x, *[normal(ms, WIDTH, seed=i + 1) for i in range(vectors)])


def call(op: str) -> Callable[..., Any]:
    return alibi_kernels.layer_norm if op == "layer_norm" else alibi_kernels.bias_gelu


def plain(op: str) -> Callable[..., Any]:
    """The same in MindSpore's operators: what runs where there is no kernel."""
    from alibi_kernels import layer_ops

    return layer_ops._plain_norm(NORM_EPSILON) if op == "layer_norm" else layer_ops._plain_gelu


def step(ms: Any, mode: Any, run: Callable[..., Any], dy: Any, inputs: tuple[Any, ...]) -> Any:
    """(y, the gradient of every input), as float32 arrays."""

    def product(*inputs):  # type: ignore[no-untyped-def]
        y = run(*inputs)
        return (y.astype(ms.float32) * dy).sum(), y

    which = tuple(range(len(inputs)))
    (_, y), grads = mode(ms.value_and_grad(product, which, has_aux=True))(*inputs)
    return [a.astype(ms.float32).asnumpy() for a in (y, *grads)]


def truth(op: str, dy: Any, inputs: tuple[Any, ...]) -> list[Any]:
    arrays = [a.asnumpy().astype(np.float64) for a in (dy, *inputs)]
    dy, x = (a.reshape(-1, WIDTH) for a in arrays[:2])
    if op == "bias_gelu":
        value, slope = gelu_truth(x + arrays[2])
        found = [value, dy * slope, (dy * slope).sum(0)]
    else:
        gamma, beta = arrays[2:]
        centred = x - x.mean(1, keepdims=True)
        rstd = ((centred**2).mean(1, keepdims=True) + NORM_EPSILON) ** -0.5
        unit, g = centred * rstd, dy * gamma
        along = unit * (g * unit).mean(1, keepdims=True)
        dx = rstd * (g - g.mean(1, keepdims=True) - along)
        found = [unit * gamma + beta, dx, (dy * unit).sum(0), dy.sum(0)]
    return [a.reshape(arrays[1].shape) if a.ndim == 2 else a for a in found]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 2, 3)], ids=str)
def test_values_and_gradients(ms: Any, mode: Any, leading: tuple[int, ...], op: str) -> None:
    inputs, dy = operands(ms, op, *leading), normal(ms, *leading, WIDTH, seed=9)
    got = step(ms, mode, call(op), dy, inputs)
    rival = step(ms, mode, plain(op), dy, inputs)
    for i, want in enumerate(truth(op, dy, inputs)):
        # A rounding of the largest element per operation; MindSpore's may happen to be exact.
        floor = 8 * EPSILON["float32"] * max(1.0, float(np.abs(want).max()))
        assert_close_to_truth(got[i], want, rival[i], factor=2, floor=floor, what=f"result {i}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("vectors", ["float32", "bfloat16"])
def test_bfloat16_on_the_cpu(ms: Any, mode: Any, vectors: str, op: str) -> None:
    """It was promised, and failed inside MindSpore, which has neither operator in bfloat16."""

    def rounded(x: Any, dtype: str) -> Any:
        return x.astype(ms.bfloat16).astype(getattr(ms, dtype))

    x, *others = operands(ms, op, 2, 3)
    inputs = (rounded(x, "bfloat16"), *[rounded(v, vectors) for v in others])
    dy = rounded(normal(ms, 2, 3, WIDTH, seed=9), "float32")
    assert mode(call(op))(*inputs).dtype == ms.bfloat16
    got = step(ms, mode, call(op), dy, inputs)
    for i, want in enumerate(truth(op, dy, tuple(a.astype(ms.float32) for a in inputs))):
        # The inputs are bfloat16 numbers, the sums float32, and the result is rounded once: by at
        # most 2^-8 of itself, unless it is the gradient of a float32 vector.
        once = 2.0**-8 if i < 2 or vectors == "bfloat16" else 0.0
        floor = 16 * EPSILON["float32"] * float(np.abs(want).max())
        np.testing.assert_allclose(got[i], want, rtol=once, atol=floor, err_msg=f"result {i}")


@pytest.mark.parametrize("op", OPS)
def test_gradients_of_gradients(ms: Any, mode: Any, op: str) -> None:
    """In every direction at once, against MindSpore's own operators differentiated twice."""
    inputs, dy = operands(ms, op, 3), normal(ms, 3, WIDTH, seed=9)
    along = [normal(ms, *x.shape, seed=20 + i) for i, x in enumerate(inputs)]
    which = tuple(range(len(inputs)))

    def second(run: Callable[..., Any]) -> Callable[..., Any]:
        def product(*inputs):  # type: ignore[no-untyped-def]
            return (run(*inputs[:-1]) * inputs[-1]).sum()

        first = ms.grad(product, which)

        def slope(*inputs):  # type: ignore[no-untyped-def]
            total = 0.0
            grads = first(*inputs)
            for i in range(len(along)):
                total = total + (grads[i] * along[i]).sum()
            return total

        return ms.grad(slope, (*which, len(inputs)))

    got = mode(second(call(op)))(*inputs, dy)
    want = ms.jit(second(composed(ms, op)))(*inputs, dy)
    for i in range(len(want)):
        scale = max(1.0, float(np.abs(want[i].asnumpy()).max()))
        # The same formula behind both, reached through another first gradient.
        assert_close(got[i], want[i], 64 * EPSILON["float32"] * scale, f"gradient {i}")


def composed(ms: Any, op: str) -> Callable[..., Any]:
    """Element by element, because MindSpore's LayerNorm has no second derivative of its own."""
    if op == "bias_gelu":
        return plain(op)

    def run(x, gamma, beta):  # type: ignore[no-untyped-def]
        centred = x - x.mean(-1, keep_dims=True)
        variance = (centred * centred).mean(-1, keep_dims=True)
        return centred / ms.ops.sqrt(variance + NORM_EPSILON) * gamma + beta

    return run


@pytest.mark.parametrize("op", OPS)
def test_one_graph_serves_every_length(ms: Any, op: str) -> None:
    """After the lengths have varied, the leading axes are dynamic; forward and gradient."""
    run = call(op)

    def loss(*inputs):  # type: ignore[no-untyped-def]
        return (run(*inputs) ** 2).sum()

    _, *vectors = operands(ms, op, 1)
    which = tuple(range(1 + len(vectors)))
    gradient = ms.jit(ms.grad(loss, which), dynamic=1)
    for length in (5, 9, 6, 21, 1):
        x = normal(ms, 2, length, WIDTH)
        got, want = gradient(x, *vectors), ms.grad(loss, which)(x, *vectors)
        for i in which:
            np.testing.assert_array_equal(got[i].asnumpy(), want[i].asnumpy())


def test_a_cell_with_dynamic_inputs(ms: Any) -> None:
    """In graph mode: sizes, then even ranks, are unknown while the graph is compiled."""
    norm, gelu = call("layer_norm"), call("bias_gelu")
    _, gamma, beta = operands(ms, "layer_norm", 1)

    class Net(ms.nn.Cell):
        def construct(self, x):  # type: ignore[no-untyped-def]
            return gelu(norm(x, gamma, beta), beta)

    for shape in ([None, None, WIDTH], [None, None, None], None):
        net = Net()
        net.set_inputs(ms.Tensor(shape=shape, dtype=ms.float32))
        ms.set_context(mode=ms.GRAPH_MODE)
        try:
            got = {n: net(normal(ms, 2, n, WIDTH)).asnumpy() for n in (5, 17, 1)}
        finally:
            ms.set_context(mode=ms.PYNATIVE_MODE)
        for n, y in got.items():
            want = gelu(norm(normal(ms, 2, n, WIDTH), gamma, beta), beta).asnumpy()
            np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("op", OPS)
def test_no_rows(ms: Any, op: str) -> None:
    inputs = operands(ms, op, 0)
    got = step(ms, lambda f: f, call(op), normal(ms, 0, WIDTH), inputs)
    assert got[0].shape == got[1].shape == (0, WIDTH)
    assert all((sums == 0).all() for sums in got[2:])


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_run_in_float32_on_the_cpu(ms: Any, op: str, kernel_calls: list[str]) -> None:
    inputs = operands(ms, op, 3)
    step(ms, lambda f: f, call(op), normal(ms, 3, WIDTH), inputs)
    name = "AlibiLayerNorm" if op == "layer_norm" else "AlibiBiasGelu"
    assert kernel_calls == [f"{name}Fwd", f"{name}Bwd"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("why", ["dtype", "device", "environment", "library"])
def test_anything_else_is_left_to_mindspore(
    ms: Any,
    op: str,
    why: str,
    kernel_calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same bits as the plain operators, and no kernel runs. A library that is missing is said
    once, what was not meant for it is no news."""
    from alibi_kernels import _library, layer_ops, registry, rows

    inputs, dy = operands(ms, op, 3), normal(ms, 3, WIDTH, seed=9)
    if why == "dtype":
        inputs = (inputs[0].astype(ms.float16), *inputs[1:])
    elif why == "device":
        monkeypatch.setattr(rows, "device_target", lambda: "GPU")
    elif why == "environment":
        monkeypatch.setenv("ALIBI_BACKEND", "reference")
    else:

        def absent(name: str) -> Any:
            raise _library.LibraryError(name)

        monkeypatch.setattr(_library, "load", absent)
    layer_ops._cached_plan.cache_clear()
    registry.warn_once.cache_clear()
    try:
        got = step(ms, lambda f: f, call(op), dy, inputs)
    finally:
        layer_ops._cached_plan.cache_clear()
    want = step(ms, lambda f: f, plain(op), dy, inputs)
    assert kernel_calls == []
    said = [r.getMessage() for r in caplog.records if r.name.startswith("alibi_kernels")]
    assert len(said) == (why == "library")
    assert all(f"{op} runs on MindSpore's operators (not cpu: " in text for text in said)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("op", OPS)
def test_mixed_precision_casts_no_input(ms: Any, mode: Any, op: str) -> None:
    """Inside a float16 cell PyNative casts the inputs of every operator; a float32 tensor that a
    caller keeps there, on purpose, must reach the kernel with its digits."""
    run, inputs = call(op), operands(ms, op, 3)

    class Net(ms.nn.Cell):
        def construct(self):  # type: ignore[no-untyped-def]
            return run(*inputs)

    got = mode(Net().to_float(ms.float16))()
    np.testing.assert_array_equal(got.asnumpy(), run(*inputs).asnumpy())


def test_mistakes_are_named(ms: Any, mode: Any) -> None:
    x, gamma, beta = operands(ms, "layer_norm", 3)
    short = normal(ms, WIDTH - 1)
    norm, gelu = call("layer_norm"), call("bias_gelu")
    mistakes = (
        (norm, (1.0, gamma, beta), TypeError, "layer_norm: x must be a mindspore.Tensor, got 1.0"),
        (norm, (x, short, beta), ValueError, "layer_norm: gamma must have shape (24,), one number"),
        (norm, (x, gamma, beta, -1.0), ValueError, "epsilon must be a finite number of at least 0"),
        (norm, (x, gamma, beta, None), ValueError, "got None; pass one such as 1e-5"),
        (
            norm,
            (x.int(), gamma, beta),
            TypeError,
            "x has dtype int32; x, gamma, beta must be float32",
        ),
        (gelu, (x, beta.astype(ms.float64)), TypeError, "bias has dtype float64; x, bias must be"),
        (gelu, (x, x), ValueError, "bias must have shape (24,), one number per element of the"),
        (gelu, (ms.Tensor(1.0), beta), ValueError, "bias_gelu: x must have at least one axis"),
    )
    for run, arguments, kind, words in mistakes:

        def attempt():  # type: ignore[no-untyped-def]
            return run(*arguments)  # noqa: B023

        with pytest.raises(kind) as raised:
            mode(attempt)()
        assert words in str(raised.value)


def test_a_width_that_only_the_kernel_sees(ms: Any) -> None:
    """In a dynamic graph nothing in Python knows the width of x; the bridge says what is wrong."""
    norm = call("layer_norm")
    _, gamma, beta = operands(ms, "layer_norm", 1)

    class Net(ms.nn.Cell):
        def construct(self, x):  # type: ignore[no-untyped-def]
            return norm(x, gamma, beta)

    net = Net()
    net.set_inputs(ms.Tensor(shape=[None, None], dtype=ms.float32))
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with pytest.raises(RuntimeError, match=r"gamma must have shape \(23\) to fit x, got \(24"):
            net(normal(ms, 2, WIDTH - 1)).asnumpy()
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
