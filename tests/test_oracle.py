"""The oracle against plain Python loops and finite differences; the comparison against itself.

Whatever the oracle gets wrong, every other test would bless, so it is checked by code that shares
nothing with it: scalar loops for the values, and central differences for the gradients.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests import oracle
from tests.cases import SMALL, Case, Inputs, make_dp, make_inputs
from tests.compare import assert_close, assert_close_to_truth, to_float64, worst_error


def _scalar_row(case: Case, x: Inputs, b: int, h: int, i: int) -> tuple[list[float], float]:
    """(weights, lse) of one query row, by the formulas of the contract, one number at a time."""
    kv_start, kv_end, q_start = (
        (0, case.Sk, case.Sk - case.Sq) if case.spans is None else case.spans[b]
    )
    g, p = h // (case.Hq // case.Hkv), q_start + i
    bsnd = case.layout == "BSND"
    scores = []
    for j in range(case.Sk):
        q_row = x.q[b, i, h] if bsnd else x.q[b, h, i]
        k_row = x.k[b, j, g] if bsnd else x.k[b, g, j]
        dot = math.fsum(float(a) * float(c) for a, c in zip(q_row, k_row, strict=True))
        slope = float(x.slopes[h])
        bias = -slope * abs(p - j) if case.bias == "symmetric" else slope * (j - p)
        allowed = kv_start <= j < kv_end and (not case.causal or j <= p)
        score = float(np.float32(case.options["scale"])) * dot + bias
        scores.append(score if allowed else -math.inf)
    top = max(scores)
    if top == -math.inf:
        return [0.0] * case.Sk, -math.inf
    total = math.fsum(math.exp(s - top) for s in scores)
    return [math.exp(s - top) / total for s in scores], top + math.log(total)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_oracle_equals_scalar_loops(case: Case) -> None:
    """Last row, first row and one in between of every batch item and head."""
    x = make_inputs(case)
    out, lse = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    p = oracle.weights(x.q, x.k, x.slopes, spans=x.spans, **case.options)
    bsnd = case.layout == "BSND"
    for b in range(case.B):
        for h in range(case.Hq):
            for i in {0, case.Sq // 2, case.Sq - 1}:
                want_p, want_lse = _scalar_row(case, x, b, h, i)
                g = h // (case.Hq // case.Hkv)
                v = x.v[b, :, g] if bsnd else x.v[b, g]
                want_out = [
                    math.fsum(w * float(v[j, d]) for j, w in enumerate(want_p))
                    for d in range(case.D)
                ]
                # Two float64 evaluations of scores below 100 differ by less than 100 * 2^-52 * few.
                assert_close(p[b, h, i], want_p, 1e-13, "weights")
                assert_close(lse[b, h, i], want_lse, 1e-12, "lse")
                assert_close(out[b, i, h] if bsnd else out[b, h, i], want_out, 1e-12, "out")


def test_oracle_on_paper() -> None:
    """Two tokens, one head, slope 1/2: small enough to work out by hand."""
    q = k = np.zeros((1, 1, 2, 1), np.float32)
    v = np.array([3.0, 5.0], np.float32).reshape(1, 1, 2, 1)
    out, lse = oracle.attention(q, k, v, np.array([0.5], np.float32))
    far = math.exp(-0.5)  # weight of the token one step back, relative to the token itself
    assert_close(out.ravel(), [3.0, (3 * far + 5) / (far + 1)], 1e-15)
    assert_close(lse.ravel(), [0.0, math.log(far + 1)], 1e-15)


def test_signed_and_symmetric_differ_only_ahead_of_the_query() -> None:
    case = Case("", 1, 2, 2, 8, 8, 4)
    x = make_inputs(case)

    def weights(causal: bool, bias: str) -> Any:
        return oracle.weights(x.q, x.k, x.slopes, causal=causal, bias=bias)

    assert_close(weights(True, "signed"), weights(True, "symmetric"), 0.0)
    assert worst_error(weights(False, "signed"), weights(False, "symmetric")) > 0.01


# Four-point differences are off by STEP^4 * (fifth derivative) / 30 and by the rounding of the
# loss, 2^-52 * 100 / STEP: about 1e-10 here. A wrong gradient is off by about 1.
STEP = 3e-4
FINITE_DIFFERENCE_BOUND = 1e-8


def _directional_errors(loss: Any, inputs: dict[str, Any], grads: dict[str, Any]) -> dict[str, Any]:
    """|slope of the loss along a random direction - <gradient, direction>|, for each input."""
    rng = np.random.default_rng(0)
    errors = {}
    for name, grad in grads.items():
        direction = rng.standard_normal(grad.shape)
        step = STEP / (1 + 50 * (name == "slopes"))  # the bias is up to 100 times the slope
        at = [loss(**{**inputs, name: inputs[name] + n * step * direction}) for n in (-2, -1, 1, 2)]
        measured = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step)
        claimed = (grad * direction).sum()
        errors[name] = abs(measured - claimed) / (1 + abs(claimed))
    return errors


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_oracle_attention_grad_equals_finite_differences(case: Case) -> None:
    x = make_inputs(case)
    inputs = {name: to_float64(getattr(x, name)) for name in ("q", "k", "v", "slopes")}

    def loss(**a: Any) -> float:
        out, lse = oracle.attention(**a, spans=x.spans, **case.options)
        seen = np.isfinite(lse)
        return (out * x.dout).sum() + np.where(seen, lse, 0)[seen] @ x.dlse[seen]

    grads = oracle.attention_grad(*inputs.values(), x.dout, x.dlse, spans=x.spans, **case.options)
    errors = _directional_errors(loss, inputs, dict(zip(inputs, grads, strict=True)))
    assert max(errors.values()) < FINITE_DIFFERENCE_BOUND, errors


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_oracle_weights_grad_equals_finite_differences(case: Case) -> None:
    x, dp = make_inputs(case), make_dp(case)
    inputs = {name: to_float64(getattr(x, name)) for name in ("q", "k", "slopes")}

    def loss(**a: Any) -> float:
        return (oracle.weights(**a, spans=x.spans, **case.options) * dp).sum()

    grads = oracle.weights_grad(*inputs.values(), dp, spans=x.spans, **case.options)
    errors = _directional_errors(loss, inputs, dict(zip(inputs, grads, strict=True)))
    assert max(errors.values()) < FINITE_DIFFERENCE_BOUND, errors


def test_row_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("", 2, 2, 1, 23, 23, 4, spans=((2, 20, 0), (0, 23, 5)), slopes="mixed")
    x = make_inputs(case)
    args = (x.q, x.k, x.v, x.slopes)
    whole = oracle.attention_grad(*args, x.dout, x.dlse, spans=x.spans, **case.options)
    monkeypatch.setattr(oracle, "ROW_BLOCK", 5)
    blocks = oracle.attention_grad(*args, x.dout, x.dlse, spans=x.spans, **case.options)
    for one, other in zip(whole, blocks, strict=True):
        assert_close(one, other, 1e-13)


def test_cases_have_distinct_names_and_reproducible_inputs() -> None:
    names = [case.name for case in SMALL]
    assert len(set(names)) == len(names)
    one, other = make_inputs(SMALL[3], "float16"), make_inputs(SMALL[3], "float16")
    assert np.array_equal(one.q, other.q)
    assert one.q.dtype == np.float16
    assert one.slopes.dtype == np.float32


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("got", "truth", "message"),
    [
        ([1.0, 2.2], [1.0, 2.0], r"worst error 2.000e-01 at index \(1,\)"),
        ([1.0, NAN], [1.0, 2.0], r"the result is nan at index \(1,\), where the truth is 2.0"),
        ([1.0, 2.0], [1.0, -INF], r"the result is 2.0 at index \(1,\), where the truth is -inf"),
        ([1.0, INF], [1.0, -INF], r"the result is inf at index \(1,\)"),
        ([1.0], [1.0, 2.0], r"the result has shape \(1,\), the truth \(2,\)"),
    ],
)
def test_comparison_fails_when_it_must(got: Any, truth: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_close(got, truth, 0.1)
    assert worst_error(got, truth) > 0.1


def test_comparison_allows_what_the_rival_needs_and_no_more() -> None:
    truth, rival = np.array([1.0, -INF, 3.0]), np.array([1.1, -INF, 3.0])
    assert_close_to_truth([1.0, -INF, 3.19], truth, rival, factor=2, floor=0)
    with pytest.raises(AssertionError, match=r"1\.05 times the bound"):
        assert_close_to_truth([1.0, -INF, 3.21], truth, rival, factor=2, floor=0)
    with pytest.raises(AssertionError, match="the rival is nan"):
        assert_close_to_truth(truth, truth, [NAN, -INF, 3.0], factor=2, floor=0)
