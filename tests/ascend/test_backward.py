"""alibi_attention_grad on the emulator against the float64 oracle, as test_forward.py does it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from tests import oracle
from tests.ascend.bounds import grad_bounds
from tests.ascend.device import Backward, Device
from tests.ascend.test_forward import brute_reach
from tests.ascend.unseen import CASES, poisoned
from tests.cases import SHAPES, SMALL, Case, Inputs, make_inputs
from tests.compare import assert_close

DTYPES = ("float16", "bfloat16")


class Problem(NamedTuple):
    inputs: Inputs
    lse: Any  # float32, as the forward pass leaves it
    delta: Any  # <dout, out> - dlse, float32
    truth: tuple[Any, ...]  # dq, dk, dv, dslopes
    bounds: tuple[float, ...]


def problem(case: Case, dtype: str) -> Problem:
    x = make_inputs(case, dtype)
    out, lse = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    dlse = np.where(np.isfinite(lse), x.dlse, 0)
    truth = oracle.attention_grad(
        x.q, x.k, x.v, x.slopes, x.dout, dlse, spans=x.spans, **case.options
    )
    inner = (x.dout.astype(np.float64) * out).sum(-1)
    delta = (inner if case.layout == "BNSD" else inner.transpose(0, 2, 1)) - dlse
    # The oracle knows gradients in the layout of the inputs; bounds are maxima, so layout is moot.
    bounds = grad_bounds(case, x, dtype, lse, delta, truth)
    arrays = [np.ascontiguousarray(a, np.float32) for a in (lse, delta)]
    return Problem(x, arrays[0], arrays[1], truth, bounds)


def backward(device: Device, case: Case, p: Problem, **options: Any) -> Backward:
    x = p.inputs
    return device.backward(
        *(x.q, x.k, x.v, x.slopes, p.lse, p.delta, x.dout),
        spans=x.spans,
        **case.options,
        **options,
    )


def compare(got: Backward, p: Problem, seed: int) -> None:
    results = (got.dq, got.dk, got.dv, got.dslopes.astype(np.float64).sum((0, 2)))
    names = ("dq", "dk", "dv", "dslopes")
    for name, result, truth, bound in zip(names, results, p.truth, p.bounds, strict=True):
        assert_close(result, truth, bound, f"{name}, seed {seed}")


def check(device: Device, case: Case, dtype: str, seeds: range) -> None:
    p = problem(case, dtype)
    unlucky = p._replace(inputs=poisoned(case, p.inputs))
    for seed in seeds:
        compare(backward(device, case, unlucky, seed=seed), p, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES, ids=str)
def test_backward(device: Device, case: Case, dtype: str) -> None:
    check(device, case, dtype, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES, ids=str)
def test_backward_under_many_schedules(device: Device, case: Case, dtype: str) -> None:
    check(device, case, dtype, range(100, 120))


def test_gradients_are_the_same_bits_every_time(device: Device) -> None:
    """Orders of the pipes and numbers of cores change nothing: every sum belongs to one core."""
    case = Case("", 1, 4, 2, 200, 333, 72, causal=False)
    p = problem(case, "float16")
    first = backward(device, case, p)
    for seed in range(1, 6):
        again = backward(device, case, p, seed=seed, cores=seed)
        for a, b in zip(first[:4], again[:4], strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("causal", [True, False])
def test_pruning_skips_work_and_not_precision(device: Device, causal: bool) -> None:
    case = Case("", 1, 2, 1, 300, 1500, 32, causal, slopes="steep", magnitude=0.5)
    p = problem(case, "float16")
    dense = backward(device, case, p)
    pruned = backward(device, case, p, reach=brute_reach(case, p.inputs))
    assert pruned.vector_elements < 0.5 * dense.vector_elements
    compare(pruned, p, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_no_row_may_see_may_hold_anything(device: Device, case: Case, dtype: str) -> None:
    p = problem(case, dtype)
    clean = backward(device, case, p)
    got = backward(device, case, p._replace(inputs=poisoned(case, p.inputs)))
    for a, b in zip(got[:4], clean[:4], strict=True):
        np.testing.assert_array_equal(a, b)
