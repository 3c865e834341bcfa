"""The second half of pruning: keys whose weights are known, and negligible, are left out as well.

Each test separates this rule from the bound: keys orthogonal to the queries score 0 whatever their
norms, which is all that the bound sees, and keys parallel to them leave it nothing to prove. What
may be left out is in docs/maths.md (Rules F and B).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alibi_kernels import native
from tests.cases import Case, Inputs, make_inputs
from tests.native.test_backward import backward, named, truth_of
from tests.native.test_prune import FAST_ISAS, ISAS, assert_exact, forward

EPS = 2.0**-24


def along_axes(case: Case, slope: float, q: float = 1.0, k: float = 1.0) -> Inputs:
    """q along the first axis and k along the second, of these lengths; v and dout along the
    first."""
    x = replace(make_inputs(case), slopes=np.float32([slope]))
    for array, axis, length in ((x.q, 0, q), (x.k, 1, k), (x.v, 0, 1), (x.dout, 0, 1)):
        array[...] = 0
        array[..., axis] = length
    return x


@pytest.mark.parametrize("isa", ISAS)
def test_values_of_negligible_weights_stay_unread(isa: str) -> None:
    """By the bound 800 keys matter, by their weights 50: the values of further tiles are NaN. lse
    counts all keys, as it does without pruning."""
    case = Case("", 1, 1, 1, 16, 1000, 16, scale=1.0)
    x = along_axes(case, 0.5, q=20, k=20)
    stats: dict[str, int] = {}
    options = {**case.options, "isa": isa}
    _, lse = native.attention_forward(x.q, x.k, x.v, x.slopes, prune=False, **options)
    x.v[:, :, : 1000 - 16 - 192] = np.nan
    out, pruned_lse = native.attention_forward(x.q, x.k, x.v, x.slopes, stats=stats, **options)
    assert stats["tiles_visited"] >= 4
    assert np.isfinite(out).all()
    assert np.abs(pruned_lse - lse).max() <= 2 * EPS * np.abs(lse).max()


@pytest.mark.parametrize("isa", ISAS)
def test_gradients_of_negligible_weights_stay_uncomputed(isa: str) -> None:
    case = Case("", 1, 1, 1, 16, 1000, 16, scale=1.0)
    x = along_axes(case, 0.5, q=20, k=20)
    x.v[:, :, : 1000 - 16 - 192] = np.nan
    grads = named(backward(case, x, isa=isa))
    assert all(np.isfinite(g).all() for g in grads.values())
    assert not grads["dv"][:, :, : 1000 - 16 - 192].any()


def lift_far_keys(x: Inputs, near: int, group: int, share: np.ndarray) -> None:
    """Keys further than `near` score what makes `group` of them weigh `share` of the row's sum."""
    slope = float(x.slopes[0])
    distance = np.arange(x.k.shape[2])[::-1].astype(np.float64)
    total = np.exp(-slope * np.arange(near)).sum()
    score = slope * distance + np.log(total * share / group)
    x.k[0, 0, :, 0] = np.where(distance < near, 0, score)


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_the_forward_adds_up_what_it_leaves_out(isa: str) -> None:
    """100 tiles of 2^-27 of the row each: one may go, three may go, all of them may not. Their
    values are the opposite of the others'."""
    case = Case("", 1, 1, 1, 16, 20000, 16, scale=1.0)
    x = along_axes(case, 0.01, k=0)
    lift_far_keys(x, 300, 192, np.full(20000, 2.0**-27))
    x.v[:, :, :-300, 0] = -1
    assert assert_exact(case, x, isa=isa) > 0.98, "the bound left more out than the last keys"
    x.v[:, :, 19500:19580] = np.nan  # in the first tile that may go
    assert np.isfinite(forward(case, x, True, isa=isa)[0]).all()


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_the_backward_adds_up_what_it_leaves_out_of_a_row(isa: str) -> None:
    """The same in groups of 32 keys that weigh 2^-27 / (1 + slope * distance). The bound on
    dslopes is Theorem 2's, the errors of the dense result beside it."""
    case = Case("", 1, 1, 1, 16, 20000, 16, scale=1.0)
    x = along_axes(case, 0.01, k=0)
    distance = np.arange(20000)[::-1]
    lift_far_keys(x, 300, 32, 2.0**-27 / (1 + 0.01 * distance))
    x.v[:, :, :-300, 0] = -1
    truth = truth_of(case, x)["dslopes"]
    dense, pruned = (named(backward(case, x, isa=isa, prune=p))["dslopes"] for p in (False, True))
    largest = 2.0  # |<dout, v> - delta|: values are 1 or -1, delta is about 1
    theorem = case.Sq * EPS * largest / 0.01
    assert np.abs(pruned - truth).max() <= theorem + 2 * np.abs(dense - truth).max()


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_the_backward_adds_up_what_it_leaves_out_of_a_column(isa: str) -> None:
    """Every row gives key 0 as much weight as a row may leave out. Key 0 may not lose that of
    4000 rows: dv moves by at most Theorem 2's 2^-24 * log(1 + slope * 4096), and two roundings
    of a sum of about 1."""
    case = Case("", 1, 1, 1, 4096, 4096, 16, scale=1.0)
    slope = 1 / 64
    x = along_axes(case, slope, k=0)
    n = np.arange(4096)
    log_sum = np.log(np.cumsum(np.exp(-slope * n)))
    x.k[0, 0, 0, 0] = 1
    x.q[0, 0, :, 0] = log_sum + slope * n + np.log(2.0**-25.2 / (1 + slope * n))
    dense, pruned = (named(backward(case, x, isa=isa, prune=p))["dv"] for p in (False, True))
    moved = np.abs(pruned[0, 0, 0, 0] - dense[0, 0, 0, 0])
    assert moved <= EPS * np.log1p(slope * 4096) + 2.0**-22
