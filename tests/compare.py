"""How tests compare floats: errors against the truth, not values against each other.

The truth is the float64 oracle. A result passes when its worst error is at most `factor` times the
worst error of a rival (the pure-ops reference at the same dtype) plus a floor: the rival's error
says what the dtype and the problem allow, so no tolerance has to be guessed per shape. Worst errors
are maxima over the whole tensor, because two correct float programs do not make their largest
errors at the same element.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Spacing of the floating-point numbers just above 1, per working dtype.
EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def to_float64(x: Any) -> np.ndarray:
    """A NumPy array (bfloat16 too) or a MindSpore Tensor, as float64."""
    if hasattr(x, "asnumpy"):
        x = (x.float() if str(x.dtype).lower() == "bfloat16" else x).asnumpy()
    return np.asarray(x).astype(np.float64)


def worst_error(got: Any, truth: Any) -> float:
    """max |got - truth|; infinite when shapes differ, or which elements are not finite."""
    got, truth = to_float64(got), to_float64(truth)
    return float("inf") if _mismatch(got, truth) else _worst(got, truth)[0]


def assert_close(got: Any, truth: Any, bound: float, what: str = "result") -> None:
    """max |got - truth| <= bound, with infinities and NaN exactly where the truth has them."""
    assert_close_to_truth(got, truth, truth, factor=1.0, floor=bound, what=what)


def assert_close_when_small(got: Any, truth: Any, what: str = "result") -> None:
    """max |got - truth| <= 64 roundings of the largest number, at least of 1; float32.

    For calls on a few normally distributed numbers, head dim up to 8: a score of up to 8 is off by
    a rounding per term of its dot product, which its weight inherits; weights sum to 1.
    """
    largest = float(np.abs(to_float64(truth)).max(initial=1.0))
    assert_close(got, truth, 64 * EPSILON["float32"] * largest, what)


def assert_close_to_truth(
    got: Any, truth: Any, rival: Any, factor: float, floor: float, what: str = "result"
) -> None:
    """max |got - truth| <= factor * max |rival - truth| + floor.

    Infinities and NaN must stand exactly where the truth has them; the rest is compared.
    """
    got, truth, rival = to_float64(got), to_float64(truth), to_float64(rival)
    for name, x in (("result", got), ("rival", rival)):
        problem = _mismatch(x, truth)
        assert not problem, f"{what}: the {name} {problem}"
    error, index = _worst(got, truth)
    rival_error, _ = _worst(rival, truth)
    bound = factor * rival_error + floor
    assert error <= bound, (
        f"{what}: worst error {error:.3e} at index {index} (got {got[index]!r}, "
        f"truth {truth[index]!r}) is {error / bound if bound else np.inf:.2f} times the bound "
        f"{bound:.3e} = {factor:g} * {rival_error:.3e} (rival) + {floor:.3e} (floor); "
        f"{np.count_nonzero(_errors(got, truth) > bound)} of {got.size} elements are beyond it"
    )


def _mismatch(x: np.ndarray, truth: np.ndarray) -> str:
    """What makes x incomparable with the truth, or an empty string."""
    if x.shape != truth.shape:
        return f"has shape {x.shape}, the truth {truth.shape}"
    same = (x == truth) | (np.isnan(x) & np.isnan(truth)) | (np.isfinite(x) & np.isfinite(truth))
    if same.all():
        return ""
    index = tuple(int(i) for i in np.argwhere(~same)[0])
    return (
        f"is {x[index]} at index {index}, where the truth is {truth[index]}; "
        f"{np.count_nonzero(~same)} such elements of {x.size}"
    )


def _errors(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|x - truth|, 0 where the truth is not finite (there _mismatch has compared)."""
    finite = np.isfinite(truth)
    return np.abs(np.where(finite, x, 0) - np.where(finite, truth, 0))


def _worst(x: np.ndarray, truth: np.ndarray) -> tuple[float, tuple[int, ...]]:
    if x.size == 0:
        return 0.0, ()
    error = _errors(x, truth)
    index = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))
    return float(error[index]), index
