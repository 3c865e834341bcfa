"""alibi.norm: the values and gradients of MindSpore's cells, in every mode and precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compare import EPSILON, assert_close, assert_close_to_truth

WIDTH, NORM_EPSILON = 24, 1e-5
GRADIENTS = ("dx", "dgamma", "dbeta")


def _inputs() -> dict[str, np.ndarray]:
    """Rows far from zero, one of them constant: there only epsilon keeps the result finite."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, WIDTH)) * 3 + 5
    x[1, 3] = 2.0
    gamma, beta = 1 + 0.5 * rng.standard_normal(WIDTH), rng.standard_normal(WIDTH)
    arrays = {"x": x, "dy": rng.standard_normal(x.shape), "gamma": gamma, "beta": beta}
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def _truth(x: Any, dy: Any, gamma: Any, beta: Any) -> dict[str, np.ndarray]:
    x, dy, gamma, beta = (a.astype(np.float64) for a in (x, dy, gamma, beta))
    centred = x - x.mean(-1, keepdims=True)
    inverse = (np.mean(centred**2, -1, keepdims=True) + NORM_EPSILON) ** -0.5
    unit, du = centred * inverse, dy * gamma
    along = unit * np.mean(du * unit, -1, keepdims=True)
    return {
        "y": unit * gamma + beta,
        "dx": (du - du.mean(-1, keepdims=True) - along) * inverse,
        "dgamma": (dy * unit).sum((0, 1)),
        "dbeta": dy.sum((0, 1)),
    }


