"""Results do not depend on the number of threads, and calls may come from several at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from alibi_kernels import native
from tests.cases import Case, make_inputs
from tests.native.plain import ISAS

# Large enough that the kernels do use their threads (they stay serial below 10^6 operations).
CASES = (
    Case("causal", 2, 3, 3, 300, 300, 32),
    Case("full-grouped", 1, 6, 2, 150, 400, 40, causal=False, layout="BSND"),
    Case("one-head", 1, 1, 1, 700, 700, 64, slopes="learned"),
    Case("signed-spans", 2, 2, 1, 130, 600, 16, False, "signed", spans=((5, 600, 3), (0, 77, 9))),
)


def forward(case: Case, x: Any, **options: Any) -> tuple[Any, ...]:
    given = {**case.options, "spans": x.spans, **options}
    out, lse = native.attention_forward(x.q, x.k, x.v, x.slopes, **given)
    return out, lse, native.attention_weights(x.q, x.k, x.slopes, **given)


def assert_same_bits(got: tuple[Any, ...], want: tuple[Any, ...]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_bits_for_any_number_of_threads(case: Case, dtype: str, prune: bool, isa: str) -> None:
    x = make_inputs(case, dtype)
    one = forward(case, x, prune=prune, isa=isa, threads=1)
    for threads in (2, 3, 7):
        assert_same_bits(forward(case, x, prune=prune, isa=isa, threads=threads), one)


@pytest.mark.parametrize("isa", ISAS)
def test_calls_from_several_threads_at_once(isa: str) -> None:
    """Different sizes at the same time, so that scratch shared by mistake would show."""
    inputs = [(case, make_inputs(case)) for case in CASES]
    alone = [forward(case, x, isa=isa) for case, x in inputs]
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            (i, pool.submit(forward, *inputs[i], isa=isa, threads=1 + i % 3))
            for _ in range(6)
            for i in range(len(inputs))
        ]
        for i, job in jobs:
            assert_same_bits(job.result(timeout=60), alone[i])


FORKED = """
import os
import numpy as np
from alibi_kernels import native

x = np.random.default_rng(0).standard_normal((1, 4, 256, 32), np.float32)
call = lambda: native.attention_forward(x, x, x, np.ones(4, np.float32), threads=2)[0].tobytes()
want = call()
child = os.fork()
if child == 0:
    os._exit(0 if call() == want else 1)
assert os.waitpid(child, 0)[1] == 0 and call() == want
"""


def test_after_a_fork() -> None:
    """A child has none of its parent's threads: it computes alone, and the parent goes on."""
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)
