"""A decode step, few query rows against many keys, takes a path of its own (csrc/cpu/decode.inl.h).

Every mode against the float64 oracle, and pruning against the dense result: without key norms all
keys are read and the values that do not matter are not; with them, neither are.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import DTYPES, SLOPES, Case, Inputs, make_inputs
from tests.native.plain import ISAS, Guarded, choose_tuning, nan_like
from tests.native.test_forward import assert_right, forward
from tests.native.test_prune import ADVERSARIAL, adversarial

pytestmark = pytest.mark.usefixtures("tuning")

MOST_ROWS = 8  # kDecodeRows
NEAR, CHUNK = 128, 512  # kNearKeys, kMinChunkKeys


def modes() -> list[Case]:
    """Each combination of causal, bias, layout; heads, rows, sizes, slopes, spans take turns.

    Group sizes 1, 3, 4, 8 and one key head for all; rows 1 to 8; two chunks and a part of one.
    """
    heads = cycle([(2, 2), (8, 2), (8, 1), (3, 1), (6, 2)])
    sizes = cycle([(1, 700, 64), (2, 1300, 20), (5, 150, 33), (8, 41, 7), (3, 660, 80), (7, 9, 1)])
    slopes = cycle(SLOPES)
    cases = []
    for causal in (True, False):
        for bias in ("symmetric", "signed"):
            for layout in ("BNSD", "BSND"):
                for spans in (False, True, True):
                    (heads_q, heads_kv), (rows, n, dim) = next(heads), next(sizes)
                    items = ((n // 3, n - 1, n // 2), (0, n, n - rows), (2, 7, 3 * n))
                    cases.append(
                        Case(
                            f"{causal}-{bias}-{layout}-{heads_q}/{heads_kv}x{rows}x{n}x{dim}",
                            3,
                            heads_q,
                            heads_kv,
                            rows,
                            n,
                            dim,
                            causal,
                            bias,
                            layout,
                            items if spans else None,
                            next(slopes),
                        )
                    )
    return cases


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", modes(), ids=str)
def test_every_mode(case: Case, dtype: str, isa: str) -> None:
    stats: dict[str, int] = {}
    for prune in (False, True):
        assert_right(case, dtype, isa=isa, prune=prune, stats=stats)
        assert stats["decode_rows"] == case.B * case.Hq * case.Sq
    norms = native.key_norms(make_inputs(case, dtype).k, input_layout=case.layout)
    assert_right(case, dtype, isa=isa, prune=True, key_norms=norms)


def test_which_rows_take_the_path() -> None:
    for rows in (1, MOST_ROWS, MOST_ROWS + 1):
        case = Case("", 1, 2, 2, rows, 50, 8)
        stats: dict[str, int] = {}
        forward(case, make_inputs(case), stats=stats)
        assert stats["decode_rows"] == (2 * rows if rows <= MOST_ROWS else 0)


def test_blocks_are_those_of_the_chosen_cpu() -> None:
    """So the tests of this file see every size of the table."""
    case = Case("", 1, 1, 1, 1, 4096, 128)
    blocks = []
    for row in range(choose_tuning(-1)):
        choose_tuning(row)
        stats: dict[str, int] = {}
        forward(case, make_inputs(case), prune=False, stats=stats)
        blocks.append(stats["tiles_visited"])
    assert [4096 // n for n in blocks] == [16, 64]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rows", [2, 4])
def test_every_length(rows: int, causal: bool, isa: str) -> None:
    """Across the boundaries of blocks of 16, of the near chunk, and of the chunks behind it."""
    lengths = [*range(rows, 36), *range(NEAR - 2, NEAR + 3), NEAR + 15, NEAR + 16]
    lengths += [NEAR + CHUNK + i for i in (-1, 0, 1, 17)] + [NEAR + 2 * CHUNK + 1]
    for n in lengths:
        for q_start in (n - rows, n // 2):  # at the end, and with keys on both sides
            span = ((0, n, q_start),)
            assert_right(Case("", 1, 1, 1, rows, n, 4, causal, spans=span), "float32", isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 64, 128, 130])
def test_every_end_of_a_block(dim: int, dtype: str, isa: str) -> None:
    """Groups of four query heads, and of seven: four, two and one row that share a key."""
    for n in [*range(1, 20), *range(60, 69), 127, 130]:
        assert_right(Case("", 1, 14 if n % 2 else 8, 2, 1, n, dim), dtype, isa=isa, prune=False)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
def test_every_diagonal(causal: bool, isa: str) -> None:
    """The rows enter, cross and leave the keys [5, 60), a step at a time."""
    for q_start in range(0 if causal else -20, 80):
        span = ((5, 60, q_start),)
        case = Case("", 1, 2, 1, 7, 61, 8, causal=causal, spans=span, slopes="learned")
        assert_right(case, "float32", isa=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_head_dim(isa: str) -> None:
    for dim in range(1, 257):
        case = Case("", 1, 1 + dim % 7, 1, 1, 19, dim, layout="BSND")
        assert_right(case, DTYPES[dim % 3], isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bias", ["symmetric", "signed"])
def test_rows_far_past_a_long_cache(bias: str, isa: str) -> None:
    """Positions of 2^24 and more, distances of 100 000: out is as exact as near the keys."""
    n = 100_003
    case = Case("", 1, 2, 1, 2, n, 4, bias=bias, slopes="learned", magnitude=3.0)
    near = forward(case, make_inputs(case), isa=isa, prune=False)[0]
    case = replace(case, spans=((0, n, 2**24 + 5),))
    x = make_inputs(case)
    truth, truth_lse = oracle.attention(x.q, x.k, x.v, x.slopes, **case.options, spans=x.spans)
    out, lse = forward(case, x, isa=isa, prune=False)
    assert np.abs(out - truth).max() <= 2.0**-20 * np.abs(x.v).max()
    assert np.abs(lse / truth_lse - 1).max() <= 2.0**-23
    assert np.isfinite(near).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_outside_the_tensors(dtype: str, at_end: bool, isa: str) -> None:
    for case in (
        Case("", 1, 1, 1, 1, 1, 1),
        Case("", 2, 8, 2, 1, 147, 33),
        Case("", 1, 6, 1, 3, 700, 20, causal=False, layout="BSND", spans=((5, 699, 300),)),
        Case("", 2, 5, 5, 1, 1147, 33, layout="BSND"),
    ):
        x = make_inputs(case, dtype)
        norms = native.key_norms(x.k, input_layout=case.layout)
        want, want_lse = forward(case, x, isa=isa, key_norms=norms)
        guarded = Guarded(at_end)
        q, k, v, slopes, out = (guarded.copy(a) for a in (x.q, x.k, x.v, x.slopes, nan_like(x.q)))
        lse = guarded.copy(np.full((case.B, case.Hq, case.Sq), np.nan, np.float32))
        options = {**case.options, "spans": None if x.spans is None else guarded.copy(x.spans)}
        options["key_norms"] = guarded.copy(norms)
        native.attention_forward(q, k, v, slopes, isa=isa, out=(out, lse), **options)
        assert np.array_equal(out, want)
        assert np.array_equal(lse, want_lse)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
def test_keys_that_are_not_allowed_may_hold_anything(layout: str, poison: float, isa: str) -> None:
    """Outside the span, or in the future of a row whose neighbours see them: the same bits."""
    rows, first = 6, 150
    spans = 8 * ((7, 155, first),)
    case = Case("", 8, 8, 4, rows, 170, 16, layout=layout, spans=spans)

    def by_head(x: Any) -> Any:
        return x if layout == "BNSD" else x.swapaxes(1, 2)

    x = make_inputs(case)
    clean, clean_lse = forward(case, x, isa=isa)
    for key in (0, 6, 151, 153, 154, 155, 169):
        for spoiled in ("k", "v"):
            y = make_inputs(case)
            by_head(getattr(y, spoiled))[:, :, key] = poison
            out, lse = forward(case, y, isa=isa)
            blind = np.arange(first, first + rows) < key if 7 <= key < 155 else np.full(rows, True)
            assert np.array_equal(by_head(out)[:, :, blind], by_head(clean)[:, :, blind])
            assert np.array_equal(lse[:, :, blind], clean_lse[:, :, blind])
            assert not np.isfinite(by_head(out)[:, :, ~blind]).any()


THREADED = (
    Case("heads", 2, 6, 2, 1, 3000, 64, layout="BSND"),
    Case("turns", 1, 33, 33, 1, 1500, 40, layout="BSND"),
    Case("one-head", 1, 1, 1, 5, 9000, 64, slopes="learned"),
    Case("spans", 3, 4, 1, 2, 2500, 40, False, spans=((0, 2500, 9), (700, 900, 800), (3, 3, 0))),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", THREADED, ids=str)
def test_same_bits_for_any_number_of_threads(case: Case, dtype: str, isa: str) -> None:
    x = make_inputs(case, dtype)
    norms = native.key_norms(x.k, input_layout=case.layout)
    for options in ({"prune": False}, {"prune": True}, {"prune": True, "key_norms": norms}):
        one, one_lse = forward(case, x, isa=isa, threads=1, **options)
        for threads in (2, 3, 7):
            out, lse = forward(case, x, isa=isa, threads=threads, **options)
            assert out.tobytes() == one.tobytes()
            assert lse.tobytes() == one_lse.tobytes()


def prune(case: Case, x: Inputs, norms: Any = None, **options: Any) -> tuple[Any, Any, Any]:
    """(out, lse, (share of the tiles whose values were read, share whose keys were))."""
    stats: dict[str, int] = {}
    out, lse = forward(case, x, stats=stats, key_norms=norms, **options)
    allowed = stats["tiles_allowed"]
    return out, lse, (stats["tiles_visited"] / allowed, stats["tiles_scored"] / allowed)


def assert_exact(case: Case, x: Inputs, **options: Any) -> tuple[float, float, float]:
    """Pruned, with and without norms, against dense, as test_prune.py bounds it.

    Returns the share of values read without norms, of values with norms, and of keys with norms.
    """
    dense, dense_lse, everything = prune(case, x, prune=False, **options)
    assert everything == (1.0, 1.0)
    largest = float(np.abs(x.v.astype(np.float32)).max())
    seen = np.isfinite(dense_lse)
    shares = []
    for norms in (None, native.key_norms(x.k, input_layout=case.layout)):
        out, lse, share = prune(case, x, norms, prune=True, **options)
        moved = np.abs(out.astype(np.float64) - dense.astype(np.float64)).max()
        assert moved <= 2.0**-22 * largest, f"out moved by {moved / largest:.2e} of max |v|"
        assert np.array_equal(np.isfinite(lse), seen)
        moved_lse = np.abs(lse[seen].astype(np.float64) - dense_lse[seen])
        assert (moved_lse <= 2.0**-22 * (1 + np.abs(dense_lse[seen]))).all()
        shares.append(share)
    assert shares[0][1] == 1.0, "without norms every key has to be read"
    return shares[0][0], *shares[1]


RANDOM = (
    Case("one-row", 1, 8, 8, 1, 5000, 64),
    Case("rows", 2, 4, 4, 8, 3000, 32),
    Case("grouped", 1, 16, 2, 1, 6000, 64, layout="BSND"),
    Case("turns", 1, 12, 12, 1, 3000, 64, layout="BSND"),
    Case("steep", 1, 2, 2, 1, 1000, 16, slopes="steep"),
    Case("two-sides", 1, 4, 4, 2, 6000, 32, False, spans=((100, 6000, 3000),)),
    Case("past-the-keys", 1, 4, 4, 3, 2500, 32, spans=((0, 2500, 90_000),)),
    Case("before-the-keys", 1, 4, 4, 3, 2500, 32, False, spans=((50, 2500, -400),)),
    Case("near-the-start", 1, 4, 4, 2, 2500, 32, False, spans=((0, 2500, 3),)),
    Case("batch", 3, 4, 2, 1, 4000, 32, spans=((0, 4000, 3999), (9, 900, 899), (0, 0, 0))),
    Case("large-scores", 1, 4, 4, 1, 3000, 16, magnitude=3.0),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_pruning_random_inputs(case: Case, isa: str) -> None:
    values, with_norms, keys = assert_exact(case, make_inputs(case), isa=isa)
    assert values < 1.0, "no value was left out: the comparison says nothing"
    assert with_norms <= keys < 1.0, "no key was left out: the comparison says nothing"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_pruning_adversarial_inputs(name: str, isa: str) -> None:
    for rows in (1, 4):
        case = Case("", 1, 4, 4, rows, 1500, 16)
        x = adversarial(name, case)
        assert_exact(case, x, isa=isa)
        # The same keys on the other side: the rows stand before them.
        mirrored = replace(case, causal=False, spans=((0, 1500, 0),))
        x = replace(x, q=x.q[:, :, ::-1], k=x.k[:, :, ::-1], v=x.v[:, :, ::-1])
        assert_exact(mirrored, replace(x, spans=np.int32(mirrored.spans)), isa=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_keys_that_reach_the_bound(isa: str) -> None:
    """All keys equal and parallel to the queries: neither test has any slack.

    The dropped values differ from the result, and all chunks use up their shares.
    """
    case = Case("", 1, 4, 4, 1, 6000, 16)
    x = make_inputs(case)
    x.q[...], x.k[...] = 1, 1
    x.v[:, :, :5000], x.v[:, :, 5000:] = 1, -1
    assert assert_exact(case, x, isa=isa)[2] < 1.0


@pytest.mark.parametrize("slopes", ["zero", "negative"])
@pytest.mark.parametrize("bias", ["symmetric", "signed"])
@pytest.mark.parametrize("causal", [True, False])
def test_never_where_the_bound_says_nothing(causal: bool, bias: str, slopes: str) -> None:
    case = Case("", 1, 2, 2, 2, 1500, 16, causal, bias, slopes=slopes)
    assert assert_exact(case, make_inputs(case)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("slopes", [(0.0, 0.5), (0.5, 0.0), (-0.01, 0.5), (0.5, -0.01)])
def test_never_where_one_head_of_a_group_has_no_bound(slopes: tuple[float, float]) -> None:
    """Heads that share their keys share the decision, whichever comes first. The scores of the far
    keys are so low that every head's weights would allow it."""
    case = Case("", 1, 2, 1, 1, 1500, 16)
    x = replace(make_inputs(case), slopes=np.float32(slopes))
    x.q[...], x.k[...] = 8, 0
    x.k[:, :, -64:] = 4
    assert assert_exact(case, x) == (1.0, 1.0, 1.0)


