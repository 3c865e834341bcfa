"""Pruning: the result is the dense one to float32 rounding, and work is really left out.

The keys that pruning drops weigh at most 2^-24 of a row's sum (docs/maths.md). So `out` moves by at
most 2^-24 * (max |v| + |out|) <= 2^-23 * max |v|, and lse by 2^-24. The dense result itself carries
a few float32 roundings of the same size, which differ where the last terms of a sum are missing:
the tests allow 2^-22 * max |v| in all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import Case, Inputs, make_inputs
from tests.native.plain import ISAS

# The scalar kernels share every line of the test but the vector type; they are slow at these sizes.
FAST_ISAS = [isa for isa in ISAS if isa != "scalar"] or ISAS


def forward(case: Case, x: Inputs, prune: bool, **options: Any) -> tuple[Any, Any, float]:
    """(out, lse, share of the tiles visited)."""
    stats: dict[str, int] = {}
    given = {**case.options, "spans": x.spans, "prune": prune, "stats": stats, **options}
    out, lse = native.attention_forward(x.q, x.k, x.v, x.slopes, **given)
    return out, lse, stats["tiles_visited"] / stats["tiles_allowed"]


def assert_exact(case: Case, x: Inputs, **options: Any) -> float:
    """Pruned against dense, within the bound; the share of the tiles that pruning visited."""
    out, lse, share = forward(case, x, True, **options)
    dense, dense_lse, everything = forward(case, x, False, **options)
    assert everything == 1.0
    difference = np.abs(out.astype(np.float64) - dense.astype(np.float64)).max()
    largest = float(np.abs(x.v.astype(np.float32)).max())
    assert difference <= 2.0**-22 * largest, f"out moved by {difference / largest:.2e} of max |v|"
    seen = np.isfinite(dense_lse)
    assert np.array_equal(seen, np.isfinite(lse))
    moved = np.abs(lse[seen].astype(np.float64) - dense_lse[seen])
    assert (moved <= 2.0**-22 * (1 + np.abs(dense_lse[seen]))).all()
    return share


RANDOM = (
    Case("causal", 1, 8, 8, 1500, 1500, 64),
    Case("full", 1, 4, 2, 1000, 1300, 32, causal=False),
    Case("learned", 2, 3, 3, 700, 700, 16, slopes="learned"),
    Case("steep", 1, 2, 2, 600, 600, 16, slopes="steep"),
    Case("spans", 2, 4, 4, 300, 900, 32, spans=((111, 900, 600), (0, 555, 200))),
    Case("spans-full", 1, 4, 4, 300, 900, 32, causal=False, spans=((111, 777, 350),)),
    Case("rows-past-the-keys", 1, 4, 4, 100, 900, 32, spans=((0, 900, 5000),)),
    Case("rows-before-the-keys", 1, 4, 4, 100, 900, 32, False, spans=((50, 900, -400),)),
    Case("tiny-scores", 1, 4, 4, 800, 800, 16, magnitude=0.01),
    Case("large-scores", 1, 4, 4, 800, 800, 16, magnitude=4.0),
    Case("BSND", 1, 4, 1, 800, 800, 40, layout="BSND"),
)


@pytest.mark.parametrize("isa", FAST_ISAS)
@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_random_inputs(case: Case, isa: str) -> None:
    share = assert_exact(case, make_inputs(case), isa=isa)
    assert share < 1.0, "nothing was pruned: the comparison says nothing"


@pytest.mark.parametrize("isa", FAST_ISAS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_inputs_round_to_the_same_numbers(dtype: str, isa: str) -> None:
    """A change of 2^-22 flips a rounding now and then; never by more than one step."""
    case = Case("", 1, 4, 4, 900, 900, 32)
    x = make_inputs(case, dtype)
    (out, lse, share), (dense, dense_lse, _) = (
        forward(case, x, prune, isa=isa) for prune in (True, False)
    )
    assert share < 1.0
    assert (np.abs(lse - dense_lse) <= 2.0**-22 * (1 + np.abs(dense_lse))).all()
    out, dense = out.astype(np.float32), dense.astype(np.float32)
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
    assert (np.abs(out - dense) <= step * np.abs(dense) + 2.0**-24).all()
    assert np.mean(out != dense) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_long(causal: bool) -> None:
    case = Case("", 1, 4, 4, 8192, 8192, 32, causal=causal)
    assert assert_exact(case, make_inputs(case)) < 0.6


def adversarial(name: str, case: Case) -> Inputs:
    """Inputs made to catch a bound that is too tight."""
    x = make_inputs(case)
    k = x.k
    distance = np.arange(case.Sk)[::-1].astype(np.float32)
    if name == "the far keys score highest":  # each key makes up for its bias, and a little more
        direction = np.ones(case.D, np.float32) / np.sqrt(np.float32(case.D))
        x.q[...] = direction * np.float32(3)
        rise = x.slopes[:, None] * distance * np.float32(1.02) * np.float32(np.sqrt(case.D)) / 3
        k[...] = rise[None, :, :, None] * direction
    elif name == "one huge far key":
        k[:, :, 3] = 300 * x.q[:, :, -1]
    elif name == "one far key on the edge of mattering":
        # Its weight is about 2^-20 of the nearest key's: well above what may be dropped.
        aligned = x.q[:, :, -1] / np.square(x.q[:, :, -1]).sum(-1, keepdims=True)
        logit = x.slopes * distance[3] - 20 * np.log(2)
        k[:, :, 3] = aligned * (logit * np.sqrt(case.D))[None, :, None]
    elif name == "huge norms everywhere":
        x.q[...] *= 1e3
        k[...] *= 1e3
    elif name == "huge queries, tiny keys":  # the squares come close to overflow and underflow
        x.q[...] *= np.float32(2.0**59)
        k[...] *= np.float32(2.0**-59)
    elif name == "huge values":
        x.v[...] *= np.float32(1e20)
    elif name == "far values dominate":
        x.v[:, :, : case.Sk // 2] *= np.float32(1e6)
    else:
        assert name == "one query against zero keys"
        k[...] = 0
    return x


ADVERSARIAL = (
    "the far keys score highest",
    "one huge far key",
    "one far key on the edge of mattering",
    "huge norms everywhere",
    "huge queries, tiny keys",
    "huge values",
    "far values dominate",
    "one query against zero keys",
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_inputs(name: str, isa: str) -> None:
    case = Case("", 1, 4, 4, 500, 500, 16)
    assert_exact(case, adversarial(name, case), isa=isa)


@pytest.mark.parametrize("isa", FAST_ISAS)
def test_keys_that_reach_the_bound(isa: str) -> None:
    """All keys equal and parallel to the queries: no slack is left in the bound.

    The tail is a geometric series then, worth 1 / (1 - exp(-slope)) of its first key; a test of
    that key alone would drop 64 times more than it may. The dropped values differ from the result.
    """
    case = Case("", 1, 4, 4, 1500, 1500, 16)
    x = make_inputs(case)
    x.q[...], x.k[...] = 1, 1
    x.v[:, :, :1400], x.v[:, :, 1400:] = 1, -1
    assert assert_exact(case, x, isa=isa) < 1.0


@pytest.mark.parametrize("isa", ISAS)
def test_a_far_key_that_matters_is_seen(isa: str) -> None:
    """The oracle's answer, not the dense kernel's: half of each row's weight lies 400 keys away."""
    case = Case("", 1, 4, 4, 500, 500, 16)
    x = adversarial("one far key on the edge of mattering", case)
    x.k[:, :, 3] = 0
    aligned = x.q[:, :, -1] / np.square(x.q[:, :, -1]).sum(-1, keepdims=True)
    x.k[:, :, 3] = aligned * (x.slopes * 496 * np.sqrt(case.D))[None, :, None]
    out, _, _ = forward(case, x, True, isa=isa)
    truth, _ = oracle.attention(x.q, x.k, x.v, x.slopes, **case.options)
    # Logits reach 250 in this input, whose float32 spacing is 2^-16.
    assert np.abs(out - truth).max() <= 2.0**-15 * np.abs(x.v).max()
    without, _ = oracle.attention(x.q, np.delete(x.k, 3, 2), np.delete(x.v, 3, 2), x.slopes)
    assert np.abs(without - truth)[:, :, -1].max() > 0.1


