"""Time and memory of one attention call, fused and on plain MindSpore operators.

Every implementation runs in a process of its own (`python -m alibi.demo.speed ...`), so that the
peak of its memory is its own. Both are compiled, which is the faster mode of the two for each, as
a Cell called in GRAPH_MODE: its graph runs on the thread that calls it. Under ms.jit that thread
would wait for another one in a loop, on a core that the work then lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn

from alibi.demo.table import Table
from alibi_kernels import alibi_attention, alibi_slopes

Shape = tuple[int, int, int, int]  # batch, heads, length, head_dim

SHAPES: tuple[Shape, ...] = ((4, 8, 256, 32), (1, 8, 1024, 64), (1, 4, 2048, 64))
QUICK_SHAPES: tuple[Shape, ...] = ((1, 2, 64, 16),)

TITLE = (
    "One causal attention call, float32, shape (batch, heads, length, head_dim), compiled as a "
    "Cell in GRAPH_MODE. Plain: MindSpore operators. Fused: this project's kernel, first visiting "
    "every key, then pruned (the same result to float32 rounding). Speed-up: plain over pruned. "
    "Memory: peak beyond inputs and libraries."
)


class Attention(nn.Cell):
    """One attention call."""

    def __init__(self, slopes: Any, prune: bool, backend: str | None) -> None:
        super().__init__()
        self.slopes = slopes
        self.prune = prune
        self.backend = backend

    def construct(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
        return alibi_attention(q, k, v, self.slopes, prune=self.prune, backend=self.backend)


class AttentionAndGradients(nn.Cell):
    """One attention call, its sum as the loss, and the gradients of q, k and v."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()

        def loss(q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> ms.Tensor:
            return attention(q, k, v).sum()

        self.loss_and_gradients = ms.value_and_grad(loss, (0, 1, 2))

    def construct(self, q: ms.Tensor, k: ms.Tensor, v: ms.Tensor) -> Any:
        return self.loss_and_gradients(q, k, v)


def show(quick: bool) -> Table:
    """Prints and returns the table."""
    print("Fused against plain operators\n", flush=True)
    table = Table(
        TITLE,
        ("shape", "pass", "plain ms", "fused ms", "pruned ms", "speed-up", "plain MB", "fused MB"),
    )
    for shape in QUICK_SHAPES if quick else SHAPES:
        plain, fused = (_measure_apart(name, shape, quick) for name in ("reference", "fused"))
        for direction in ("forward", "forward+backward"):
            slow, fast = plain[direction], fused[direction]
            table.add(
                str(shape),
                direction,
                f"{slow['dense_ms']:.1f}",
                f"{fast['dense_ms']:.1f}",
                f"{fast['pruned_ms']:.1f}",
                f"{slow['dense_ms'] / fast['pruned_ms']:.0f}x",
                f"{slow['peak_mb']:.0f}",
                f"{fast['peak_mb']:.0f}",
            )
    print(f"{table.text()}\n", flush=True)
    return table


def _measure_apart(name: str, shape: Shape, quick: bool) -> dict[str, dict[str, float]]:
    command = [sys.executable, "-m", __spec__.name, name, *map(str, shape)]
    if quick:
        command.append("--quick")
    # Importing MindSpore sets OMP_NUM_THREADS=1 for later processes, behind Python's back.
    environment = dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, shape: Shape, seconds: float) -> dict[str, dict[str, float]]:
    """Returns milliseconds and peak megabytes, per pass, of one implementation in this process,
    which it leaves in GRAPH_MODE.

    Args:
        name: "reference" or "fused".
        shape: (batch, heads, length, head_dim).
        seconds: how long to time each pass.
    """
    ms.set_context(mode=ms.GRAPH_MODE)
    backend = "reference" if name == "reference" else None
    batch, heads, length, head_dim = shape
    slopes = alibi_slopes(heads)
    tiny = _inputs((1, heads, 2, head_dim))
    inputs = _inputs((batch, heads, length, head_dim))

    def passes(prune: bool) -> dict[str, nn.Cell]:
        attention = Attention(slopes, prune, backend)
        return {"forward": attention, "forward+backward": AttentionAndGradients(attention)}

    results: dict[str, dict[str, float]] = {}
    dense, pruned = passes(prune=False), passes(prune=True)
    for run in dense.values():
        _finish(run(*tiny))  # compiles and loads libraries, so that they do not count as memory
    baseline = _megabytes("VmRSS")
    for direction, run in dense.items():  # the peak only grows, and so does what they need
        _finish(run(*inputs))
        results[direction] = {"peak_mb": max(0.0, _megabytes("VmHWM") - baseline)}
    for direction, run in dense.items():
        results[direction]["dense_ms"] = _median_ms(run, inputs, seconds)
        if backend is None:
            results[direction]["pruned_ms"] = _median_ms(pruned[direction], inputs, seconds)
    return results


def _inputs(shape: Shape) -> list[ms.Tensor]:
    random = np.random.default_rng(0)
    return [ms.Tensor(random.standard_normal(shape, np.float32)) for _ in range(3)]


def _median_ms(run: Callable[..., Any], inputs: list[ms.Tensor], seconds: float) -> float:
    _finish(run(*inputs))
    samples: list[float] = []
    while len(samples) < 3 or sum(samples) < seconds:
        start = time.perf_counter()
        _finish(run(*inputs))
        samples.append(time.perf_counter() - start)
    return 1e3 * statistics.median(samples)


def _finish(result: Any) -> None:
    """Fetches a Tensor, or all Tensors of nested tuples: then they have been computed."""
    if isinstance(result, tuple):
        for part in result:
            _finish(part)
    else:
        result.asnumpy()


def _megabytes(field: str) -> float:
    """Resident memory now (VmRSS) or at its highest (VmHWM) of this process, as Linux counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise OSError(f"/proc/self/status has no {field}; memory is measured on Linux only.")


def main() -> None:
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("name", choices=("reference", "fused"))
    parser.add_argument("shape", type=int, nargs=4)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    ms.set_device("CPU")
    seconds = 0.01 if options.quick else 1.0
    print(json.dumps(measure(options.name, tuple(options.shape), seconds)))


if __name__ == "__main__":
    main()
