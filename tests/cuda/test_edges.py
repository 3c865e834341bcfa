"""Numbers at the edge of what float32 holds, on the model of each kind of GPU: rows of NaN, weights
of rows far from their keys, keys that are just negligible, norms whose squares underflow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests import oracle
from tests.cases import NUMPY_DTYPES, Case, Inputs, make_inputs
from tests.compare import assert_close
from tests.cuda.checks import check
from tests.cuda.model import Calls, Model

# The first two rows of the second batch item see nothing. Decoding, and a call for tiles of rows;
# a GPU of 40 multiprocessors splits the keys of both.
NOT_A_NUMBER = (
    Case("decode", 2, 2, 2, 5, 2200, 64, spans=((0, 2200, 2195), (400, 2200, 398))),
    Case("tiles", 2, 1, 1, 18, 900, 64, spans=((0, 900, 882), (400, 900, 398)), slopes="learned"),
)


def _equal(got: Any, want: Any, prune: bool) -> None:
    """In every bit, but for the keys that a tile visits only because of a row that is NaN: those
    weigh less than 2^-24, which may turn one rounding of a float16 below 4."""
    got, want = got.astype(np.float32), want.astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=0, atol=2.0**-9 if prune else 0)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("multiprocessors", [1, 40])
@pytest.mark.parametrize("case", NOT_A_NUMBER, ids=str)
def test_a_query_of_nan_is_nan_and_no_other_row_is(
    every_gpu: Model, case: Case, multiprocessors: int, prune: bool
) -> None:
    """Not a row of zeros, which is what a row without keys is."""
    x = make_inputs(case, "float16")
    every_gpu.configure(multiprocessors=multiprocessors)
    clean = [y.copy() for y in Calls(every_gpu, case, "float16", x, prune).forward()]
    x.q[0, 0, 1, 3] = x.q[1, 0, 4, 3] = np.nan
    x.q[1, 0, 0, 3] = np.nan  # sees nothing
    out, lse = Calls(every_gpu, case, "float16", x, prune).forward()
    expected = np.zeros(lse.shape, bool)
    expected[0, 0, 1] = expected[1, 0, 4] = True
    np.testing.assert_array_equal(np.isnan(lse), expected)
    np.testing.assert_array_equal(np.isnan(out), np.repeat(expected[..., None], case.D, axis=-1))
    _equal(out[~expected], clean[0][~expected], prune)
    _equal(lse[~expected], clean[1][~expected], prune)
    assert (lse[1, 0, :2] == -np.inf).all()
    assert not out[1, 0, :2].any()


def test_the_weights_of_a_query_of_nan_are_nan_and_no_others(every_gpu: Model) -> None:
    case = NOT_A_NUMBER[1]
    x = make_inputs(case, "float16")
    clean = Calls(every_gpu, case, "float16", x).weights().copy()
    x.q[0, 0, 1, 3] = np.nan
    p = Calls(every_gpu, case, "float16", x).weights()
    position = 882 + 1
    assert np.isnan(p[0, 0, 1, : position + 1]).all()
    p[0, 0, 1] = clean[0, 0, 1]
    np.testing.assert_array_equal(p, clean)


@pytest.mark.parametrize(
    "span", [(35, 64, 2339), (35, 64, 800), (0, 200, 5000)], ids=lambda span: f"from-{span[2]}"
)
def test_weights_of_rows_far_from_their_keys_sum_to_one(
    every_gpu: Model, span: tuple[int, int, int]
) -> None:
    """Their log-sum-exp is so large that its rounding alone would scale all weights of a row."""
    case = Case("far", 1, 2, 1, 65, 200, 64, bias="signed", spans=(span,), slopes="steep")
    check(every_gpu, case, "float32", parts=("weights",))
    p = Calls(every_gpu, case, "float32", make_inputs(case, "float32")).weights()
    np.testing.assert_allclose(p.astype(np.float64).sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_pruning_changes_the_slope_gradient_by_no_more_than_theorem_2_says(
    every_gpu: Model, dtype: str
) -> None:
    """In dslopes a key counts as many times as it is far away, which Rule B pays for. Equal keys
    make the bound on the scores exact; values of 1 from where Rule B without its factor 1 + m d
    would leave keys out, and of 0 before, make all that is left out pull in one direction."""
    case = Case("rule-b", 1, 8, 8, 64, 448, 64)
    first = case.Sk - case.Sq  # position of the first row, the only one with a gradient
    slopes = np.linspace(0.138, 0.306, case.Hq)
    arrays = [np.zeros((1, 8, n, case.D), NUMPY_DTYPES[dtype]) for n in (64, 448, 448, 64)]
    q, k, v, dout = arrays
    q[..., 0] = k[..., 0] = dout[..., 0, 0] = 1
    for h, slope in enumerate(slopes):
        distance = math.ceil((25 * math.log(2) + 0.05) / slope)
        v[0, h, : first - distance + 1, 0] = 1
    dlse = np.zeros((1, 8, 64), np.float32)
    x = Inputs(q, k, v, slopes.astype(np.float32), None, dout, dlse)
    dslopes = []
    for prune in (False, True):
        calls = Calls(every_gpu, case, dtype, x, prune)
        calls.forward()
        dslopes.append(calls.backward()[3].astype(np.float64))
    change, bound = np.abs(dslopes[1] - dslopes[0]), 2.0**-24 / slopes  # G = 1
    assert change.any(), "nothing was left out"
    assert (change <= bound).all(), f"{change / bound} times the bound"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("multiprocessors", [1, 40])
@pytest.mark.parametrize("small", ["q", "k"])
def test_norms_are_positive_where_their_squares_underflow(
    every_gpu: Model, small: str, multiprocessors: int, dtype: str
) -> None:
    """A scale of 1e25 makes scores of 2000 of an element of 1e-23, whose square is 0."""
    if every_gpu.capability == 75 and dtype == "bfloat16":
        pytest.skip("bfloat16 needs 8.0")
    rows = 64 if multiprocessors == 1 else 20  # which a large GPU splits
    case = Case("tiny", 1, 1, 1, rows, 640, 64, slopes="steep", scale=1e25)
    x = make_inputs(case, dtype)
    size = {"q": 20.0, "k": 20.0, small: 1e-23}
    x.slopes[:] = 2
    x.q[:], x.k[:] = 0, 0
    x.q[..., 0], x.k[:, :, 0, 0] = size["q"], size["k"]  # all rows attend to the first key alone
    results = []
    for prune in (False, True):
        every_gpu.configure(multiprocessors=multiprocessors)
        calls = Calls(every_gpu, case, dtype, x, prune)
        results.append([y.copy() for y in (*calls.forward(), *calls.backward())])
    for pruned, dense in zip(results[1], results[0], strict=True):
        np.testing.assert_array_equal(pruned, dense)
    assert (results[1][1] > 700).all()


@pytest.mark.parametrize("distance", [10_000, 1_000_000])
@pytest.mark.parametrize(("causal", "bias"), [(True, "symmetric"), (False, "signed")])
def test_rows_far_from_their_keys_lose_what_rounding_of_their_bias_costs(
    every_gpu: Model, causal: bool, bias: str, distance: int
) -> None:
    """docs/maths.md, section 4: scores are off by 4 roundings of their bias, rows not moved."""
    start = distance if causal else -distance
    case = Case("far", 1, 2, 2, 70, 200, 64, causal, bias, spans=((0, 200, start),))
    x = make_inputs(case, "float32")
    out, lse = Calls(every_gpu, case, "float32", x).forward()
    truth = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    score_error = 4 * 2.0**-24 * (float(x.slopes.max()) * (distance + 270) + 100)
    assert_close(out, truth[0], 2 * score_error * float(np.abs(x.v).max()))
    assert_close(lse, truth[1], 2 * score_error)
