"""2^x as the kernels compute it: the bound that csrc/cpu/exp.inl.h states, over all of float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.native.plain import ISAS, elementwise

BOUND = 2e-7  # relative, wherever the true value is a normal float32


def exp2(x: Any, isa: str) -> Any:
    return elementwise("alibi_cpu_exp2", np.ascontiguousarray(x, np.float32), isa)


def assert_within_bound(x: Any, isa: str) -> None:
    got = exp2(x, isa).astype(np.float64)
    with np.errstate(over="ignore"):
        truth = np.exp2(x.astype(np.float64))
    normal = (truth >= 2.0**-126) & (truth < 2.0**128)
    error = np.abs(got[normal] / truth[normal] - 1)
    worst = int(np.argmax(error))
    assert error[worst] <= BOUND, f"2^{x[normal][worst]!r} is off by {error[worst]:.3e}"
    small = got[truth < 2.0**-126]
    assert ((small >= 0) & (small <= 2.0**-126)).all()
    assert np.isposinf(got[truth >= 2.0**128]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_where_the_results_are_normal(isa: str) -> None:
    assert_within_bound(np.linspace(-127, 128, 3_000_001, dtype=np.float32), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_every_exponent_and_sign(isa: str) -> None:
    """Bit patterns 0, 997, 1994, ...: about 8 400 numbers of each exponent, subnormal to huge."""
    x = np.arange(0, 2**32, 997, dtype=np.int64).astype(np.uint32).view(np.float32)
    assert_within_bound(x[np.isfinite(x)], isa)


@pytest.mark.parametrize("isa", ISAS)
def test_around_every_integer(isa: str) -> None:
    """Where floor(x) steps, and the polynomial goes from its right end to its left."""
    n = np.arange(-126, 128, dtype=np.float32)
    assert np.array_equal(exp2(n, isa), np.exp2(n.astype(np.float64)).astype(np.float32))
    near = [n]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        x = n
        for _ in range(20):
            x = np.nextafter(x, direction)
            near.append(x)
    assert_within_bound(np.concatenate(near), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_special_values(isa: str) -> None:
    x = np.float32([-np.inf, np.inf, np.nan, 0.0, -0.0, 128.0, -3e38, 3e38, -200.0])
    want = np.float32([0, np.inf, np.nan, 1, 1, np.inf, 0, np.inf, 0])
    assert np.array_equal(exp2(x, isa), want, equal_nan=True)


def test_arrays_of_any_length() -> None:
    """The hook itself: a last vector that is not full is computed, and nothing behind it."""
    for n in range(40):
        x = np.linspace(-3, 3, n, dtype=np.float32)
        assert exp2(x, ISAS[0]).shape == (n,)
        assert np.isfinite(exp2(x, ISAS[0])).all()