def test_never_for_signed_bias_without_mask() -> None:
    case = Case("", 1, 2, 2, 2, 1500, 16, causal=False, bias="signed")
    assert assert_exact(case, make_inputs(case)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("isa", ISAS)
def test_steep_heads_read_a_window(isa: str) -> None:
    """What is read does not grow with the cache."""
    read = []
    for n in (2000, 4000, 8000):
        case = Case("", 1, 1, 1, 1, n, 16)
        x = replace(make_inputs(case), slopes=np.float32([0.25]))
        stats: dict[str, int] = {}
        norms = native.key_norms(x.k)
        forward(case, x, isa=isa, key_norms=norms, stats=stats)
        read.append((stats["tiles_scored"], stats["tiles_visited"]))
    scored, visited = zip(*read, strict=True)
    assert max(scored) - min(scored) <= 3
    assert max(visited) - min(visited) <= 2
    assert max(scored) * 16 <= 600


def test_norms_leave_far_keys_and_values_unread() -> None:
    """What is behind the bound may be anything; without norms far keys are read, values are not."""
    case = Case("", 1, 2, 2, 1, 2000, 16, slopes="steep")
    x = make_inputs(case)
    norms = native.key_norms(x.k)
    x.v[:, :, :1000] = np.nan
    assert np.isfinite(forward(case, x)[0]).all()
    assert np.isnan(forward(case, x, prune=False)[0]).all()
    x.k[:, :, :1000] = np.nan
    assert np.isfinite(forward(case, x, key_norms=norms)[0]).all()
    assert np.isnan(forward(case, x)[0]).all()


def test_lse_counts_the_weights_whose_values_are_left_out() -> None:
    case = Case("", 1, 8, 8, 1, 5000, 64)
    x = make_inputs(case)
    dense = forward(case, x, prune=False)[1]
    assert np.abs(forward(case, x)[1] - dense).max() <= np.spacing(np.abs(dense).max())


@pytest.mark.parametrize("norm", [np.nan, np.inf, -1.0])
def test_norms_that_say_nothing_prune_nothing(norm: float) -> None:
    case = Case("", 1, 2, 2, 1, 2000, 16, slopes="steep")
    x = make_inputs(case)
    assert prune(case, x, np.full_like(native.key_norms(x.k), norm))[2][1] == 1.0