@pytest.mark.parametrize("slopes", ["zero", "negative"])
@pytest.mark.parametrize("bias", ["symmetric", "signed"])
@pytest.mark.parametrize("causal", [True, False])
def test_never_where_the_bound_says_nothing(causal: bool, bias: str, slopes: str) -> None:
    case = Case("", 1, 2, 2, 600, 600, 16, causal=causal, bias=bias, slopes=slopes)
    assert assert_exact(case, make_inputs(case)) == 1.0


def test_never_for_signed_bias_without_mask() -> None:
    case = Case("", 1, 2, 2, 600, 600, 16, causal=False, bias="signed")
    assert assert_exact(case, make_inputs(case)) == 1.0


@pytest.mark.parametrize("slope", [1e-30, 1e-8, 1e-4])
def test_tiny_slopes(slope: float) -> None:
    """1 / (1 - exp(-slope)) is huge, and a range of 600 keys is never negligible."""
    case = Case("", 1, 1, 1, 600, 600, 16)
    x = replace(make_inputs(case), slopes=np.float32([slope]))
    assert assert_exact(case, x) == 1.0


def test_infinite_and_nan_queries_visit_everything() -> None:
    for bad in (np.inf, np.nan):
        case = Case("", 1, 1, 1, 600, 600, 16)
        x = make_inputs(case)
        x.q[..., 0] = bad
        assert forward(case, x, True)[2] == 1.0


