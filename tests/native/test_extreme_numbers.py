"""The forward kernel where numbers are large, not finite, or hidden by the mask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import DTYPES, Case, make_inputs
from tests.compare import EPSILON, assert_close
from tests.native.plain import FLOOR, ISAS, floor
from tests.native.test_forward import forward

pytestmark = pytest.mark.usefixtures("tuning")

# A few rows take the decode path, more of them the tiles of attention_fwd.inl.h.
BOTH_PATHS = pytest.mark.parametrize("rows", [3, 9], ids=["decode", "tiles"])


def with_scores(scores: Any, rows: int, **options: Any) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    """(out, lse, (q, k, v)) of rows whose scores are the given numbers, one per key, no bias."""
    n = len(scores)
    q = np.zeros((1, 1, rows, 4), np.float32)
    q[..., 0] = 1
    k = np.zeros((1, 1, n, 4), np.float32)
    k[0, 0, :, 0] = scores
    v = np.random.default_rng(n).standard_normal((1, 1, n, 4), np.float32)
    options = {"scale": 1.0, "causal": False, "prune": False, **options}
    return *native.attention_forward(q, k, v, np.zeros(1, np.float32), **options), (q, k, v)


@BOTH_PATHS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "far", [30.0, 1e3, 1e4, 1e30, -1e30, 2e38], ids=lambda value: f"far={value:g}"
)
@pytest.mark.parametrize("near", [0.0, -1e4, -1e30, 1e30], ids=lambda value: f"near={value:g}")
def test_the_maximum_may_be_anywhere(near: float, far: float, isa: str, rows: int) -> None:
    """The first tile visited holds `near`; one key of each later tile is larger (or smaller)."""
    n = 600
    scores = np.full(n, near, np.float32)
    for j in (0, 130, 300, 599):
        scores[j] = max(far, near) if j else far
    for order in (scores, scores[::-1]):
        out, lse, qkv = with_scores(order, rows, isa=isa)
        truth, truth_lse = oracle.attention(*qkv, [0.0], scale=1.0, causal=False)
        assert_close(out, truth, 2 * floor(truth), "out")  # equal scores: the sum has 600 terms
        assert_close(lse, truth_lse, floor(truth_lse), "lse")


@BOTH_PATHS
@pytest.mark.parametrize("isa", ISAS)
def test_a_maximum_that_grows_with_every_tile(isa: str, rows: int) -> None:
    """Every tile outgrows the one before: the sums are rescaled ten times over."""
    scores = -np.abs(np.arange(1300, dtype=np.float32)) * 0.5
    out, lse, qkv = with_scores(scores, rows, isa=isa)
    truth, truth_lse = oracle.attention(*qkv, [0.0], scale=1.0, causal=False)
    assert_close(out, truth, floor(truth), "out")
    assert_close(lse, truth_lse, floor(truth_lse), "lse")


@BOTH_PATHS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("far", [False, True])
def test_scores_that_are_not_finite(far: bool, isa: str, rows: int) -> None:
    """NaN and +inf spoil their rows; -inf is a weight of zero; all -inf is a row of nothing."""
    n = 400
    place = 5 if far else n - 5
    for bad in (np.nan, np.inf):
        scores = np.zeros(n, np.float32)
        scores[place] = bad
        out, lse, _ = with_scores(scores, rows, isa=isa)
        assert np.isnan(out).all()
        assert np.isnan(lse).all()
    scores = np.zeros(n, np.float32)
    scores[place] = -3e38
    kept = np.arange(n) != place
    out, lse, (_, _, v) = with_scores(scores, rows, isa=isa, scale=2.0)
    assert_close(out, np.broadcast_to(v[0, 0, kept].mean(axis=0), out.shape), floor(v), "out")
    assert_close(lse, np.full((1, 1, rows), np.log(n - 1)), floor(lse), "lse")
    out, lse, _ = with_scores(np.full(n, -3e38, np.float32), rows, isa=isa, scale=2.0)
    assert not out.any()
    assert np.isneginf(lse).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_keys_that_are_not_allowed_may_hold_anything(poison: float, dtype: str, isa: str) -> None:
    """Outside the span or in the future, in the same tile or not; not even through 0 * inf."""
    case = Case("", 1, 2, 1, 100, 140, 15, spans=((7, 122, 20),))
    x = make_inputs(case, dtype)
    clean, clean_lse = forward(case, x, isa=isa)
    for key in (0, 6, 60, 67, 100, 119, 120, 121, 122, 139):
        for spoiled in ("k", "v"):
            y = make_inputs(case, dtype)
            getattr(y, spoiled)[:, :, key] = poison
            out, lse = (a.astype(np.float32) for a in forward(case, y, isa=isa))
            blind = np.arange(20, 120) < key if 7 <= key < 120 else np.full(100, True)
            # Products with values that are not finite are summed one by one: other roundings.
            step = EPSILON[dtype] * abs(clean.astype(np.float32)).max()
            bound = floor(clean) if dtype == "float32" else step
            assert_close(out[:, :, blind], clean[:, :, blind], bound, "out")
            assert np.array_equal(lse[:, :, blind], clean_lse[:, :, blind])
            assert not np.isfinite(out[:, :, ~blind]).any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spoiled", ["k", "v"])
def test_an_edge_of_the_mask_in_every_lane(spoiled: str, dtype: str, isa: str) -> None:
    """First tiles of every height, and one batch item per row in which all later keys are NaN."""
    for n in range(1, 101):
        case = Case("", n, 1, 1, n, n, 8)
        x = make_inputs(Case("", 1, 1, 1, n, n, 8), dtype)
        clean, clean_lse = oracle.attention(x.q, x.k, x.v, x.slopes, **case.options)
        y = SimpleNamespace(spans=None, slopes=x.slopes)
        y.q, y.k, y.v = (np.repeat(a, n, axis=0) for a in (x.q, x.k, x.v))
        later = np.arange(n) > np.arange(n)[:, None]
        getattr(y, spoiled)[later[:, None]] = np.nan
        out, lse = forward(case, y, isa=isa, threads=1)
        bound = floor(clean) if dtype == "float32" else EPSILON[dtype] * abs(clean).max()
        for row in range(n):
            seen = slice(0, row + 1)
            assert_close(out[row, :, seen], clean[0, :, seen], bound, f"out, {n} rows")
            assert_close(lse[row, :, seen], clean_lse[0, :, seen], floor(clean_lse), "lse")
            assert np.isnan(out[row, :, row + 1 :].astype(np.float32)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
def test_rows_that_see_no_key_are_0_whatever_came_before(causal: bool, isa: str) -> None:
    """Their sums lie where those of rows that are NaN lay."""
    spans = ((0, 50, 0), (20, 20, 0), (0, 50, 0))
    case = Case("", 3, 2, 2, 50, 50, 8, causal=causal, spans=spans)
    x = make_inputs(case)
    x.q[::2] = np.nan
    out, lse = forward(case, x, isa=isa, threads=1)
    assert not out[1].any()
    assert np.isneginf(lse[1]).all()
    assert np.isnan(out[::2]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_large_values(isa: str) -> None:
    """Sums of weights times v do not overflow at 2^100, unless weights outgrow the first tile."""
    case = Case("", 1, 1, 1, 200, 200, 8, slopes="zero", causal=False)
    x = make_inputs(case)
    scale = np.float32(2.0**100)
    out, _ = native.attention_forward(
        x.q, x.k, x.v * scale, x.slopes, **case.options, isa=isa, prune=False
    )
    plain, _ = native.attention_forward(x.q, x.k, x.v, x.slopes, **case.options, isa=isa)
    assert np.array_equal(out, plain * scale)


@BOTH_PATHS
@pytest.mark.parametrize("isa", ISAS)
def test_large_values_under_weights_that_outgrow_the_first_tile(isa: str, rows: int) -> None:
    """A far key whose weight is 2^100 times the first ones' is rescaled before it meets v."""
    scores = np.zeros(300, np.float32)
    scores[0] = 100 * np.log(2)
    q, k = np.zeros((1, 1, rows, 4), np.float32), np.zeros((1, 1, 300, 4), np.float32)
    q[..., 0], k[0, 0, :, 0] = 1, scores
    v = np.full((1, 1, 300, 4), 2.0**90, np.float32)
    slopes = np.zeros(1, np.float32)
    out, _ = native.attention_forward(q, k, v, slopes, scale=1.0, isa=isa)
    assert_close(out / v[0, 0, 0], np.ones_like(out), FLOOR, "out")


