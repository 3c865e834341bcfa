"""The forward kernel of the weights operation against the float64 oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import DTYPES, SHAPES, SMALL, Case, make_inputs
from tests.compare import assert_close_to_truth
from tests.native.plain import FLOOR, ISAS, Guarded, rival_weights


def weights(case: Case, x: Any, **options: Any) -> Any:
    """Into memory full of NaN."""
    room = np.full((case.B, case.Hq, case.Sq, case.Sk), np.nan, x.q.dtype)
    given = {**case.options, "spans": x.spans, "out": room, **options}
    return native.attention_weights(x.q, x.k, x.slopes, **given)


def assert_right(case: Case, dtype: str, **options: Any) -> None:
    """At most twice the error of plain float32 NumPy, plus four roundings of a weight of 1."""
    x = make_inputs(case, dtype)
    got = weights(case, x, **options)
    truth = oracle.weights(x.q, x.k, x.slopes, **case.options, spans=x.spans)
    rival, _ = rival_weights(case, x.q, x.k, x.slopes, x.spans)
    assert_close_to_truth(got, truth, rival.astype(x.q.dtype), 2.0, FLOOR, "weights")
    assert not got[truth == 0].astype(np.float32).any(), "a key that is not allowed has weight"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_mode(case: Case, dtype: str, isa: str) -> None:
    assert_right(case, dtype, isa=isa, prune=False)
    assert_right(case, dtype, isa=isa, prune=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_every_shape(case: Case, isa: str) -> None:
    assert_right(case, "float32", isa=isa, prune=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [True, False])
def test_every_diagonal(causal: bool, isa: str) -> None:
    for q_start in range(0 if causal else -64, 130, 3):
        span = ((5, 60, q_start),)
        case = Case("", 1, 2, 2, 53, 61, 8, causal=causal, spans=span, slopes="learned")
        assert_right(case, "float32", isa=isa)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_sum_to_one(isa: str) -> None:
    """Each weight is off by 2^-22.3 at most, relatively, so their sum is too."""
    case = Case("", 1, 2, 2, 300, 300, 16, slopes="learned")
    p = weights(case, make_inputs(case), isa=isa)
    assert np.abs(p.astype(np.float64).sum(axis=3) - 1).max() <= 2.0**-21


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_agrees_with_the_attention_kernel(case: Case, isa: str) -> None:
    """out = P v, two kernels and one formula; float32 roundings of a sum of at most 129 terms."""
    x = make_inputs(case)
    p = weights(case, x, isa=isa).astype(np.float64)
    out, _ = native.attention_forward(
        x.q, x.k, x.v, x.slopes, **case.options, spans=x.spans, isa=isa
    )
    v, out = (
        a if case.layout == "BNSD" else a.transpose(0, 2, 1, 3)
        for a in (x.v.astype(np.float64), out)
    )
    want = p @ np.repeat(v, case.Hq // case.Hkv, axis=1)
    # Mixed slopes reach logits of 20, and each kernel rounds those by itself.
    assert np.abs(out - want).max(initial=0) <= 32 * FLOOR


@pytest.mark.parametrize("isa", ISAS)
def test_pruned_weights_are_zero_and_were_negligible(isa: str) -> None:
    case = Case("", 1, 8, 8, 1500, 1500, 16)
    x = make_inputs(case)
    stats: dict[str, int] = {}
    pruned = weights(case, x, isa=isa, prune=True, stats=stats)
    dense = weights(case, x, isa=isa, prune=False)
    assert stats["tiles_visited"] < 0.8 * stats["tiles_allowed"]
    dropped = (pruned == 0) & (dense > 0)
    assert dropped.any()
    # The bound of prune.h, with one rounding for the sum that decides it.
    assert np.where(dropped, dense.astype(np.float64), 0).sum(axis=3).max() <= 2.0**-24 * 1.01
    kept = ~dropped
    assert np.abs(pruned[kept] - dense[kept]).max() <= 2.0**-23


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_outside_the_tensors(dtype: str, at_end: bool, isa: str) -> None:
    for case in (
        Case("", 1, 1, 1, 1, 1, 1),
        Case("", 1, 2, 1, 50, 131, 8),
        Case("", 1, 1, 1, 17, 70, 13, spans=((3, 69, 40),)),
        Case("", 1, 1, 1, 3, 200, 40, causal=False, bias="signed"),
    ):
        x = make_inputs(case, dtype)
        guarded = Guarded(at_end)
        q, k, slopes = (guarded.copy(a) for a in (x.q, x.k, x.slopes))
        room = guarded.copy(np.full((case.B, case.Hq, case.Sq, case.Sk), np.nan, x.q.dtype))
        spans = None if x.spans is None else guarded.copy(x.spans)
        native.attention_weights(q, k, slopes, spans=spans, isa=isa, out=room, **case.options)
        assert np.array_equal(room, weights(case, x, isa=isa))


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_allowed_and_nothing_at_all(isa: str) -> None:
    case = Case("", 2, 1, 1, 9, 30, 8, spans=((20, 30, 12), (5, 5, 0)))
    p = weights(case, make_inputs(case), isa=isa)
    assert not p[0, 0, :8].any()  # positions 12 to 19, before the first key
    assert np.abs(p[0, 0, 8].sum() - 1) <= FLOOR
    assert not p[1].any()
    q, k = np.zeros((1, 1, 3, 4), np.float32), np.zeros((1, 1, 0, 4), np.float32)
    assert native.attention_weights(q, k, np.ones(1, np.float32), causal=False).shape == (
        1,
        1,
        3,
        0,
    )
