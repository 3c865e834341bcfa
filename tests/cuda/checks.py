"""Whether one case comes out right on the model: all four entry points against the float64 oracle.

The rival is the formula in NumPy float32. Tensor cores take the second operand of every product in
the working dtype, so the weights P and their gradients dS are rounded once more than the rival's:
by at most half a unit each, which moves a sum of products by at most that part of the sum of their
absolute values. That is the floor for float16 and bfloat16; float32 runs without that rounding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from tests import oracle
from tests.cases import Case, make_dp, make_inputs
from tests.compare import EPSILON, assert_close_to_truth
from tests.cuda.model import Calls, Model
from tests.native import float32_rival as rivals

# Roundings of the largest element that the rival may by chance not make: exponentials, the division
# by the row sum, the product with v and its sum.
FLOOR = 4 * 2.0**-23


def _floor(x: Any) -> float:
    finite = np.abs(x[np.isfinite(x)])
    return FLOOR * max(1.0, float(finite.max(initial=0.0)))


def _half_unit(dtype: str) -> float:
    return 0.0 if dtype == "float32" else EPSILON[dtype] / 2


@cache
def expected(case: Case, dtype: str) -> dict[str, Any]:
    """Truth, rival and floors of one case; the same for every schedule."""
    x = make_inputs(case, dtype)
    dp = make_dp(case, dtype)
    options = {**case.options, "spans": x.spans}
    heads = rivals.heads(case, x)
    v, dout = (rivals.bnsd(case, a).astype(np.float32) for a in (x.v, x.dout))
    out = np.zeros((case.B, case.Hq, case.Sq, case.D), np.float32)
    lse = np.zeros((case.B, case.Hq, case.Sq), np.float32)
    p = np.zeros((case.B, case.Hq, case.Sq, case.Sk), np.float32)
    rounding = dict.fromkeys(("out", "dq", "dk", "dv"), 0.0)
    dk, dv = (np.zeros((case.B, case.Hkv, case.Sk, case.D)) for _ in range(2))
    scale = abs(case.options["scale"])
    for h in heads:
        seen = h.p.sum(axis=1) > 0
        p[h.b, h.h] = h.p
        out[h.b, h.h] = h.p @ v[h.b, h.g]
        lse[h.b, h.h] = np.where(seen, h.lse[:, 0], -np.inf)
        do = dout[h.b, h.h]
        centre = (do * out[h.b, h.h]).sum(axis=1) - x.dlse[h.b, h.h]
        ds = np.abs(h.p * (do @ v[h.b, h.g].T - centre[:, None]))
        rounding["out"] = max(rounding["out"], (h.p @ abs(v[h.b, h.g])).max(initial=0))
        rounding["dq"] = max(rounding["dq"], scale * (ds @ abs(h.k)).max(initial=0))
        dk[h.b, h.g] += scale * ds.T @ abs(h.q)
        dv[h.b, h.g] += h.p.T @ abs(do)
    rounding["dk"], rounding["dv"] = dk.max(initial=0), dv.max(initial=0)
    half = _half_unit(dtype)
    return {
        "inputs": x,
        "dp": dp,
        "forward": oracle.attention(x.q, x.k, x.v, x.slopes, **options),
        "rival": (rivals.bnsd(case, out.astype(x.q.dtype)), lse),
        "rounding": {name: half * float(value) for name, value in rounding.items()},
        "grads": oracle.attention_grad(x.q, x.k, x.v, x.slopes, x.dout, x.dlse, **options),
        "rival_grads": rivals.attention_gradients(case, x, dtype, x.dlse),
        "weights": oracle.weights(x.q, x.k, x.slopes, **options),
        "rival_weights": p.astype(x.q.dtype),
        "weight_grads": oracle.weights_grad(x.q, x.k, x.slopes, dp, **options),
        "rival_weight_grads": rivals.weights_gradients(case, x, dtype, dp),
    }


def check_forward(calls: Calls, want: dict[str, Any], what: str) -> None:
    (out, lse), truth, rival = calls.forward(), want["forward"], want["rival"]
    floor = _floor(truth[0]) + want["rounding"]["out"]
    assert_close_to_truth(out, truth[0], rival[0], 2.0, floor, f"{what}: out")
    assert_close_to_truth(lse, truth[1], rival[1], 2.0, _floor(truth[1]), f"{what}: lse")


def check_backward(calls: Calls, want: dict[str, Any], what: str) -> None:
    names = ("dq", "dk", "dv", "dslopes")
    for name, got, truth in zip(names, calls.backward(), want["grads"], strict=True):
        rival = want["rival_grads"]
        floor = rival.floors[name] + want["rounding"].get(name, 0.0)
        assert_close_to_truth(got, truth, rival.rival[name], 3.0, floor, f"{what}: {name}")


def check_weights(calls: Calls, want: dict[str, Any], what: str) -> None:
    p, rival = calls.weights(), want["rival_weight_grads"]
    assert_close_to_truth(p, want["weights"], want["rival_weights"], 2.0, FLOOR, f"{what}: p")
    # dS is rounded to the working dtype here too, and is no larger than in the attention gradients
    # of inputs of the same size.
    for name, got, truth in zip(
        ("dq", "dk", "dslopes"),
        calls.weights_backward(want["dp"]),
        want["weight_grads"],
        strict=True,
    ):
        floor = rival.floors[name] + want["rounding"].get(name, 0.0)
        assert_close_to_truth(got, truth, rival.rival[name], 3.0, floor, f"{what}: weights {name}")


CHECKS = {"forward": check_forward, "backward": check_backward, "weights": check_weights}


def check(
    model: Model,
    case: Case,
    dtype: str,
    *,
    seed: int = 0,
    prune: bool = True,
    multiprocessors: int = 1,
    parts: tuple[str, ...] = ("forward", "backward", "weights"),
) -> None:
    """Runs a case under one schedule; AssertionError for a wrong result, RuntimeError for what the
    model objects to."""
    want = expected(case, dtype)
    model.configure(seed, multiprocessors=multiprocessors)
    calls = Calls(model, case, dtype, want["inputs"], prune)
    try:
        for part in parts:
            CHECKS[part](calls, want, f"{case} {dtype} seed {seed}")
    finally:
        model.release()
