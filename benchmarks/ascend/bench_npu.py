"""The Ascend ops on an NPU: first against float64, then against CANN's own in-kernel ALiBi.

    python benchmarks/ascend/bench_npu.py [--quick]

For a machine with an Atlas A2 (910B), MindSpore, CANN and the package of csrc/ascend/build.sh. Runs
the probes of csrc/ascend/README.md ("If something fails") in their order and stops at the first
that is wrong; then times the cases below with each backend that can run them: "ascend" (these ops),
"ascend_builtin" (ops.speed_fusion_attention with pse_type=2) and "reference" (plain MindSpore ops).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BACKENDS = ("ascend", "ascend_builtin", "reference")
# Largest error of a float16 result against float64 at which it still counts as the same
# computation: inputs are standard normal, so outputs are of order one.
TOLERANCE = 1e-2


class Case(NamedTuple):
    name: str
    batch: int
    heads_q: int
    heads_kv: int
    len_q: int
    len_k: int
    head_dim: int
    causal: bool = True
    slope: float | None = None  # of every head; None: 2^(-8 h / heads)


PROBES = (
    Case("one tile, no bias, full", 1, 1, 1, 128, 128, 64, False, 0.0),
    Case("one tile, no bias, causal", 1, 1, 1, 128, 128, 64, True, 0.0),
    Case("one tile, bias", 1, 2, 2, 128, 128, 64),
    Case("one tile, bias, full", 1, 2, 2, 128, 128, 64, False),
    Case("tails", 1, 2, 2, 200, 200, 64),
    Case("several tiles", 2, 4, 2, 300, 300, 64),
    Case("two passes through L0", 1, 2, 2, 300, 300, 200),
    Case("more keys than queries", 1, 4, 2, 100, 700, 128),
    Case("decode, heads as rows", 2, 16, 2, 1, 300, 128),
    Case("decode, split keys", 1, 8, 1, 1, 2000, 128),
)
TIMED = (
    Case("prefill 2048", 1, 32, 32, 2048, 2048, 128),
    Case("prefill 8192", 1, 16, 16, 8192, 8192, 128),
    Case("encoder 2048", 4, 16, 16, 2048, 2048, 64, False),
    Case("decode 8192, batch 1", 1, 32, 8, 1, 8192, 128),
    Case("decode 32768, batch 1", 1, 32, 8, 1, 32768, 128),
    Case("decode 8192, batch 16", 16, 32, 8, 1, 8192, 128),
)
QUICK = TIMED[:1] + TIMED[3:4]


def stop(text: str) -> None:
    raise SystemExit(f"bench_npu: {text}")


def mindspore_on_npu() -> Any:
    """The mindspore module, set to the NPU, or the end of the program."""
    try:
        import mindspore
    except ImportError as error:
        stop(f"MindSpore cannot be imported ({error}); install it for Ascend")
    if not mindspore.device_context.ascend.is_available():
        stop(
            "MindSpore finds no Ascend NPU here. This script measures one: run it on a machine "
            "with an Atlas A2 (910B), after `source <CANN>/set_env.sh`, and see csrc/ascend/"
            "README.md. Without an NPU, `make test-ascend` executes the kernels on a CPU model"
        )
    mindspore.set_device("Ascend")
    return mindspore


def print_versions(ms: Any) -> None:
    """What a report of a failure must contain."""
    home = os.environ.get("ASCEND_HOME_PATH", "not set")
    print(f"mindspore {ms.__version__}, python {platform.python_version()}, CANN at {home}")
    for path in (Path(home) / "version.cfg", Path("/usr/local/Ascend/driver/version.info")):
        if path.is_file():
            print(f"{path}: " + " ".join(path.read_text().split()))


def inputs_of(case: Case) -> tuple[list[Any], Any]:
    rng = np.random.default_rng(0)
    heads = (case.heads_q, case.heads_kv, case.heads_kv)
    lengths = (case.len_q, case.len_k, case.len_k)
    arrays = [
        rng.standard_normal((case.batch, h, n, case.head_dim), np.float32).astype(np.float16)
        for h, n in zip(heads, lengths, strict=True)
    ]
    ramp = 2.0 ** (-8.0 * np.arange(1, case.heads_q + 1) / case.heads_q)
    slopes = ramp if case.slope is None else np.full(case.heads_q, case.slope)
    return arrays, slopes.astype(np.float32)


def truth(case: Case, arrays: list[Any], slopes: Any, rows: Any) -> Any:
    """float64 out of the given query rows, for the first and last head of the first batch item."""
    results = []
    scale = float(np.float32(case.head_dim**-0.5))  # as the kernels receive it
    for h in sorted({0, case.heads_q - 1}):
        q = arrays[0][0, h, rows].astype(np.float64)
        k, v = (a[0, h * case.heads_kv // case.heads_q].astype(np.float64) for a in arrays[1:])
        distance = np.arange(case.len_k) - (case.len_k - case.len_q + rows)[:, None]
        s = scale * (q @ k.T) - float(slopes[h]) * np.abs(distance)
        if case.causal:
            s[distance > 0] = -np.inf
        p = np.exp(s - s.max(axis=1, keepdims=True))
        results.append(p / p.sum(axis=1, keepdims=True) @ v)
    return np.stack(results)


class Call:
    """alibi_attention of one case by one backend, its inputs on the device."""

    def __init__(self, ms: Any, case: Case, backend: str) -> None:
        from alibi_kernels import alibi_attention

        self.case = case
        self.arrays, self.slopes = inputs_of(case)
        tensors = [ms.Tensor(a) for a in self.arrays]
        options = {"causal": case.causal, "backend": backend}
        self.run = lambda: alibi_attention(*tensors, tuple(map(float, self.slopes)), **options)

    def error(self) -> float:
        """Worst error against float64, on at most 256 rows spread over the sequence."""
        count = min(256, self.case.len_q)
        rows = np.unique(np.linspace(0, self.case.len_q - 1, count).astype(int))
        heads = sorted({0, self.case.heads_q - 1})
        got = self.run().asnumpy()[0, heads][:, rows].astype(np.float64)
        return float(np.abs(got - truth(self.case, self.arrays, self.slopes, rows)).max())

    def milliseconds(self, ms: Any, samples: int, repeats: int) -> float:
        """Median over samples of the mean of `repeats` calls, after one sample to warm up."""
        times = []
        for _ in range(samples + 1):
            ms.runtime.synchronize()
            start = time.perf_counter()
            for _ in range(repeats):
                self.run()
            ms.runtime.synchronize()
            times.append((time.perf_counter() - start) / repeats * 1e3)
        return statistics.median(times[1:])


def probe(ms: Any) -> None:
    for case in PROBES:
        error = Call(ms, case, "ascend").error()
        verdict = "ok" if error <= TOLERANCE else "WRONG"
        print(f"{verdict:5s} {case.name:28s} worst error {error:.2e}")
        if verdict != "ok":
            stop("stopped at the first wrong result; please report everything above")


def compare(ms: Any, cases: tuple[Case, ...], samples: int, repeats: int) -> None:
    print(f"\n{'case':24s}" + "".join(f"{b:>18s}" for b in BACKENDS) + "   milliseconds per call")
    for case in cases:
        cells = []
        for backend in BACKENDS:
            try:
                call = Call(ms, case, backend)
                error = call.error()
            except RuntimeError as refusal:  # the registry says why a backend cannot run a case
                print(f"  {backend}: {str(refusal).splitlines()[0]}", file=sys.stderr)
                cells.append(f"{'-':>18s}")
                continue
            wrong = f"wrong {error:.1e}"
            good = error <= TOLERANCE
            cells.append(
                f"{call.milliseconds(ms, samples, repeats):18.3f}" if good else f"{wrong:>18s}"
            )
        print(f"{case.name:24s}" + "".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two cases, few samples")
    quick = parser.parse_args().quick
    ms = mindspore_on_npu()
    print_versions(ms)
    probe(ms)
    compare(ms, QUICK if quick else TIMED, *((3, 5) if quick else (9, 20)))


if __name__ == "__main__":
    main()
