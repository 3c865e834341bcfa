"""The forward kernel against the float64 oracle: every mode, size, dtype and instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import DTYPES, LONG, SHAPES, SMALL, Case, make_inputs
from tests.compare import assert_close, assert_close_to_truth
from tests.native.plain import (
    ISAS,
    Guarded,
    floor,
    nan_like,
    rounded_weights,
    takes_pairs,
    truth_and_rival,
)

pytestmark = pytest.mark.usefixtures("tuning")


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
        for prune in (True, False):
            stats: dict[str, int] = {}
            assert_right(case, dtype, isa=isa, prune=prune, stats=stats)
        assert stats["tiles_visited"] == stats["tiles_allowed"]


@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_that_share_far_keys(causal: bool, layout: str) -> None:
    """16 heads of three tiles of rows, and 2 MB of keys and values: far_bytes of tuning.cc.

    Rows that share keys cut them into tiles elsewhere: more were counted as visited than allowed.
    """
    case = Case("", 1, 16, 2, 130, 8192 + 7, 32, causal, layout=layout)
    for prune in (True, False):
        stats: dict[str, int] = {}
        assert_right(case, "float32", prune=prune, stats=stats)
    assert stats["tiles_visited"] == stats["tiles_allowed"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
def test_heads_that_a_thread_copies(causal: bool, isa: str, dtype: str) -> None:
    """A thread that takes whole heads copies their keys where it has to convert them, where their
    rows lie 4 KB apart, and where float32 values would be copied for each tile of rows, at odd head
    dims. Of 500 threads each takes single tiles of rows, and nothing is copied.

    Even and odd numbers of keys and of head dims, as many rows or fewer; pairs of keys that begin
    at the other parity; runs that begin within a head, where the first tile of rows decides how far
    a causal copy goes, and that end within the next one of a group; pruning parts such heads;
    padding before and behind the keys, rows that stand further on, a sequence without keys.
    """
    padded = ((0, 301, 0), (37, 301, 0), (0, 150, 0), (8, 8, 0))
    wide = {"layout": "BSND", "causal": causal}
    for case in (
        Case("", 2, 4, 2, 301, 301, 8, **wide),
        Case("", 1, 4, 4, 300, 413, 7, **wide),
        Case("", 1, 16, 16, 260, 260, 64, **wide),
        Case("", 1, 3, 1, 672, 672, 8, causal=causal),
        Case("", 1, 4, 2, 255, 511, 5, causal=causal, bias="signed"),
        Case("", 4, 2, 2, 301, 301, 12, causal=causal, spans=padded),
        Case("", 3, 4, 2, 260, 401, 8, **wide, spans=((1, 300, 42), (90, 400, 7), (3, 50, 141))),
        Case("", 2, 16, 16, 260, 260, 64, **wide, spans=((11, 260, 0), (0, 133, 0))),
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_of_a_copied_head_may_hold_anything(causal: bool, isa: str, dtype: str) -> None:
    spans = ((37, 301, 0), (0, 150, 0))
    case = Case("", 2, 16, 16, 301, 301, 64, causal, layout="BSND", spans=spans)
    x = make_inputs(case, dtype)
    want = [a.tobytes() for a in forward(case, x, isa=isa, threads=1)]
    for b, (start, end, _) in enumerate(spans):
        for tensor in (x.k, x.v):
            tensor[b, :start], tensor[b, end:] = np.nan, np.nan
    assert [a.tobytes() for a in forward(case, x, isa=isa, threads=1)] == want


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
        Case("", 1, 16, 16, 260, 260, 64, layout="BSND", spans=((3, 259, 0),)),
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