def _cells(ms: Any, arrays: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Ours and MindSpore's, with the same parameters."""
    from alibi.norm import LayerNorm

    cells = LayerNorm(WIDTH, NORM_EPSILON), ms.nn.LayerNorm((WIDTH,), epsilon=NORM_EPSILON)
    for cell in cells:
        cell.gamma.set_data(ms.Tensor(arrays["gamma"]))
        cell.beta.set_data(ms.Tensor(arrays["beta"]))
    return cells


def _step(ms: Any, mode: Any, cell: Any, arrays: dict[str, np.ndarray]) -> tuple[Any, ...]:
    """The value, and the gradients of the input and of the two parameters."""
    x, dy = ms.Tensor(arrays["x"]), ms.Tensor(arrays["dy"])

    def product(x):  # type: ignore[no-untyped-def]
        y = cell(x)
        return (y.astype(ms.float32) * dy).sum(), y

    step = mode(ms.value_and_grad(product, 0, cell.trainable_params(), has_aux=True))
    (_, y), (dx, gradients) = step(x)
    return (y, dx, *gradients)


def _results(ms: Any, mode: Any, cell: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = zip(("y", *GRADIENTS), _step(ms, mode, cell, arrays), strict=True)
    return {name: a.astype(ms.float32).asnumpy() for name, a in found}


def test_values_and_gradients(ms: Any, mode: Any) -> None:
    """The rival is MindSpore's own. Its errors here are of one rounding of the largest element."""
    arrays = _inputs()
    truth = _truth(**arrays)
    ours, theirs = (_results(ms, mode, cell, arrays) for cell in _cells(ms, arrays))
    for name, want in truth.items():
        floor = 4 * EPSILON["float32"] * np.abs(want).max()
        factor = 2 if name == "y" else 3
        assert_close_to_truth(ours[name], want, theirs[name], factor=factor, floor=floor, what=name)


def test_lower_precision_is_left_to_mindspore(ms: Any, mode: Any) -> None:
    """Averages in float16 would lose digits; a float16 cell computes what MindSpore's computes."""
    arrays = _inputs()
    cells = [cell.to_float(ms.float16) for cell in _cells(ms, arrays)]
    ours, theirs = (_results(ms, mode, cell, arrays) for cell in cells)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_gradient_of_the_gradient(ms: Any) -> None:
    """Through the kernel of the gradient, against a central difference of it."""
    arrays = _inputs()
    arrays["x"] = arrays["x"][:1, :3] - 5
    cell, _ = _cells(ms, arrays)
    dy = ms.Tensor(arrays["dy"][:1, :3])
    direction = np.random.default_rng(1).standard_normal(dy.shape)

    def product(x):  # type: ignore[no-untyped-def]
        return (cell(x) * dy).sum()

    first = ms.grad(product)
    along = ms.Tensor(direction.astype(np.float32))

    def slope(x):  # type: ignore[no-untyped-def]
        return (first(x) * along).sum()

    got = ms.jit(ms.grad(slope))(ms.Tensor(arrays["x"])).asnumpy()
    step = 1e-6

    def gradient(x: Any) -> Any:
        return _truth(x, dy.asnumpy(), arrays["gamma"], arrays["beta"])["dx"]

    x = arrays["x"].astype(np.float64)
    # The second derivative is symmetric: along a direction it is the change of the gradient.
    want = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    assert_close(got, want, 64 * EPSILON["float32"] * np.abs(want).max(), "second derivative")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_bias_of_a_dense_layer(ms: Any, mode: Any, precision: str) -> None:
    """Value, gradients and their dtypes are MindSpore's, bit by bit."""
    from alibi.norm import Dense

    arrays, results = _inputs(), []
    for cell in (Dense(WIDTH, WIDTH), ms.nn.Dense(WIDTH, WIDTH)):
        for index, parameter in enumerate(cell.trainable_params()):
            values = np.random.default_rng(index).standard_normal(parameter.shape)
            parameter.set_data(ms.Tensor(values.astype(np.float32)))
        if precision == "float16":
            cell.to_float(ms.float16)
        results.append(_step(ms, mode, cell, arrays))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())


def test_no_slow_gradient_of_a_bias(ms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's own gradient of its last bias is what runs, unless it is told not to."""
    from alibi import ALiBiConfig, ALiBiTransformerLayer, norm

    calls: list[Any] = []
    own = norm._BiasAdd.bprop

    def counted(self, *args):  # type: ignore[no-untyped-def]
        calls.append(args)
        return own(self, *args)

    monkeypatch.setattr(norm._BiasAdd, "bprop", counted)
    for fused in (True, False):
        calls.clear()
        config = ALiBiConfig(d_model=WIDTH, num_heads=2, dropout=0.0, fused=fused)
        layer = ALiBiTransformerLayer(config)
        ms.grad(lambda x, layer=layer: layer(x).sum())(ms.Tensor(_inputs()["x"]))
        assert len(calls) == fused


@pytest.mark.parametrize("recompute", [False, True])
def test_in_a_layer_that_is_recomputed(ms: Any, recompute: bool) -> None:
    from alibi import ALiBiConfig, ALiBiTransformerLayer

    layer = ALiBiTransformerLayer(ALiBiConfig(d_model=WIDTH, num_heads=2, dropout=0.0))
    for index, weight in enumerate(layer.trainable_params()):
        values = np.random.default_rng(index).standard_normal(weight.shape)
        weight.set_data(ms.Tensor(values.astype(np.float32)))
    if recompute:
        layer.recompute()
    # Without the constant row, which multiplies the roundings of what arrives there by
    # epsilon^-1/2 = 316; the tests above hold it to float64.
    rows = _inputs()["x"]
    rows[1, 3] = rows[0, 3]
    x = ms.Tensor(rows)

    def product(x):  # type: ignore[no-untyped-def]
        return layer(x).sum()

    eager = ms.grad(product, 0, layer.trainable_params())(x)
    compiled = ms.jit(ms.grad(product, 0, layer.trainable_params()))(x)
    for a, b in zip((eager[0], *eager[1]), (compiled[0], *compiled[1]), strict=True):
        # The same terms in another order, through two norms and a product each way.
        want = a.asnumpy()
        assert_close(b.asnumpy(), want, 64 * EPSILON["float32"] * np.abs(want).max(), "gradient")


@pytest.mark.parametrize("fused", [True, False])
def test_which_model_uses_the_kernels(ms: Any, kernel_calls: list[str], fused: bool) -> None:
    """In training and after set_train(False), a flag that was once taken for one of precision and
    turned the kernels off; and never with fused=False."""
    from alibi import ALiBiConfig, ALiBiTransformerLayer

    config = ALiBiConfig(d_model=WIDTH, num_heads=2, dropout=0.0, fused=fused)
    layer = ALiBiTransformerLayer(config)
    x = ms.Tensor(_inputs()["x"])
    for training in (True, False):
        kernel_calls.clear()
        layer.set_train(training)(x)
        ours = [symbol for symbol in kernel_calls if not symbol.startswith("AlibiPacked")]
        expected = ["AlibiLayerNormFwd", "AlibiLayerNormFwd", "AlibiBiasGeluFwd"]
        assert ours == (expected if fused else [])
