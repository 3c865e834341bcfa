"""What the tests of the MindSpore operators share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import oracle
from tests.cases import Case, Inputs
from tests.compare import EPSILON, assert_close_to_truth, to_float64

ROOT = Path(__file__).resolve().parent.parent


def tensor(ms: Any, x: Any) -> Any:
    """A NumPy array as a Tensor of the same dtype; None stays None."""
    if x is None:
        return None
    if x.dtype.name == "bfloat16":
        return ms.Tensor(x.astype(np.float32)).astype(ms.bfloat16)
    return ms.Tensor(x)


def tensors(ms: Any, inputs: Inputs) -> tuple[Any, Any, Any]:
    return tensor(ms, inputs.q), tensor(ms, inputs.k), tensor(ms, inputs.v)


def run_python(
    script: Path, directory: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh process, in `directory`, with this checkout importable."""
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def normal(ms: Any, *shape: int, seed: int = 0) -> Any:
    """A float32 Tensor of normally distributed numbers, the same in every run."""
    return ms.Tensor(np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32))


def step(op: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """(q, k, v, slopes, spans, dout, dlse) -> (out, lse, dq, dk, dv, dslopes), all in one graph."""
    import mindspore as ms

    def loss(q, k, v, slopes, spans, dout, dlse):  # type: ignore[no-untyped-def]
        out, lse = op(q, k, v, slopes, spans=spans, return_lse=True, **options)
        # Rows that may see nothing have lse = -inf, which no sum survives.
        seen = ms.ops.where(lse == -float("inf"), ms.ops.zeros_like(lse), lse)
        total = (out.astype(ms.float32) * dout).sum() + (seen * dlse).sum()
        return total, out, lse

    gradient = ms.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)

    def run(q, k, v, slopes, spans, dout, dlse):  # type: ignore[no-untyped-def]
        values, gradients = gradient(q, k, v, slopes, spans, dout, dlse)
        return (values[1], values[2], *gradients)

    return run


def stored_out_error(case: Case, x: Inputs, out: Any, dtype: str) -> float:
    """How far dslopes may be off because the backward reads `out` as it was stored, rounded.

    delta_i = <dout_i, out_i> is off by at most e_i = EPSILON/2 * sum_d |dout_id out_id|, and
    dslopes = sum_ij p_ij (dP_ij - delta_i) bias_ij / slope by at most sum_ij e_i p_ij |p_i - j|.
    """
    if dtype == "float32":
        return 0.0
    products = np.abs(to_float64(x.dout) * to_float64(out))
    if case.layout == "BSND":
        products = products.transpose(0, 2, 1, 3)
    p = oracle.weights(x.q, x.k, x.slopes, spans=x.spans, **case.options)
    starts = [s[2] for s in case.spans] if case.spans else [case.Sk - case.Sq] * case.B
    rows = np.array(starts)[:, None, None] + np.arange(case.Sq)[None, :, None]
    distance = np.abs(rows - np.arange(case.Sk))[:, None]
    delta = EPSILON[dtype] / 2 * products.sum(axis=3)
    return float((delta * (p * distance).sum(axis=3)).sum(axis=(0, 2)).max(initial=0.0))


def assert_all_close(
    got: Any, truth: Any, rival: Any, dtype: str, what: str, dslopes_floor: float
) -> None:
    """Results of an operator against the oracle, with the reference as the rival.

    The factors are those of the contract: 2 for results, 3 for gradients. The floor is 8 roundings
    of the largest element in float32, for another order of summation, and one in the dtype that
    the result is stored in; for dslopes also `stored_out_error`.
    """
    names = ("out", "lse", "dq", "dk", "dv", "dslopes")
    for name, x, t, r in zip(names, got, truth, rival, strict=True):
        stored = "float32" if name in ("lse", "dslopes") else dtype
        largest = np.abs(np.where(np.isfinite(t), to_float64(t), 0)).max(initial=0.0)
        floor = largest * (8 * EPSILON["float32"] + EPSILON[stored])
        floor += dslopes_floor if name == "dslopes" else 0.0
        assert_close_to_truth(x, t, r, 2 if name in names[:2] else 3, floor, f"{what} {name}")