@pytest.mark.parametrize("isa", ISAS)
def test_steep_heads_cost_a_window(isa: str) -> None:
    """Work per row is constant, so that the share of the tiles falls with the length."""
    shares = []
    for n in (768, 1536, 3072):
        case = Case("", 1, 1, 1, n, n, 8)
        x = replace(make_inputs(case), slopes=np.float32([0.5]))
        shares.append(forward(case, x, True, isa=isa)[2])
    assert shares[1] < 0.65 * shares[0]
    assert shares[2] < 0.65 * shares[1]
    assert shares[2] < 0.25


@pytest.mark.parametrize(("n", "most"), [(2048, 0.70), (8192, 0.45)])
def test_eight_heads_of_the_paper(n: int, most: float) -> None:
    """The promise of the contract: at 8192 well under half of the causal work remains."""
    case = Case("", 1, 8, 8, n, n, 64)
    assert forward(case, make_inputs(case), True)[2] < most


def test_far_values_do_not_propagate_when_pruned_and_do_when_not() -> None:
    case = Case("", 1, 1, 1, 1000, 1000, 16, slopes="steep")
    x = make_inputs(case)
    x.v[:, :, 0] = np.nan
    assert np.isfinite(forward(case, x, True)[0][0, 0, 900:]).all()
    assert np.isnan(forward(case, x, False)[0][0, 0, 900:]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_the_last_tile_of_a_run_is_cut_short(isa: str) -> None:
    """A steep head needs about 60 keys beyond its diagonal; a whole tile would be 192."""
    case = Case("", 1, 1, 1, 16, 1000, 16)
    x = replace(make_inputs(case), slopes=np.float32([0.5]))
    x.v[:, :, : 1000 - 16 - 96] = np.nan
    assert np.isfinite(forward(case, x, True, isa=isa)[0]).all()
