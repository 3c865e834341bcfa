"""layer_norm and bias_gelu on NumPy arrays: every instruction set against float64."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest

from alibi_kernels import _native, native
from tests.compare import EPSILON, assert_close
from tests.native.guarded import Guarded
from tests.native.plain import ISAS, LIBRARY, nan_like

EPS = EPSILON["float32"]
NORM_EPSILON = 1e-5
# (rows, width): single elements, partial registers, partial blocks of rows, the layer's own sizes.
SIZES = ((1, 1), (3, 7), (127, 16), (33, 100), (64, 768), (5, 3072), (3, 4097), (300, 33))
# Where the rows lie and how far they spread.
SPREADS = ((0.0, 1.0), (1e3, 1e-3), (-5.0, 0.0))

erf = np.vectorize(math.erf, otypes=[np.float64])
erfc = np.vectorize(math.erfc, otypes=[np.float64])


def inputs(rows: int, width: int, mean: float = 0.0, spread: float = 1.0) -> dict[str, Any]:
    rng = np.random.default_rng([rows, width])
    arrays = {
        "x": mean + spread * rng.standard_normal((rows, width)),
        "gamma": 1 + 0.5 * rng.standard_normal(width),
        "beta": rng.standard_normal(width),
        "dy": rng.standard_normal((rows, width)),
    }
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def norm(a: dict[str, Any], put: Any = nan_like, **options: Any) -> dict[str, Any]:
    """Forward and backward, into arrays that start as NaN."""
    rows = np.empty(len(a["x"]), np.float32)
    out = put(a["x"]), put(rows), put(rows)
    native.layer_norm_forward(
        a["x"], a["gamma"], a["beta"], epsilon=NORM_EPSILON, out=out, **options
    )
    _, mean, rstd = out
    grads = put(a["x"]), put(a["gamma"]), put(a["gamma"])
    native.layer_norm_backward(a["x"], a["gamma"], mean, rstd, a["dy"], grads=grads, **options)
    names = ("y", "mean", "rstd", "dx", "dgamma", "dbeta")
    return dict(zip(names, (*out, *grads), strict=True))


def norm_truth(a: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Results in float64, and how large the terms are that each is a sum of.

    float32 makes a rounding or two of such a term per operation; eight of the largest term are
    allowed below.
    """
    x, gamma, beta, dy = (a[name].astype(np.float64) for name in ("x", "gamma", "beta", "dy"))
    mean = x.mean(1, keepdims=True)
    rstd = (((x - mean) ** 2).mean(1, keepdims=True) + NORM_EPSILON) ** -0.5
    unit, g = (x - mean) * rstd, dy * gamma
    average, along = g.mean(1, keepdims=True), unit * (g * unit).mean(1, keepdims=True)
    truth = {
        "y": unit * gamma + beta,
        "mean": mean[:, 0],
        "rstd": rstd[:, 0],
        "dx": rstd * (g - average - along),
        "dgamma": (dy * unit).sum(0),
        "dbeta": dy.sum(0),
    }
    terms = {
        "y": np.abs(unit * gamma) + np.abs(beta),
        "mean": np.abs(x),
        "rstd": rstd,
        "dx": rstd * (np.abs(g) + np.abs(average) + np.abs(along)),
        "dgamma": np.abs(dy * unit).sum(0),
        "dbeta": np.abs(dy).sum(0),
    }
    return truth, {name: float(t.max(initial=0.0)) for name, t in terms.items()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("mean", "spread"), SPREADS)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_layer_norm(rows: int, width: int, mean: float, spread: float, isa: str) -> None:
    """Rows far from zero with a spread below the roundings of a naive mean, and constant rows,
    have to the last digit the accuracy of others."""
    a = inputs(rows, width, mean, spread)
    got = norm(a, isa=isa)
    truth, terms = norm_truth(a)
    for name, want in truth.items():
        assert_close(got[name], want, 8 * EPS * terms[name], name)


def gelu(a: dict[str, Any], put: Any = nan_like, **options: Any) -> dict[str, Any]:
    y = native.bias_gelu_forward(a["x"], a["beta"], out=put(a["x"]), **options)
    grads = put(a["x"]), put(a["beta"])
    native.bias_gelu_backward(a["x"], a["beta"], a["dy"], grads=grads, **options)
    return {"y": y, "dx": grads[0], "dbias": grads[1]}


def gelu_truth(h: Any) -> tuple[Any, Any]:
    """(gelu, its gradient) in float64; erfc, because 1 + erf has no digits left below -6."""
    h = h.astype(np.float64)
    phi = np.exp(-h * h / 2) / math.sqrt(2 * math.pi)
    below = erfc(-h / math.sqrt(2)) / 2
    return h * below, below + h * phi


