"""Prints the worst error against float64 by dtype and mode, fused beside reference.

    python -m tests.error_table           --save also writes benchmarks/results/<machine>/errors.csv

Every case of SMALL and SHAPES, PyNative; errors are relative to the largest element of the result.
"""

from __future__ import annotations

import functools
import sys

import mindspore as ms
import numpy as np

from alibi_kernels import alibi_attention
from tests import oracle, results
from tests.cases import DTYPES, SHAPES, SMALL, Case, make_inputs
from tests.compare import to_float64, worst_error
from tests.custom_tools import step, tensor

NAMES = ("out", "lse", "dq", "dk", "dv", "dslopes")
BACKENDS = ("cpu", "reference")
Errors = dict[str, float]


def measure(case: Case, dtype: str) -> dict[str, Errors]:
    """backend -> name of the result -> relative error."""
    x = make_inputs(case, dtype)
    modes = {"spans": x.spans, **case.options}
    truth = oracle.attention(x.q, x.k, x.v, x.slopes, **modes)
    truth += oracle.attention_grad(x.q, x.k, x.v, x.slopes, dout=x.dout, dlse=x.dlse, **modes)
    spans = None if x.spans is None else ms.Tensor(x.spans)
    arguments = [tensor(ms, a) for a in (x.q, x.k, x.v, x.slopes)]
    arguments += [spans, ms.Tensor(to_float64(x.dout).astype(np.float32)), ms.Tensor(x.dlse)]
    errors: dict[str, Errors] = {}
    for backend in BACKENDS:
        run = step(functools.partial(alibi_attention, backend=backend), **case.options)
        errors[backend] = {
            name: worst_error(got.astype(ms.float32).asnumpy(), want) / largest(want)
            for name, got, want in zip(NAMES, run(*arguments), truth, strict=True)
        }
    return errors


def largest(x: np.ndarray) -> float:
    """The largest finite magnitude, or 1 where there is none."""
    return float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) or 1.0


def main(arguments: list[str]) -> None:
    worst: dict[tuple[str, str], dict[str, Errors]] = {}
    for dtype in DTYPES:
        for case in (*SMALL, *SHAPES):
            mode = f"{'causal' if case.causal else 'full'}, {case.bias}"
            row = worst.setdefault((dtype, mode), {b: dict.fromkeys(NAMES, 0.0) for b in BACKENDS})
            for backend, errors in measure(case, dtype).items():
                for name, error in errors.items():
                    row[backend][name] = max(row[backend][name], error)
    print("Worst relative error against float64, fused / reference\n")
    print("| dtype | mode | " + " | ".join(NAMES) + " |")
    print("|---" * (len(NAMES) + 2) + "|")
    for (dtype, mode), row in worst.items():
        cells = (f"{row['cpu'][n]:.1e} / {row['reference'][n]:.1e}" for n in NAMES)
        print(f"| {dtype} | {mode} | " + " | ".join(cells) + " |")
    if "--save" in arguments:
        rows = [
            {"dtype": dtype, "mode": mode, "result": n, **{b: f"{row[b][n]:.2e}" for b in BACKENDS}}
            for (dtype, mode), row in worst.items()
            for n in NAMES
        ]
        print(f"\nwritten: {results.save('errors', rows)}")


if __name__ == "__main__":
    main(sys.argv[1:])
