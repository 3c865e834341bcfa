"""log2 as the log-sum-exp uses it: the bound that csrc/cpu/log.inl.h states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.native.plain import ISAS, elementwise

BOUND = 1.2e-9  # absolute


def log2(x: Any, isa: str) -> Any:
    return elementwise("alibi_cpu_log2", np.ascontiguousarray(x, np.float64), isa)


def assert_within_bound(x: Any, isa: str) -> None:
    error = np.abs(log2(x, isa) - np.log2(x))
    worst = int(np.argmax(error))
    assert error[worst] <= BOUND, f"log2({x[worst]!r}) is off by {error[worst]:.3e}"


@pytest.mark.parametrize("isa", ISAS)
def test_every_exponent(isa: str) -> None:
    """Positive float32 numbers, subnormal ones too: bit patterns 1, 998, 1995, ..."""
    bits = np.arange(1, 0x7F800000, 997, dtype=np.int64).astype(np.uint32)
    assert_within_bound(bits.view(np.float32).astype(np.float64), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_sums_of_rows(isa: str) -> None:
    """From one key to the largest sum that a row may reach, 2^24 above its reference."""
    assert_within_bound(np.linspace(0.5, 300.0, 1_000_001), isa)
    assert_within_bound(np.linspace(1.0, 2.0**25, 100_001), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_where_the_exponent_steps(isa: str) -> None:
    step = np.sqrt(0.5) * np.exp2(np.arange(-140.0, 120.0))
    near = step[:, None] * (1 + np.arange(-20, 21) * 2.0**-52)
    assert_within_bound(near.ravel(), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_powers_of_two_are_exact(isa: str) -> None:
    n = np.arange(-149.0, 128.0)
    assert np.array_equal(log2(np.exp2(n), isa), n)


@pytest.mark.parametrize("isa", ISAS)
def test_special_values(isa: str) -> None:
    got = log2([0.0, np.inf, np.nan, 1.0], isa)
    assert np.array_equal(got, [-np.inf, np.inf, np.nan, 0.0], equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
def test_arrays_of_any_length(isa: str) -> None:
    """The hook itself: a last vector that is not full is computed, and nothing behind it."""
    for n in range(20):
        x = np.linspace(1, 3, n)
        assert np.allclose(log2(x, isa), np.log2(x), rtol=0, atol=BOUND)
