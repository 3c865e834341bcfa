"""alibi_attention_weights and its gradient on the emulator against the float64 oracle, as
test_forward.py does it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from tests import oracle
from tests.ascend.bounds import weights_bound, weights_grad_bounds
from tests.ascend.device import Device, WeightsGrad
from tests.ascend.unseen import CASES, poisoned, poisoned_grads
from tests.cases import NUMPY_DTYPES, SHAPES, SMALL, Case, Inputs, make_dp, make_inputs
from tests.compare import assert_close

DTYPES = ("float16", "bfloat16")


class Problem(NamedTuple):
    inputs: Inputs
    p: Any  # in the working dtype
    dp: Any
    truth: tuple[Any, ...]  # dq, dk, dslopes
    bounds: tuple[float, ...]


def check_forward(device: Device, case: Case, dtype: str, seeds: range) -> None:
    x = make_inputs(case, dtype)
    truth = oracle.weights(x.q, x.k, x.slopes, spans=x.spans, **case.options)
    _, lse = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    bound = weights_bound(case, x, dtype, lse, truth)
    k = poisoned(case, x).k
    for seed in seeds:
        p = device.weights(x.q, k, x.slopes, spans=x.spans, **case.options, seed=seed).p
        assert_close(p, truth, bound, f"p, seed {seed}")
        assert not p[np.isneginf(_scores(case, x))].any(), "a weight where nothing is allowed"


def _scores(case: Case, x: Inputs) -> Any:
    """0 where a pair is allowed, -inf elsewhere."""
    j = np.arange(case.Sk)
    spans = case.spans or ((0, case.Sk, case.Sk - case.Sq),) * case.B
    allowed = []
    for kv_start, kv_end, q_start in spans:
        p = q_start + np.arange(case.Sq)[:, None]
        inside = (kv_start <= j) & (j < kv_end)
        allowed.append(inside & ((j <= p) if case.causal else (p == p)))
    shape = (case.B, case.Hq, case.Sq, case.Sk)
    return np.where(np.broadcast_to(np.stack(allowed)[:, None], shape), 0.0, -np.inf)


def problem(case: Case, dtype: str) -> Problem:
    """The gradient is taken at P as the forward op leaves it: rounded."""
    x, dp = make_inputs(case, dtype), make_dp(case, dtype)
    p = oracle.weights(x.q, x.k, x.slopes, spans=x.spans, **case.options)
    p = p.astype(NUMPY_DTYPES[dtype])
    truth = gradients(case, x, p, dp)
    return Problem(x, p, dp, truth, weights_grad_bounds(case, x, dtype, p, dp, truth))


def gradients(case: Case, x: Inputs, p: Any, dp: Any) -> tuple[Any, ...]:
    """dq, dk, dslopes in float64 from P and dP."""
    heads_first = case.layout == "BNSD"
    q, k = (np.asarray(t).astype(np.float64) for t in (x.q, x.k))
    if not heads_first:
        q, k = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 1, 3)
    p, dp = p.astype(np.float64), dp.astype(np.float64)
    group, scale = case.Hq // case.Hkv, float(np.float32(case.options["scale"]))
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    dq = scale * ds @ np.repeat(k, group, 1)
    dk = scale * (ds.swapaxes(2, 3) @ q).reshape(case.B, case.Hkv, group, case.Sk, case.D).sum(2)
    spans = case.spans or ((0, case.Sk, case.Sk - case.Sq),) * case.B
    ramp = np.stack(
        [np.arange(case.Sk) - (start + np.arange(case.Sq))[:, None] for _, _, start in spans]
    )[:, None]
    if case.bias == "symmetric":
        ramp = -np.abs(ramp)
    dslopes = (ds * ramp).sum((0, 2, 3))
    if not heads_first:
        dq, dk = dq.transpose(0, 2, 1, 3), dk.transpose(0, 2, 1, 3)
    return dq, dk, dslopes


def backward(device: Device, case: Case, p: Problem, **options: Any) -> WeightsGrad:
    x = p.inputs
    return device.weights_grad(x.q, x.k, p.p, p.dp, spans=x.spans, **case.options, **options)


def check_backward(device: Device, case: Case, dtype: str, seeds: range) -> None:
    p = problem(case, dtype)
    unlucky = p._replace(inputs=poisoned(case, p.inputs), dp=poisoned_grads(case, p.dp))
    for seed in seeds:
        got = backward(device, case, unlucky, seed=seed)
        results = (got.dq, got.dk, got.dslopes.astype(np.float64).sum((0, 2)))
        for name, result, truth, bound in zip(
            ("dq", "dk", "dslopes"), results, p.truth, p.bounds, strict=True
        ):
            assert_close(result, truth, bound, f"{name}, seed {seed}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES, ids=str)
def test_weights(device: Device, case: Case, dtype: str) -> None:
    check_forward(device, case, dtype, range(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES, ids=str)
def test_weights_grad(device: Device, case: Case, dtype: str) -> None:
    check_backward(device, case, dtype, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES, ids=str)
def test_weights_under_many_schedules(device: Device, case: Case, dtype: str) -> None:
    check_forward(device, case, dtype, range(100, 120))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES, ids=str)
def test_weights_grad_under_many_schedules(device: Device, case: Case, dtype: str) -> None:
    check_backward(device, case, dtype, range(100, 120))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_truth_of_the_gradient_is_the_oracle(case: Case) -> None:
    """gradients(), which takes P as given, equals the oracle, which computes P itself."""
    x, dp = make_inputs(case), make_dp(case)
    p = oracle.weights(x.q, x.k, x.slopes, spans=x.spans, **case.options)
    truth = oracle.weights_grad(x.q, x.k, x.slopes, dp, spans=x.spans, **case.options)
    for a, b in zip(gradients(case, x, p, dp), truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_same_bits_whatever_the_schedule_and_the_number_of_cores(device: Device) -> None:
    case = Case("", 1, 4, 2, 200, 333, 72, causal=False)
    p = problem(case, "float16")
    x = p.inputs
    first = device.weights(x.q, x.k, x.slopes, **case.options)
    grads = backward(device, case, p)
    for seed in range(1, 6):
        options = {"seed": seed, "cores": seed, **case.options}
        assert device.weights(x.q, x.k, x.slopes, **options).p.tobytes() == first.p.tobytes()
        again = backward(device, case, p, seed=seed, cores=seed)
        for a, b in zip(grads[:3], again[:3], strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_no_row_may_see_may_hold_anything(device: Device, case: Case, dtype: str) -> None:
    """Nor do its places in dP matter: whatever becomes of P may put anything there."""
    p = problem(case, dtype)
    x = p.inputs
    unlucky = p._replace(inputs=poisoned(case, x), dp=poisoned_grads(case, p.dp))
    weights = [
        device.weights(x.q, k, x.slopes, spans=x.spans, **case.options).p
        for k in (unlucky.inputs.k, x.k)
    ]
    np.testing.assert_array_equal(*weights)
    got, clean = backward(device, case, unlucky), backward(device, case, p)
    for a, b in zip(got[:3], clean[:3], strict=True):
        np.testing.assert_array_equal(a, b)
