"""2^x as the kernels compute it, by itself and as the weight of a score, which is 2^x in some unit:
the bounds that csrc/cpu/exp.inl.h states, over all of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.native.plain import ISAS, elementwise

# Relative, wherever the true value is a normal float32 and, times a unit below 2^10, does not
# overflow.
BOUNDS = {"alibi_cpu_exp2": 2e-7, "alibi_cpu_weight": 4e-7}
LARGEST = {"alibi_cpu_exp2": 2.0**128, "alibi_cpu_weight": 2.0**118}

pytestmark = [
    pytest.mark.parametrize("hook", BOUNDS),
    pytest.mark.parametrize("isa", ISAS),
]


def power(x: Any, hook: str, isa: str) -> Any:
    """2^x in float64: as it is, or in units of 2^0."""
    unit = elementwise(hook, np.zeros(1, np.float32), isa)[0]
    assert unit == 1 if hook == "alibi_cpu_exp2" else unit in 2.0 ** np.arange(10)
    return elementwise(hook, np.ascontiguousarray(x, np.float32), isa).astype(np.float64) / unit


def assert_within_bound(x: Any, hook: str, isa: str) -> None:
    got = power(x, hook, isa)
    with np.errstate(over="ignore"):
        truth = np.exp2(x.astype(np.float64))
    normal = (truth >= 2.0**-126) & (truth < LARGEST[hook])
    error = np.abs(got[normal] / truth[normal] - 1)
    worst = int(np.argmax(error))
    assert error[worst] <= BOUNDS[hook], f"2^{x[normal][worst]!r} is off by {error[worst]:.3e}"
    small = got[truth < 2.0**-126]
    assert ((small >= 0) & (small <= 2.0**-126)).all()
    assert np.isposinf(got[truth >= 2.0**128]).all()


def test_where_the_results_are_normal(hook: str, isa: str) -> None:
    assert_within_bound(np.linspace(-127, 128, 3_000_001, dtype=np.float32), hook, isa)


def test_every_fraction(hook: str, isa: str) -> None:
    """The polynomial itself: every float32 from 1 to 2."""
    x = np.arange(2**23, dtype=np.uint32) + np.float32(1).view(np.uint32)
    assert_within_bound(x.view(np.float32), hook, isa)


def test_every_exponent_and_sign(hook: str, isa: str) -> None:
    """Bit patterns 0, 997, 1994, ...: about 8 400 numbers of each exponent, subnormal to huge."""
    x = np.arange(0, 2**32, 997, dtype=np.int64).astype(np.uint32).view(np.float32)
    assert_within_bound(x[np.isfinite(x)], hook, isa)


def test_around_every_integer(hook: str, isa: str) -> None:
    """Where floor(x) steps, and the polynomial goes from its right end to its left."""
    n = np.arange(-126, 118, dtype=np.float32)
    assert np.array_equal(power(n, hook, isa), np.exp2(n.astype(np.float64)))
    near = [n]
    for direction in (np.float32(-np.inf), np.float32(np.inf)):
        x = n
        for _ in range(20):
            x = np.nextafter(x, direction)
            near.append(x)
    assert_within_bound(np.concatenate(near), hook, isa)


def test_special_values(hook: str, isa: str) -> None:
    x = np.float32([-np.inf, np.inf, np.nan, 0.0, -0.0, 128.0, -3e38, 3e38, -200.0])
    want = np.float32([0, np.inf, np.nan, 1, 1, np.inf, 0, np.inf, 0])
    assert np.array_equal(power(x, hook, isa), want, equal_nan=True)


def test_arrays_of_any_length(hook: str, isa: str) -> None:
    """The hooks themselves: a last vector that is not full is computed, and nothing behind it."""
    for n in range(40):
        y = power(np.linspace(-3, 3, n, dtype=np.float32), hook, isa)
        assert y.shape == (n,)
        assert np.isfinite(y).all()
