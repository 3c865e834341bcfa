"""The rival of the kernels' gradients: the formulas in NumPy float32 with whole score matrices.

It takes inputs of the working dtype, computes in float32 and rounds its results to the working
dtype once, as the pure-ops reference does; so its error is what the dtype and the problem allow.
The floors add what a fused backward has and this one has not: it receives `out` (or the weights)
rounded to the working dtype, where the rival has them in float32, and `lse` rounded to float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.cases import NUMPY_DTYPES, Case, Inputs
from tests.compare import EPSILON, assert_close_to_truth

Array = Any
f32 = np.float32


@dataclass
class Head:
    """One (batch item, query head) in float32, [rows, D] and [keys, D] each."""

    b: int
    h: int
    g: int  # key/value head
    q: Array
    k: Array
    ramp: Array  # d bias / d slope
    p: Array
    lse: Array


def bnsd(case: Case, x: Array) -> Array:
    return x if case.layout == "BNSD" else x.transpose(0, 2, 1, 3)


def heads(case: Case, x: Inputs) -> list[Head]:
    """All heads, with their weights."""
    q, k = (bnsd(case, a).astype(f32) for a in (x.q, x.k))
    j = np.arange(case.Sk, dtype=f32)[None, :]
    result = []
    for b in range(case.B):
        start, end, q_start = (
            (0, case.Sk, case.Sk - case.Sq) if case.spans is None else case.spans[b]
        )
        position = (q_start + np.arange(case.Sq)).astype(f32)[:, None]
        allowed = (start <= j) & (j < end) & ((j <= position) if case.causal else True)
        ramp = -abs(position - j) if case.bias == "symmetric" else j - position
        for h in range(case.Hq):
            g = h // (case.Hq // case.Hkv)
            s = f32(case.options["scale"]) * (q[b, h] @ k[b, g].T) + x.slopes[h] * ramp
            s = np.where(allowed, s, f32(-np.inf))
            top = s.max(axis=1, keepdims=True, initial=-np.inf)
            p = np.exp(s - np.where(np.isfinite(top), top, 0))
            total = p.sum(axis=1, keepdims=True)
            lse = np.log(np.where(total == 0, 1, total)) + np.where(np.isfinite(top), top, 0)
            p /= np.where(total == 0, 1, total)
            result.append(Head(b, h, g, q[b, h], k[b, g], ramp, p, lse))
    return result


@dataclass
class Gradients:
    """What the rival computes, and how far a rounding of `out` or of the weights may move it."""

    rival: dict[str, Array]
    floors: dict[str, float]

    def check(self, got: dict[str, Array], truth: dict[str, Array], what: str) -> None:
        """Each gradient within 3 times the rival's error of the truth, plus its floor."""
        for name, value in got.items():
            assert_close_to_truth(
                value, truth[name], self.rival[name], 3.0, self.floors[name], f"{what}: {name}"
            )


def _collect(
    case: Case,
    dtype: str,
    work: list[tuple[Head, Array, Array | None, Array]],
    roundings: float,
) -> Gradients:
    """The gradients from dS of every head: (head, ds, dv, rounding of each row's centre).

    The floor of each is what the rounded centres may move it, and `roundings` * 2^-24 of its
    largest entry. For dslopes, whose terms cancel, of the sum of their absolute values.
    """
    c = f32(case.options["scale"])
    dq = np.zeros((case.B, case.Hq, case.Sq, case.D), f32)
    dk = np.zeros((case.B, case.Hkv, case.Sk, case.D), f32)
    dv = np.zeros((case.B, case.Hkv, case.Sk, case.D), f32)
    dslopes = np.zeros(case.Hq, f32)
    sizes = {"dslopes": np.zeros(case.Hq)}
    moved = {"dq": 0.0, "dk": np.zeros(dk.shape), "dslopes": np.zeros(case.Hq)}
    for head, ds, dv_head, centre in work:
        dq[head.b, head.h] = c * (ds @ head.k)
        dk[head.b, head.g] += c * (ds.T @ head.q)
        dslopes[head.h] += (ds * head.ramp).sum()
        sizes["dslopes"][head.h] += abs(ds * head.ramp).sum()
        if dv_head is not None:
            dv[head.b, head.g] += dv_head
        pushed = head.p * centre[:, None]  # by how much a rounded centre may move dS
        moved["dq"] = max(moved["dq"], (abs(c) * pushed @ abs(head.k)).max(initial=0))
        moved["dk"][head.b, head.g] += abs(c) * pushed.T @ abs(head.q)
        moved["dslopes"][head.h] += (pushed * abs(head.ramp)).sum()
    rival = {"dq": dq, "dk": dk, "dv": dv}
    rival = {name: bnsd(case, value.astype(NUMPY_DTYPES[dtype])) for name, value in rival.items()}
    rival["dslopes"] = dslopes
    sizes |= {name: abs(value.astype(f32)) for name, value in rival.items() if name not in sizes}
    floors = {
        name: float(np.max(moved.get(name, 0.0), initial=0))
        + roundings * 2.0**-24 * float(sizes[name].max(initial=0))
        for name in rival
    }
    return Gradients(rival, floors)


def attention_gradients(case: Case, x: Inputs, dtype: str, dlse: Array) -> Gradients:
    """`out` reaches the kernel with a relative error of EPSILON / 2 per element, and the exponents
    with two roundings of lse, in natural and in binary units: relative errors of the weights."""
    v, dout = (bnsd(case, a).astype(f32) for a in (x.v, x.dout))
    work, largest = [], 0.0
    for head in heads(case, x):
        largest = max(largest, float(abs(head.lse).max(initial=0)))
        do = dout[head.b, head.h]
        out = head.p @ v[head.b, head.g]
        delta = (do * out).sum(axis=1) - dlse[head.b, head.h]
        ds = head.p * (do @ v[head.b, head.g].T - delta[:, None])
        work.append((head, ds, head.p.T @ do, EPSILON[dtype] / 2 * abs(do * out).sum(axis=1)))
    return _collect(case, dtype, work, 4.0 + 2.0 * largest)


def weights_gradients(case: Case, x: Inputs, dtype: str, dp: Array) -> Gradients:
    """Each weight reaches the kernel with a relative error of EPSILON / 2: it moves dS directly,
    by P |dp - centre|, and through the centre."""
    work, half = [], EPSILON[dtype] / 2
    for head in heads(case, x):
        gradient = dp[head.b, head.h].astype(f32)
        centre = (head.p * gradient).sum(axis=1)
        spread = abs(gradient - centre[:, None])
        ds = head.p * (gradient - centre[:, None])
        pushed = half * (spread.max(axis=1, initial=0) + (head.p * abs(gradient)).sum(axis=1))
        work.append((head, ds, None, pushed))
    return _collect(case, dtype, work, 4.0)
