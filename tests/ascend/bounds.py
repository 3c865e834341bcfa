"""Error bounds of the Ascend kernels against the float64 oracle, from what they round.

Inputs are exact. Scores are float32; weights are rounded to the working dtype once (relative error
eps/2 of each, so eps/2 * max|v| of the output) and the output once more (eps/2 * max|out|).

The float32 part: scores carry a few units of 2^-24 of their size. A bias is a ramp within the tile
plus a number per row, each up to slope * 128, which cancel near the diagonal: 2^-24 of that again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests import oracle
from tests.cases import Case, Inputs
from tests.compare import EPSILON

TILE = 128
FLOAT = 2.0**-22  # a few roundings of 2^-24


def magnitude(x: Any) -> float:
    """max |x| over the finite elements."""
    x = np.asarray(x).astype(np.float64)
    return float(np.abs(np.where(np.isfinite(x), x, 0)).max(initial=0))


def score_error(case: Case, inputs: Inputs) -> float:
    """Absolute error of a score (times 4, say), hence relative error of a weight."""
    product = abs(case.options["scale"]) * case.D * magnitude(inputs.q) * magnitude(inputs.k)
    return FLOAT * (16 + product + 2 * TILE * magnitude(inputs.slopes))


def out_bound(case: Case, inputs: Inputs, dtype: str, out: Any) -> float:
    values = magnitude(inputs.v)
    rounding = 0.5 * EPSILON[dtype] * (values + magnitude(out))
    return 1.02 * rounding + score_error(case, inputs) * values


def lse_bound(case: Case, inputs: Inputs, lse: Any) -> float:
    return score_error(case, inputs) + FLOAT * magnitude(lse)


def weights_bound(case: Case, inputs: Inputs, dtype: str, lse: Any, p: Any) -> float:
    """A weight is wrong by its score and its lse, and is rounded once; a weight below the smallest
    normal float16 (2^-14) is rounded to a multiple of 2^-24."""
    relative = score_error(case, inputs) + lse_bound(case, inputs, lse)
    return 1.02 * (0.5 * EPSILON[dtype] + relative) * magnitude(p) + 2.0**-25


def weights_grad_bounds(
    case: Case, inputs: Inputs, dtype: str, p: Any, dp: Any, truth: tuple[Any, ...]
) -> tuple[float, ...]:
    """Bounds for dq, dk, dslopes from P as given to the kernel: dS is rounded once, the row sums of
    P dP and everything after are float32, with errors that are independent from row to row."""
    q, k = (_heads_first(case, x) for x in (inputs.q, inputs.k))
    k = np.repeat(k, case.Hq // case.Hkv, 1)
    p, dp = (np.abs(np.asarray(x).astype(np.float64)) for x in (p, dp))
    row_sums = (p * dp).sum(-1, keepdims=True)
    size = p * (dp + row_sums)  # at least |dS|
    step, single = 0.5 * EPSILON[dtype], 2 * 2.0**-24
    error = (step + single) * size + 2.0**-25 * (dtype == "float16")
    scale = abs(case.options["scale"])
    products = (
        scale * error @ k,
        scale * _per_key_head(error.swapaxes(2, 3) @ q, case.Hkv),
    )
    bounds = [
        1.02 * (magnitude(b) + step * magnitude(t) + FLOAT * magnitude(t))
        for b, t in zip(products, truth[:2], strict=True)
    ]
    per_row = single * (size * _distances(case)).sum(3)
    return (*bounds, magnitude(np.sqrt((per_row**2).sum((0, 2)))))


def grad_bounds(
    case: Case, inputs: Inputs, dtype: str, lse: Any, delta: Any, truth: tuple[Any, ...]
) -> tuple[float, ...]:
    """Bounds for dq, dk, dv, dslopes.

    P and dS are rounded to the working dtype once each, the sums are float32, the results are
    rounded once. So every bound is the same product with absolute values: for dv, the error of P
    times |dout|, and so on.
    """
    group = case.Hq // case.Hkv
    q, k, v, dout = (_heads_first(case, t) for t in (inputs.q, inputs.k, inputs.v, inputs.dout))
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    p = oracle.weights(inputs.q, inputs.k, inputs.slopes, spans=inputs.spans, **case.options)
    size = p * (dout @ v.swapaxes(2, 3) + np.abs(delta)[..., None])  # at least |dS|
    step = 0.5 * EPSILON[dtype]
    relative = score_error(case, inputs) + FLOAT * magnitude(lse)
    p_error, ds_error = (step + relative) * p, (step + relative + FLOAT * case.D) * size
    scale = abs(case.options["scale"])
    products = (
        scale * ds_error @ k,
        scale * _per_key_head(ds_error.swapaxes(2, 3) @ q, case.Hkv),
        _per_key_head(p_error.swapaxes(2, 3) @ dout, case.Hkv),
    )
    bounds = [
        1.02 * (magnitude(b) + step * magnitude(t))
        for b, t in zip(products, truth[:3], strict=True)
    ]
    # A score is wrong by its float32 rounding, about 2^-24 of |score| + slope * 128. Errors of one
    # row hang together (its lse, its delta), those of different rows do not.
    scores = abs(case.options["scale"]) * (q @ k.swapaxes(2, 3)).max() + TILE * np.abs(
        inputs.slopes
    )
    step = 2.0**-24 * (8 + scores + magnitude(lse))[None, :, None]
    per_row = step * (size * _distances(case)).sum(3)
    return (*bounds, 4 * magnitude(np.sqrt((per_row**2).sum((0, 2)))))


def _heads_first(case: Case, x: Any) -> Any:
    """|x| as float64 [B, H, S, D]."""
    x = np.abs(np.asarray(x).astype(np.float64))
    return x if case.layout == "BNSD" else x.transpose(0, 2, 1, 3)


def _distances(case: Case) -> Any:
    """|p - j| [B, 1, Sq, Sk] plus a tile: the largest numbers that the slope gradient adds up."""
    starts = (case.Sk - case.Sq,) * case.B if case.spans is None else [s[2] for s in case.spans]
    rows, keys = np.arange(case.Sq)[:, None], np.arange(case.Sk)[None, :]
    return np.stack([np.abs(start + rows - keys) for start in starts])[:, None] + TILE


def _per_key_head(x: Any, heads_kv: int) -> Any:
    """Sum over the query heads of each key head."""
    return x.reshape(x.shape[0], heads_kv, -1, *x.shape[2:]).sum(2)
