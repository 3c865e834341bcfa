"""Keys that no row may see, which may hold anything: problems with some, and NaN in their place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.cases import Case, Inputs

CASES = (
    Case("cache", 1, 2, 1, 3, 150, 64, spans=((9, 120, 117),)),
    Case("several-tiles", 1, 2, 1, 140, 500, 40, spans=((133, 390, 250),)),
    Case("full", 1, 2, 2, 20, 300, 144, causal=False, spans=((37, 170, 0),)),
    Case("both-sides", 2, 4, 2, 7, 270, 16, spans=((0, 130, 123), (129, 270, 263)), layout="BSND"),
    Case("capacity", 1, 2, 1, 70, 300, 16, spans=((0, 300, 130),)),  # the mask ends it, not kv_end
    Case("decode", 2, 4, 2, 1, 400, 64, spans=((5, 150, 149), (300, 301, 300))),
    Case("nothing", 1, 1, 1, 3, 140, 16, spans=((130, 130, 137),)),
    Case("before-the-keys", 1, 1, 1, 3, 140, 16, spans=((90, 140, 20),)),
)


def unseen(case: Case) -> Any:
    """[B, Sk] bool."""
    spans = np.array(case.spans or ((0, case.Sk, case.Sk - case.Sq),) * case.B)
    first, end, start = spans.T[..., None]
    if case.causal:
        end = np.minimum(end, start + case.Sq)
    j = np.arange(case.Sk)
    return (j < first) | (end <= j)


def poisoned(case: Case, x: Inputs) -> Inputs:
    """`x` with NaN in k and v where no row looks."""
    k, v = x.k.copy(), x.v.copy()
    for keys in (k, v):
        by_key = keys if case.layout == "BSND" else keys.transpose(0, 2, 1, 3)
        by_key[unseen(case)] = np.nan
    return replace(x, k=k, v=v)


def poisoned_grads(case: Case, dp: Any) -> Any:
    """dP with NaN there."""
    dp = dp.copy()
    dp.transpose(0, 3, 1, 2)[unseen(case)] = np.nan
    return dp
