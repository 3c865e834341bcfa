"""The backward kernel of the weights op against the float64 oracle, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import DTYPES, SHAPES, SHARED, SMALL, Case, Inputs, make_dp, make_inputs
from tests.compare import to_float64
from tests.native.float32_rival import weights_gradients
from tests.native.guarded import Guarded

Array = Any
NAMES = ("dq", "dk", "dslopes")
ISAS = [isa["name"] for isa in native.isas() if isa["built"] and isa["supported"]]


def options_of(case: Case, x: Inputs, **changes: Any) -> dict[str, Any]:
    return {**case.options, "spans": x.spans, **changes}


def backward(
    case: Case, x: Inputs, dp: Array, p: Array = None, **changes: Any
) -> tuple[Array, ...]:
    """Forward (unless p is given), then backward into memory that holds NaN."""
    options = options_of(case, x, **changes)
    if p is None:
        p = native.attention_weights(x.q, x.k, x.slopes, **options)
    grads = tuple(np.full_like(a, np.nan) for a in (x.q, x.k, x.slopes))
    return native.attention_weights_backward(x.q, x.k, x.slopes, p, dp, grads=grads, **options)


def named(grads: tuple[Array, ...]) -> dict[str, Array]:
    return dict(zip(NAMES, grads, strict=True))


def truth_of(case: Case, x: Inputs, dp: Array) -> dict[str, Array]:
    return named(oracle.weights_grad(x.q, x.k, x.slopes, dp, **options_of(case, x)))


def bits(grads: tuple[Array, ...]) -> list[bytes]:
    return [np.ascontiguousarray(g).tobytes() for g in grads]


def check(case: Case, dtype: str) -> None:
    """At most 3 times the error of the same formulas in float32 NumPy, plus what rounding the
    weights to the dtype must cost (float32_rival.py)."""
    x, dp = make_inputs(case, dtype), make_dp(case, dtype)
    truth, rival = truth_of(case, x, dp), weights_gradients(case, x, dtype, dp)
    for isa in ISAS:
        rival.check(named(backward(case, x, dp, isa=isa)), truth, f"{isa} {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_mode(case: Case, dtype: str) -> None:
    check(case, dtype)


@pytest.mark.parametrize("case", [*SHAPES, *SHARED], ids=str)
def test_shapes(case: Case) -> None:
    for dtype in DTYPES if case.Sq <= 260 else ("float32",):
        check(case, dtype)


@pytest.mark.parametrize("head_dim", [1, 3, 17, 33, 127, 200])
def test_any_head_dim(head_dim: int) -> None:
    for causal in (True, False):
        check(Case(f"D{head_dim}", 1, 2, 1, 53, 61, head_dim, causal, slopes="learned"), "float32")


def test_finite_differences() -> None:
    """The gradient along a random direction is the change of sum(P * dp) along it; see the same
    test of the attention op for the tolerance."""
    case = Case(
        "differences", 2, 4, 2, 37, 45, 16, slopes="learned", spans=((0, 45, 8), (3, 44, 5))
    )
    x, dp = make_inputs(case), make_dp(case)
    rng = np.random.default_rng(5)
    point = [x.q, x.k, x.slopes]
    for index, (name, grad) in enumerate(named(backward(case, x, dp)).items()):
        direction = rng.standard_normal(point[index].shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        step = np.float32(0.01)

        def loss(s: np.float32, index: int = index, direction: Array = direction) -> float:
            moved = [a + s * direction if i == index else a for i, a in enumerate(point)]
            p = native.attention_weights(*moved, prune=False, **options_of(case, x))
            return float((to_float64(p) * dp).sum())

        slope = (loss(step) - loss(-step)) / (2 * float(step))
        along = float((to_float64(grad) * direction).sum())
        assert abs(slope - along) <= 2e-3 * np.linalg.norm(grad), name


THREADED = (
    Case("one-head", 1, 1, 1, 500, 500, 32),
    Case("one-head-full", 1, 1, 1, 200, 900, 16, causal=False),
    *SHARED,
)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", THREADED, ids=str)
def test_threads_do_not_change_a_bit(case: Case, dtype: str) -> None:
    x, dp = make_inputs(case, dtype), make_dp(case, dtype)
    for isa in ISAS[:2]:
        one = bits(backward(case, x, dp, threads=1, isa=isa))
        for threads in (2, 3, 16, 2):
            assert bits(backward(case, x, dp, threads=threads, isa=isa)) == one


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_touches_nothing_beyond_the_tensors(isa: str, dtype: str) -> None:
    """Every tensor ends at a guard page; no shape here is a multiple of a vector or a tile."""
    guarded = Guarded()
    for head_dim, causal in ((5, True), (67, False)):
        case = Case("guarded", 1, 2, 1, 53, 71, head_dim, causal)
        x, dp = make_inputs(case, dtype), make_dp(case, dtype)
        options = options_of(case, x, isa=isa)
        p = native.attention_weights(x.q, x.k, x.slopes, **options)
        plain = backward(case, x, dp, p, isa=isa)
        inputs = [guarded.like(a) for a in (x.q, x.k, x.slopes, p, dp)]
        grads = tuple(guarded.like(np.full_like(g, np.nan)) for g in plain)
        native.attention_weights_backward(*inputs, grads=grads, **options)
        assert bits(grads) == bits(plain)


@pytest.mark.parametrize("causal", [True, False])
def test_hidden_elements_may_hold_anything(causal: bool) -> None:
    """dp of a pair that is not allowed, keys outside the span and rows that see nothing may be
    NaN; what no one sees has gradient exactly 0."""
    case = Case("hidden", 2, 2, 1, 60, 200, 24, causal, spans=((80, 140, 60), (40, 40, 0)))
    x, dp, clean = make_inputs(case), make_dp(case), make_inputs(case)
    expected = backward(case, clean, dp)
    p = native.attention_weights(clean.q, clean.k, clean.slopes, **options_of(case, clean))
    j = np.arange(200)[None, :]
    for b, (start, end, first) in enumerate(case.spans or ()):
        allowed = (j >= start) & (j < end) & ((j <= first + np.arange(60)[:, None]) | (not causal))
        dp[b] = np.where(allowed, dp[b], np.nan)
        x.k[b, :, :start], x.k[b, :, end:] = np.nan, np.inf
        x.q[b][:, ~allowed.any(axis=1)] = np.nan
    for isa in ISAS:
        dq, dk, dslopes = got = backward(case, x, dp, p, isa=isa)
        if isa == ISAS[0]:
            assert bits(got) == bits(expected)
        assert np.isfinite(dslopes).all()
        assert np.isfinite(dq).all()
        for b, (start, end, _) in enumerate(case.spans or ()):
            assert not dk[b, :, :start].any()
            assert not dk[b, :, end:].any()


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0), (1, 2, 0, 0)])
def test_empty_sizes(shape: tuple[int, int, int, int]) -> None:
    batch, heads, len_q, len_k = shape
    case = Case("empty", batch, heads, heads, len_q, len_k, 8, causal=False)
    for grad in backward(case, make_inputs(case), make_dp(case)):
        assert not np.isnan(grad).any()
        assert not grad.any()


def test_slope_gradients_of_long_sequences() -> None:
    """dslopes against the sum of its terms' absolute values: each term carries a few roundings
    (8 * 2^-24), and the sum adds next to nothing."""
    case = Case("slopes-2048", 1, 2, 1, 2048, 2048, 16)
    x, dp = make_inputs(case), make_dp(case)
    truth = truth_of(case, x, dp)["dslopes"]
    p = oracle.weights(x.q, x.k, x.slopes, **options_of(case, x))
    centre = (p * dp).sum(axis=-1, keepdims=True)
    distance = abs(np.arange(2048)[:, None] - np.arange(2048)[None, :])
    sizes = (p * abs(dp - centre) * distance).sum(axis=(0, 2, 3))
    got = backward(case, x, dp)[2]
    assert (abs(got - truth) <= 8 * 2.0**-24 * sizes).all(), (got, truth, sizes)
