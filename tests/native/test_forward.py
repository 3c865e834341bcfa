"""The forward kernel against the float64 oracle: every mode, size, dtype and instruction set."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import DTYPES, LONG, SHAPES, SMALL, Case, make_inputs
from tests.compare import EPSILON, assert_close, assert_close_to_truth
from tests.native.plain import (
    FLOOR,
    ISAS,
    Guarded,
    floor,
    nan_like,
    rounded_weights,
    takes_pairs,
    truth_and_rival,
)


def forward(case: Case, x: Any, **options: Any) -> tuple[Any, Any]:
    """Into memory full of NaN."""
    results = nan_like(x.q), np.full((case.B, case.Hq, case.Sq), np.nan, np.float32)
    given = {**case.options, "spans": x.spans, "out": results, **options}
    return native.attention_forward(x.q, x.k, x.v, x.slopes, **given)


def assert_right(case: Case, dtype: str, **options: Any) -> None:
    """At most twice the error of plain float32 NumPy, plus the floor."""
    out, lse = forward(case, make_inputs(case, dtype), **options)
    truth, rival = truth_and_rival(case, dtype)
    rounding = rounded_weights(case, dtype) if takes_pairs(dtype, options.get("isa")) else 0.0
    assert_close_to_truth(out, truth[0], rival[0], 2.0, floor(truth[0]) + rounding, "out")
    assert_close_to_truth(lse, truth[1], rival[1], 2.0, floor(truth[1]), "lse")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_mode(case: Case, dtype: str, isa: str) -> None:
    assert_right(case, dtype, isa=isa, prune=False)
    assert_right(case, dtype, isa=isa, prune=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_every_shape(case: Case, dtype: str, isa: str) -> None:
    assert_right(case, dtype, isa=isa, prune=False)


@pytest.mark.slow
@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("case", LONG, ids=str)
def test_long(case: Case, prune: bool) -> None:
    assert_right(case, "float32", prune=prune)


@pytest.mark.parametrize("isa", ISAS)
def test_every_head_dim(isa: str) -> None:
    for dim in range(1, 257):
        dtype = DTYPES[dim % 3]
        assert_right(Case("", 1, 2, 1, 7, 19, dim, layout="BSND"), dtype, isa=isa)


@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 31, 32, 33, 34, 63, 95, 130, 255])
def test_head_dims_of_bfloat16(dim: int) -> None:
    """Pairs of head dims and of keys that are not full, and rows at odd addresses."""
    for isa in ISAS:
        for layout in ("BSND", "BNSD"):
            assert_right(Case("", 1, 2, 1, 51, 77, dim, layout=layout), "bfloat16", isa=isa)
            full = Case("", 1, 2, 1, 51, 77, dim, causal=False, layout=layout)
            assert_right(full, "bfloat16", isa=isa)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
def test_every_length(causal: bool, isa: str, dtype: str) -> None:
    """Across all tile boundaries: 48 or 24 or 12 rows, 192 keys."""
    for n in [*range(1, 75), 127, 129, 143, 145, *range(188, 198), 255, 257]:
        assert_right(Case("", 1, 1, 1, n, n, 8, causal=causal), dtype, isa=isa)
        assert_right(Case("", 1, 1, 1, 3, n + 2, 4, causal=causal), dtype, isa=isa)


def test_the_short_tile_of_rows_is_the_first() -> None:
    """205 rows in tiles of 12, keys from 4 on: the first row sees none, each tile of rows after it
    its diagonal, and all but one of these a tile of up to 189 keys before it. A short last tile
    would stand behind 200 keys, two tiles.
    """
    stats: dict[str, int] = {}
    case = Case("", 1, 1, 1, 205, 205, 8, spans=((4, 205, 0),))
    x = make_inputs(case)
    forward(case, x, isa="scalar", prune=False, stats=stats)
    assert stats["tiles_allowed"] == 17 + 16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bias", ["symmetric", "signed"])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_that_share_converted_keys(causal: bool, bias: str, isa: str, dtype: str) -> None:
    """Enough heads and rows that up to four row tiles are one item of work.

    Rows before the keys, among them and past them; a first item with fewer row tiles, a first row
    tile with fewer rows; runs that the bound ends in different places for the rows of one item.
    """
    spans = ((0, 300, 0), (40, 211, -30), (7, 299, 260), (120, 120, 5))
    mode = {"causal": causal, "bias": bias, "slopes": "learned"}
    for case in (
        Case("", 4, 8, 4, 201, 300, 8, **mode, spans=spans if not causal else None),
        Case("", 4, 8, 4, 201, 300, 8, **mode, spans=(spans[0], (40, 211, 30), *spans[2:])),
        Case("", 1, 8, 8, 437, 437, 4, causal=causal, bias=bias),
    ):
        for prune in (False, True):
            assert_right(case, dtype, isa=isa, prune=prune)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
def test_heads_that_a_thread_copies(causal: bool, isa: str, dtype: str) -> None:
    """A thread that takes whole heads copies their keys where it has to convert them or where their
    rows lie 4 KB apart. Of 500 threads each takes single tiles of rows, and nothing is copied.

    Even and odd numbers of keys and of head dims, as many rows or fewer; pairs of keys that begin
    at the other parity; runs that begin within a head, where the first tile of rows decides how far
    a causal copy goes, and that end within the next one of a group; pruning parts such heads.
    """
    wide = {"layout": "BSND", "causal": causal}
    for case in (
        Case("", 2, 4, 2, 301, 301, 8, **wide),
        Case("", 1, 4, 4, 300, 413, 7, **wide),
        Case("", 1, 16, 16, 260, 260, 64, **wide),
        Case("", 1, 3, 1, 672, 672, 8, causal=causal),
        Case("", 1, 4, 2, 255, 511, 5, causal=causal, bias="signed"),
    ):
        for prune in (False, True):
            options: Any = {"isa": isa, "prune": prune}
            assert_right(case, dtype, threads=1, **options)
            x = make_inputs(case, dtype)
            results = [forward(case, x, threads=n, **options) for n in (1, 2, 3, 5, 500)]
            bits = [[a.tobytes() for a in result] for result in results]
            assert bits == bits[-1:] * 5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_rows_do_not_see_what_follows_in_a_copied_head(isa: str, dtype: str) -> None:
    """302 rows in tiles of 48, 24 or 12: the first has 14 or 2, and NaN stands behind its keys."""
    for length, first in ((302, 14 if isa != "scalar" else 2), (301, 13 if isa != "scalar" else 1)):
        case = Case("", 2, 4, 2, length, length, 8, layout="BSND")
        x = make_inputs(case, dtype)
        x.k[:, first:], x.v[:, first:] = np.nan, np.nan
        out, lse = forward(case, x, isa=isa, prune=False, threads=1)
        assert np.isfinite(out[:, :first].astype(np.float32)).all()
        assert np.isfinite(lse[:, :, :first]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
def test_every_diagonal(causal: bool, isa: str, dtype: str) -> None:
    """The diagonal enters, crosses and leaves the keys [5, 60), a step at a time."""
    for q_start in range(0 if causal else -64, 130):
        span = ((5, 60, q_start),)
        case = Case("", 1, 2, 2, 53, 61, 8, causal=causal, spans=span, slopes="learned")
        assert_right(case, dtype, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("q_start", [2**24 + 1, 2**31 - 60])
@pytest.mark.parametrize("bias", ["symmetric", "signed"])
def test_rows_far_past_the_keys(bias: str, q_start: int, isa: str) -> None:
    """The distance is a constant of the softmax: out stays exact, and lse gets it back.

    lse is about -slope * q_start, so its error is relative to that: one float32 rounding.
    """
    case = Case("", 1, 2, 2, 50, 70, 16, bias=bias, spans=((0, 70, q_start),), slopes="learned")
    x = make_inputs(case)
    out, lse = forward(case, x, isa=isa)
    truth, truth_lse = oracle.attention(x.q, x.k, x.v, x.slopes, **case.options, spans=x.spans)
    assert_close(out, truth, floor(truth), "out")
    assert_close(lse / truth_lse, np.ones_like(truth_lse), 2.0**-23, "lse")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_packed_projections_are_the_same_computation(dtype: str, isa: str) -> None:
    """Views of [B, S, 3, H, D] and BSND reach the kernel as strides: the same bits come out."""
    case = Case("", 2, 3, 3, 70, 70, 24, layout="BSND")
    packed = np.concatenate(
        [getattr(make_inputs(case, dtype), name)[:, :, None] for name in "kqv"], axis=2
    )
    k, q, v = (packed[:, :, i] for i in range(3))
    slopes = make_inputs(case).slopes
    room = np.full((2, 70, 5, 24), np.nan, q.dtype)
    lse = np.full((2, 3, 70), np.nan, np.float32)
    options = {"input_layout": "BSND", "isa": isa}
    native.attention_forward(q, k, v, slopes, out=(room[:, :, 1:4], lse), **options)
    q, k, v = (np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in (q, k, v))
    plain, plain_lse = native.attention_forward(q, k, v, slopes, isa=isa)
    assert np.array_equal(room[:, :, 1:4].transpose(0, 2, 1, 3), plain)
    assert np.array_equal(lse, plain_lse)
    outside = room[:, :, [0, 4]].astype(np.float32)
    assert np.isnan(outside).all(), "wrote between the rows of the output"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_outside_the_tensors(dtype: str, at_end: bool, isa: str) -> None:
    for case in (
        Case("", 1, 1, 1, 1, 1, 1),
        Case("", 1, 2, 1, 50, 131, 8),
        Case("", 1, 2, 2, 49, 129, 33, causal=False, layout="BSND"),
        Case("", 1, 1, 1, 17, 70, 13, spans=((3, 69, 40),)),
        Case("", 1, 1, 1, 3, 200, 40, causal=False, bias="signed"),
    ):
        x = make_inputs(case, dtype)
        guarded = Guarded(at_end)
        q, k, v, slopes, out = (guarded.copy(a) for a in (x.q, x.k, x.v, x.slopes, nan_like(x.q)))
        lse = guarded.copy(np.full((case.B, case.Hq, case.Sq), np.nan, np.float32))
        spans = None if x.spans is None else guarded.copy(x.spans)
        native.attention_forward(
            q, k, v, slopes, spans=spans, isa=isa, out=(out, lse), **case.options
        )
        want, want_lse = forward(case, x, isa=isa)
        assert np.array_equal(out, want)
        assert np.array_equal(lse, want_lse)


@pytest.mark.parametrize("isa", ISAS)
def test_empty(isa: str) -> None:
    slopes = np.float32([0.5, 0.25])
    for shape_q, shape_k in [((0, 2, 5, 8), (0, 2, 7, 8)), ((3, 2, 0, 8), (3, 2, 7, 8))]:
        q, k = np.zeros(shape_q, np.float32), np.zeros(shape_k, np.float32)
        out, lse = native.attention_forward(q, k, k, slopes, isa=isa)
        assert (out.shape, lse.shape) == (shape_q, shape_q[:3])
    q, k = np.ones((1, 2, 5, 8), np.float32), np.zeros((1, 2, 0, 8), np.float32)
    given = nan_like(q), np.full((1, 2, 5), np.nan, np.float32)
    out, lse = native.attention_forward(q, k, k, slopes, causal=False, isa=isa, out=given)
    assert not out.any()
    assert np.isneginf(lse).all()


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
    """Sums of weights times v do not overflow where the result does not."""
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