@BOTH_PATHS
@pytest.mark.parametrize("isa", ISAS)
def test_long_distances_cost_no_accuracy(isa: str, rows: int) -> None:
    """One far key that matters as much as the near ones, at distances up to 100 000.

    Its score makes up for its bias exactly. A bias formed from absolute positions, or added to
    scores anchored far from the key, is off by 1e-4 to 1e-2 here.
    """
    n, slope = 100_001, 2.0**-7
    for distance in (1000, 33_333, 100_000):
        q = np.ones((1, 1, rows, 1), np.float32)
        k = np.zeros((1, 1, n, 1), np.float32)
        k[0, 0, n - 1 - distance] = distance * slope
        v = np.zeros((1, 1, n, 2), np.float32)
        v[0, 0, n - 1 - distance, 0] = 1
        q, k = np.repeat(q, 2, axis=3), np.concatenate([k, np.zeros_like(k)], axis=3)
        out, lse = native.attention_forward(
            q, k, v, np.float32([slope]), scale=1.0, prune=False, isa=isa
        )
        truth, truth_lse = oracle.attention(q, k, v, [slope], scale=1.0)
        # The scores reach 781 = 2^9.6 in natural units; their float32 spacing is 2^-14.
        assert_close(out / truth.max(), truth / truth.max(), 2.0**-13, "out")
        assert_close(lse, truth_lse, 2.0**-20 * (1 + abs(truth_lse).max()), "lse")


@BOTH_PATHS
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_one_key_is_its_value(dtype: str, isa: str, rows: int) -> None:
    """In every bit: its only weight is a power of two, and so is the sum."""
    x = make_inputs(Case("", 2, 2, 1, rows, rows, 40), dtype)
    out, lse = native.attention_forward(x.q, x.k, x.v, x.slopes, isa=isa)
    assert np.array_equal(out[:, :, 0], np.repeat(x.v[:, :, 0], 2, axis=1))
    score = (x.q[:, :, 0].astype(float) * x.k[:, :, 0].astype(float)).sum(-1) / np.sqrt(40)
    assert_close(lse[:, :, 0], score, floor(score), "lse")