def assert_within_the_stated_bounds(h: Any, isa: str) -> None:
    """Those of csrc/cpu/gelu.inl.h. Relative in the negative tail, where gelu vanishes."""
    zero, one = np.zeros_like(h), np.ones_like(h)
    a = {"x": h[None], "beta": zero, "dy": one[None]}
    got = {name: x.ravel().astype(np.float64) for name, x in gelu(a, isa=isa).items()}
    value, slope = gelu_truth(h)
    tail = 6e-7 * (1 + h.astype(np.float64) ** 2 / 2) * np.abs(value) + 2.0**-120
    bound = np.where(h < 0, tail, 3e-7 * np.maximum(value, 0.25))
    error = np.abs(got["y"] - value)
    worst = int(np.argmax(error / bound))
    assert error[worst] <= bound[worst], f"gelu({h[worst]!r}) is {got['y'][worst]!r}"
    error = np.abs(got["dx"] - slope)
    worst = int(np.argmax(error))
    assert error[worst] <= 5e-7, f"gelu'({h[worst]!r}) is {got['dx'][worst]!r}"


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_on_a_dense_grid(isa: str) -> None:
    assert_within_the_stated_bounds(np.linspace(-22, 22, 400_001, dtype=np.float32), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_of_every_exponent_and_sign(isa: str) -> None:
    """Bit patterns from subnormal to huge, about 80 of each exponent."""
    h = np.arange(0, 2**32, 99_991, dtype=np.int64).astype(np.uint32).view(np.float32)
    h = h[np.isfinite(h)]
    with np.errstate(over="ignore", invalid="ignore"):
        assert_within_the_stated_bounds(np.clip(h, -1e18, 1e18), isa)  # h * h in float64 is finite


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_of_special_values(isa: str) -> None:
    """The limits at infinity, where h * Phi(h) would be -inf * 0; NaN stays NaN."""
    h = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-40, -1e-40])
    a = {"x": h[None], "beta": np.zeros_like(h), "dy": np.ones((1, h.size), np.float32)}
    got = gelu(a, isa=isa)
    y, dx = got["y"][0], got["dx"][0]
    want = np.float32([0, 0, np.inf, 0, np.nan, 3e38, 0, 5e-41, -5e-41])
    assert np.array_equal(y[:7], want[:7], equal_nan=True)
    assert np.abs(y[7:] - want[7:]).max() <= 2.0**-148  # two steps of the subnormal numbers
    np.testing.assert_allclose(dx, [0.5, 0.5, 1, 0, np.nan, 1, 0, 0.5, 0.5], atol=5e-7)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_bias_gelu(rows: int, width: int, isa: str) -> None:
    """gelu itself is held to its bounds above; here the bias, the sums and the shapes are."""
    a = inputs(rows, width, spread=2.0)
    got = gelu(a, isa=isa)
    h = a["x"] + a["beta"]  # rounded to float32 as the kernel does
    value, slope = gelu_truth(h)
    dx = a["dy"].astype(np.float64) * slope
    assert_close(got["y"], value, 4 * EPS * float(np.abs(h).max()), "y")
    assert_close(got["dx"], dx, 5e-7 * float(np.abs(a["dy"]).max()), "dx")
    # The errors of the terms, and a rounding of each partial sum.
    bound = 5e-7 * np.abs(a["dy"]).sum(0).max() + 8 * EPS * np.abs(dx).sum(0).max()
    assert_close(got["dbias"], dx.sum(0), float(bound), "dbias")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("run", [norm, gelu])
def test_same_bits_for_any_number_of_threads(run: Any, isa: str) -> None:
    """Large enough for a second thread; the last block of rows is not full."""
    a = inputs(1001, 517)
    one = run(a, isa=isa, threads=1)
    for threads in (2, 5):
        for name, x in run(a, isa=isa, threads=threads).items():
            assert x.tobytes() == one[name].tobytes(), name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("run", [norm, gelu])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (2, 65), (40, 31)])
def test_nothing_beyond_the_arrays_is_touched(rows: int, width: int, run: Any, isa: str) -> None:
    guarded = Guarded()
    a = inputs(rows, width)
    plain = run(a, isa=isa)
    watched = {name: guarded.like(x) for name, x in a.items()}
    got = run(watched, put=lambda x: guarded.like(nan_like(x)), isa=isa)
    for name, x in plain.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("run", [norm, gelu])
def test_without_rows_the_sums_over_rows_are_zero(run: Any, isa: str) -> None:
    got = run(inputs(0, 5), isa=isa)
    for name, x in got.items():
        assert x.shape[0] == 0 or (x == 0).all(), name


