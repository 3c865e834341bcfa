"""Our kernels as a provider, called as MindSpore calls them: dense, and pruned by the bound."""

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


def _inputs(case: Case, values: Arrays) -> tests_cases.Inputs:
    kind = memory.DTYPES[case.dtype]
    q, k, v, dout = (values[n].astype(kind) for n in ("q", "k", "v", "dout"))
    dlse = np.zeros(q.shape[:3], np.float32)
    return tests_cases.Inputs(q, k, v, case.slopes.astype(np.float32), None, dout, dlse)


def prepare(case: Case, values: Arrays, library: Path, place: Any, prune: bool) -> GpuPrepared:
    same = tests_cases.Case(
        "timed",
        *(case.batch, case.heads, case.heads, case.queries, case.keys, case.head_dim),
        causal=case.causal,
    )
    calls = Calls(library, memory.Arrays(place), same, case.dtype, _inputs(case, values), prune)
    tensors = [calls.q, calls.k, calls.v, *calls.modes]
    forward, results = calls.bind("AlibiAttentionFwd", tensors, [calls.type, np.float32])
    if case.mode != TRAINING:
        return GpuPrepared(forward, lambda: _arrays(place, forward, results[:1]))
    inputs = [*tensors, *results, calls.dout, calls.dlse]
    dtypes = [calls.type] * 3 + [np.float32]
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
    return {name: x.numpy().astype(np.float32) for name, x in zip(names, arrays, strict=False)}


def providers(library: Path, place: Any) -> list[Provider]:
    def row(name: str, prune: bool, note: str) -> Provider:
        make = partial(prepare, library=library, place=place, prune=prune)
        return Provider(name, "ours", "ctypes", make, lambda case: [], note)

    return [
        row("ours, dense", False, "prune off; the backward has the slopes' gradient"),
        row("ours, pruned", True, "prune on; the backward has the slopes' gradient"),
    ]
