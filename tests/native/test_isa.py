"""The choice of the instruction set, and what must not depend on it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from alibi_kernels import native
from tests.cases import Case, make_inputs
from tests.native.plain import ISAS, takes_pairs

CASE = Case("isa", 1, 2, 1, 33, 65, 24)


def test_the_table_ends_with_the_row_that_always_runs() -> None:
    rows = native.isas()
    assert rows[-1] == {"name": "scalar", "built": True, "supported": True}
    assert len({row["name"] for row in rows}) == len(rows)


def test_every_instruction_set_gives_the_same_result() -> None:
    """Up to the order of sums: 65 terms of size at most 4, rounded to float32."""
    x = make_inputs(CASE)
    results = [
        native.attention_forward(x.q, x.k, x.v, x.slopes, **CASE.options, isa=isa)[0]
        for isa in ISAS
    ]
    for out in results:
        assert np.abs(out - results[0]).max() <= 8 * 2.0**-23


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "ALIBI_CPU_ISA"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**env, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


SELECTED = (
    "import json; from alibi_kernels import _native; "
    "print(json.loads(_native.build_info())['selected'])"
)
CALL = (
    "import numpy as np; from alibi_kernels import native; x = np.ones((1, 1, 2, 4), np.float32); "
    "print(native.attention_forward(x, x, x, np.ones(1, np.float32))[0].sum())"
)


def test_the_best_one_is_the_default() -> None:
    assert run_python(SELECTED).stdout.strip() == ISAS[0]


@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_variable_forces_one(isa: str) -> None:
    assert run_python(SELECTED, ALIBI_CPU_ISA=isa).stdout.strip() == isa
    assert run_python(CALL, ALIBI_CPU_ISA=isa).stdout.strip() == "8.0"


def test_an_empty_environment_variable_is_none() -> None:
    assert run_python(SELECTED, ALIBI_CPU_ISA="").stdout.strip() == ISAS[0]


@pytest.mark.parametrize(
    "isa", ["sse", *(row["name"] for row in native.isas() if row["name"] not in ISAS)]
)
def test_an_instruction_set_that_cannot_run_is_an_error(isa: str) -> None:
    """No silent choice of another one: neither by argument nor by environment variable."""
    x = np.ones((1, 1, 2, 4), np.float32)
    with pytest.raises(ValueError, match="isa"):
        native.attention_forward(x, x, x, np.ones(1, np.float32), isa=isa)
    assert run_python(SELECTED, ALIBI_CPU_ISA=isa).stdout.strip() == ""
    failed = run_python(CALL, ALIBI_CPU_ISA=isa)
    assert failed.returncode != 0
    assert "isa" in failed.stderr.lower()


def one_key(v: Any, isa: str) -> Any:
    """Attention over a single key is v itself, whatever the scores."""
    q = np.zeros_like(v)
    return native.attention_forward(q, q, v, np.zeros(v.shape[1], np.float32), isa=isa)[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_every_16_bit_number_survives_the_round_trip(dtype: Any, isa: str) -> None:
    """Conversion to float32 and back is exact for each of the 65 536 bit patterns, but that
    products of bfloat16 pairs take subnormal numbers as 0."""
    v = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(1, 512, 1, 128)
    want = v.astype(np.float32)
    if takes_pairs(str(v.dtype), isa):
        want = np.where(abs(want) < 2.0**-126, np.float32(0), want)
    for dim in (128, 127, 1):  # whole vectors; partial ones
        got = one_key(np.ascontiguousarray(v[..., :dim]), isa).astype(np.float32)
        assert np.array_equal(got, want[..., :dim], equal_nan=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_results_round_to_nearest_even(dtype: Any, isa: str) -> None:
    """Two keys of equal weight: (a + b) / 2 is exact in float32 and rounded once."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**16, (1, 64, 2, 128), dtype=np.uint16)
    # Half of the pairs are neighbours: their mean is a tie.
    bits[:, ::2, 1] = bits[:, ::2, 0] ^ 1
    v = bits.view(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        exact = v[:, :, :1].astype(np.float64) / 2 + v[:, :, 1:].astype(np.float64) / 2
        # The kernels form a + b first, which overflows for the largest bfloat16 numbers.
        usable = (np.abs(exact) < 2.0**126) & (exact == exact.astype(np.float32))
        want = exact.astype(np.float32).astype(dtype).astype(np.float32)
        if takes_pairs(str(v.dtype), isa):  # subnormal numbers, and sums, count as 0
            size = abs(np.concatenate([v.astype(np.float64), 2 * exact], axis=2))
            usable &= ((size == 0) | (size >= 2.0**-126)).all(axis=2, keepdims=True)
    q = np.zeros((1, 64, 1, 128), dtype)
    k = np.zeros_like(v)
    got = native.attention_forward(q, k, v, np.zeros(64, np.float32), causal=False, isa=isa)[
        0
    ].astype(np.float32)
    assert usable.mean() > 0.5
    assert np.array_equal(got[usable], want[usable])