def test_leading_axes_are_rows() -> None:
    a = inputs(6, 9)
    folded = {n: x.reshape(2, 3, 9) if x.ndim == 2 else x for n, x in a.items()}
    y, mean, rstd = native.layer_norm_forward(folded["x"], a["gamma"], a["beta"])
    assert (y.shape, mean.shape, rstd.shape) == ((2, 3, 9), (2, 3), (2, 3))
    flat = native.layer_norm_forward(a["x"], a["gamma"], a["beta"])[0]
    assert np.array_equal(y.reshape(6, 9), flat)
    assert native.bias_gelu_forward(a["x"][0], a["beta"]).shape == (9,)


X, W = np.ones((3, 4), np.float32), np.ones(4, np.float32)
READ_ONLY = np.ones((3, 4), np.float32)
READ_ONLY.flags.writeable = False
F, B = native.layer_norm_forward, native.layer_norm_backward
MISTAKES = (
    (lambda: F([1.0], W, W), TypeError, "x must be a numpy.ndarray, got"),
    (lambda: F(X.astype(float), W, W), TypeError, "x has dtype float64; it must be float32. Cast"),
    (lambda: F(np.zeros((), np.float32), W, W), ValueError, "x must have at least one axis"),
    (lambda: F(X[:, :0], W, W), ValueError, "x.shape = (3, 0)"),
    (
        lambda: F(X.T, W, W),
        ValueError,
        "x must be C-contiguous, but x.strides = (4, 16); pass",
    ),
    (lambda: F(X, W[:3], W), ValueError, "gamma must have shape (4,), one number per element"),
    (lambda: F(X, W, np.ones(8, np.float32)[::2]), ValueError, "beta must be C-contiguous"),
    (lambda: F(X, W, W, epsilon=-1.0), ValueError, "epsilon must be a finite number of at least 0"),
    (lambda: F(X, W, W, epsilon=math.nan), ValueError, "got nan (float); pass one such as 1e-5"),
    (lambda: F(X, W, W, threads=0), ValueError, "threads must be an integer of at least 1"),
    (lambda: F(X, W, W, isa="sse"), ValueError, "isa must be None or one of"),
    (lambda: F(X, W, W, out=(X, X)), ValueError, "out must be a tuple of 3 arrays or None"),
    (lambda: F(X, W, W, out=(READ_ONLY, None, None)), ValueError, "y is read-only"),
    (lambda: B(X, W, W[:3], W, X), ValueError, "rstd must have shape (3,), but rstd.shape = (4,)"),
    (lambda: native.bias_gelu_forward(X, W[:2]), ValueError, "bias must have shape (4,)"),
    (lambda: native.bias_gelu_backward(X, W, X[:2]), ValueError, "dy must have shape (3, 4), but"),
)


@pytest.mark.parametrize("index", range(len(MISTAKES)))
def test_mistakes_are_named(index: int) -> None:
    call, kind, words = MISTAKES[index]
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value)
    assert "forward: " in str(raised.value) or "backward: " in str(raised.value)


class NormArgs(ctypes.Structure):
    """AlibiLayerNormFwdArgs of csrc/alibi_layer.h."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("epsilon", ctypes.c_float),
        *[(n, ctypes.c_void_p) for n in ("x", "gamma", "beta", "y", "mean", "rstd", "options")],
    )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"rows": -1}, "shape"),
        ({"width": 0}, "shape"),
        ({"width": 2**31}, "shape"),
        ({"epsilon": -1e-9}, "scale"),
        ({"epsilon": math.inf}, "scale"),
        ({"epsilon": math.nan}, "scale"),
        ({"beta": None}, "null_pointer"),
        ({"rstd": None}, "null_pointer"),
        ({"rows": 0, "x": None, "y": None, "mean": None, "rstd": None}, "ok"),
    ],
    ids=str,
)
def test_what_a_c_caller_is_told(change: dict[str, Any], status: str) -> None:
    """The checks of the library itself; nothing is written when one of them fails."""
    memory = {n: np.full(12, 1, np.float32) for n in ("x", "gamma", "beta", "y", "mean", "rstd")}
    fields = {"rows": 3, "width": 4, "epsilon": 1e-5, "options": None}
    fields |= {name: array.ctypes.data for name, array in memory.items()}
    got = LIBRARY.alibi_layer_norm_fwd(ctypes.byref(NormArgs(**{**fields, **change})), None)
    assert _native.status_name(got) == status
    assert LIBRARY.alibi_layer_norm_fwd(None, None) == 1  # ALIBI_NULL_POINTER
    if status != "ok":
        assert (memory["y"] == 1).all()
