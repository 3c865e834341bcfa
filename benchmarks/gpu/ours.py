"""Our kernels as a provider, called as MindSpore calls them: dense, and pruned by the bound.

Slopes are constants (`fixed_slopes`), so the backward computes what the peers compute, none of
which has a gradient for slopes. What that gradient costs is a row of its own, in training only.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases import TRAINING, Case
from providers import Arrays, Provider

from benchmarks.gpu import memory
from benchmarks.gpu.operators import Calls
from benchmarks.gpu.peers import GpuPrepared
from tests import cases as tests_cases

_LAST: list[tuple[Arrays, tests_cases.Inputs]] = []  # the providers of a case share its inputs


def _inputs(case: Case, values: Arrays) -> tests_cases.Inputs:
    if not _LAST or _LAST[0][0] is not values:
        _LAST[:] = [(values, _converted(case, values))]
    return _LAST[0][1]


def _converted(case: Case, values: Arrays) -> tests_cases.Inputs:
    kind = memory.DTYPES[case.dtype]
    q, k, v, dout = (values[n].astype(kind) for n in ("q", "k", "v", "dout"))
    dlse = np.zeros(q.shape[:3], np.float32)
    return tests_cases.Inputs(q, k, v, case.slopes.astype(np.float32), None, dout, dlse)


def prepare(
    case: Case, values: Arrays, library: Path, place: Any, prune: bool, trained: bool = False
) -> GpuPrepared:
    same = tests_cases.Case(
        "timed",
        *(case.batch, case.heads, case.heads, case.queries, case.keys, case.head_dim),
        causal=case.causal,
    )
    arrays, x = memory.Arrays(place), _inputs(case, values)
    calls = Calls(library, arrays, same, case.dtype, x, prune, fixed_slopes=not trained)
    tensors = [calls.q, calls.k, calls.v, *calls.modes]
    forward, results = calls.bind("AlibiAttentionFwd", tensors, [calls.type, np.float32])
    if case.mode != TRAINING:
        return GpuPrepared(forward, lambda: _arrays(place, forward, results[:1]))
    inputs = [*tensors, *results, calls.dout, calls.dlse]
    dtypes = [calls.type] * 3 + [np.float32] * calls.trained
    backward, gradients = calls.bind("AlibiAttentionBwd", inputs, dtypes)

    def both() -> None:
        forward()
        backward()

    both()
    return GpuPrepared(backward, lambda: _arrays(place, both, [results[0], *gradients[:3]]))


def _arrays(place: Any, run: Any, arrays: list[Any]) -> Arrays:
    run()
    place.synchronize()
    names = ("out", "dq", "dk", "dv")
    return {name: x.numpy() for name, x in zip(names, arrays, strict=False)}


def providers(library: Path, place: Any) -> list[Provider]:
    def row(name: str, prune: bool, trained: bool, note: str) -> Provider:
        make = partial(prepare, library=library, place=place, prune=prune, trained=trained)

        def against(case: Case) -> list[str]:
            same = trained and case.mode != TRAINING
            return ["the same as without: only a backward has a gradient"] if same else []

        return Provider(name, "ours", "ctypes", make, against, note)

    return [
        row("ours, dense", False, False, "prune off; slopes are constants"),
        row("ours, pruned", True, False, "prune on; slopes are constants"),
        row("ours, dense, with dslopes", False, True, "prune off; and the slopes' gradient"),
        row("ours, pruned, with dslopes", True, True, "prune on; and the slopes' gradient"),
    ]
