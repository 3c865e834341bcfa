"""Every dtype and mode of a library against float64, through the operators that MindSpore calls.

    python -m benchmarks.gpu.correctness --library L.so --device cuda --csv FILE

One row per check: "ok", or what was wrong. Checks are in order of value, and those that the file
already has are left out, so that a run that was cut short goes on. The bounds are those of the CUDA
tests (tests/cuda/checks.py): twice, for gradients three times, the error of NumPy float32 rounded
to the dtype, plus floors with their reasons.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.memory import Arrays, memory_on
from benchmarks.gpu.operators import Calls, PackedCalls
from benchmarks.gpu.rows import Rows
from tests.cases import DTYPES, SHAPES, SITUATIONS, SMALL, Case, make_inputs
from tests.cuda.checks import CHECKS, expected

PARTS = ("forward", "backward", "weights")
ATTENTION = PARTS[:2]
COLUMNS = ("check", "dtype", "prune", "what", "status", "seconds")

# In the words of our library and of PyTorch: errors of the GPU that outlive the call.
BROKEN = ('status "device"', "CUDA error")

# Each head_dim that users have, with grouped heads, lengths that fill no tile and slopes that are
# trained. Three blocks of rows and six tiles of keys, so that rings of tiles go round. Up to 1024
# keys the Hopper forward kernel runs dense; "steep" and "far keys win" have more.
HEAD_DIMS = tuple(
    Case(f"head-dim-{d}", 1, 4, 2, 201, 333, d, slopes="learned")
    for d in (128, 64, 96, 80, 32, 256)
)
TILES = (
    Case("full-D128", 1, 2, 1, 190, 390, 128, causal=False, slopes="learned", layout="BSND"),
    Case("signed-D64", 1, 2, 2, 130, 260, 64, causal=False, bias="signed"),
    Case("causal-signed-D96", 1, 2, 1, 130, 260, 96, bias="signed"),
    Case("spans-D128", 2, 2, 2, 150, 400, 128, spans=((37, 390, 225), (0, 90, 20)), layout="BSND"),
    Case("steep-D64", 1, 4, 4, 300, 1300, 64, slopes="steep"),
    Case("far-keys-win-D64", 1, 2, 1, 64, 1100, 64, slopes="learned", magnitude=8.0),
    Case("no-slope-D128", 1, 2, 2, 129, 257, 128, slopes="zero"),
    Case("negative-D64", 1, 2, 1, 130, 400, 64, slopes="negative"),
    Case("negative-full-D128", 1, 2, 1, 70, 400, 128, causal=False, slopes="negative"),
)
# Few rows against many keys: the library may split the keys over several blocks.
DECODE = (
    Case("decode-D128", 2, 8, 2, 1, 3001, 128, slopes="learned"),
    Case("decode-D64", 2, 4, 2, 1, 1700, 64, slopes="learned", layout="BSND"),
    Case("chunk-spans-D96", 1, 2, 1, 70, 1800, 96, spans=((30, 1777, 1650),), layout="BSND"),
    Case("full-D32", 1, 1, 1, 20, 1900, 32, causal=False, slopes="mixed"),
    Case("steep-D40", 2, 2, 2, 3, 1900, 40, slopes="steep"),
    Case("sees-nothing-D80", 2, 1, 1, 6, 1600, 80, spans=((400, 1600, 0), (0, 0, 40))),
    Case("decode-D256", 1, 2, 1, 1, 1201, 256),
)
PACKED = (
    Case("packed-D64", 2, 3, 3, 130, 130, 64, layout="BSND", slopes="learned"),
    Case("packed-spans-D128", 1, 2, 2, 97, 97, 128, layout="BSND", spans=((5, 90, 0),)),
)


@dataclass(frozen=True)
class Check:
    """One row: `run(library, arrays)` raises when something is wrong."""

    case: Case
    dtype: str
    prune: bool
    what: str
    run: Callable[[Check, Path, Arrays], None]

    @property
    def key(self) -> tuple[str, ...]:
        return (str(self.case), self.dtype, str(self.prune), self.what)


def _compare(calls: Any, check: Check, parts: tuple[str, ...]) -> None:
    for part in parts:
        CHECKS[part](calls, expected(check.case, check.dtype), f"{check.case} {check.dtype}")


def _parts(check: Check, library: Path, arrays: Arrays) -> None:
    x = make_inputs(check.case, check.dtype)
    calls = Calls(library, arrays, check.case, check.dtype, x, check.prune)
    _compare(calls, check, tuple(check.what.split("+")))


def _packed(check: Check, library: Path, arrays: Arrays) -> None:
    x = make_inputs(check.case, check.dtype)
    calls = PackedCalls(library, arrays, check.case, check.dtype, x, check.prune)
    _compare(calls, check, ATTENTION)


def _twice_the_same(check: Check, library: Path, arrays: Arrays) -> None:
    """Every sum has one order: two runs agree in every bit."""
    runs = []
    for _ in range(2):
        x = make_inputs(check.case, check.dtype)
        calls = Calls(library, arrays, check.case, check.dtype, x, check.prune)
        runs.append([*calls.forward(), *calls.backward()])
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(_bits(first), _bits(second))


def _outside_is_not_read(check: Check, library: Path, arrays: Arrays) -> None:
    """NaN in keys and values that no span allows changes no bit of the result."""
    (start, end, _), *_ = check.case.spans or ()
    runs = []
    for fill in (0.0, np.nan):
        x = make_inputs(check.case, check.dtype)
        for array in (x.k, x.v):
            keys = array if check.case.layout == "BSND" else array.swapaxes(1, 2)
            keys[:, :start], keys[:, end:] = fill, fill
        calls = Calls(library, arrays, check.case, check.dtype, x, check.prune)
        runs.append([*calls.forward(), *calls.backward()])
    for clean, poisoned in zip(*runs, strict=True):
        np.testing.assert_array_equal(_bits(clean), _bits(poisoned))


def _bits(x: Any) -> Any:
    return x.view(np.uint8)


CACHE = Case("cache-D64", 1, 2, 1, 20, 450, 64, spans=((9, 420, 400),), slopes="learned")


def checks() -> Iterator[Check]:
    """All checks, those that tell most first."""
    every = "+".join(PARTS)
    for case in HEAD_DIMS + TILES:
        for dtype in ("bfloat16", "float16", "float32"):
            yield Check(case, dtype, True, every, _parts)
    for case in DECODE:
        for dtype in ("bfloat16", "float32"):
            yield Check(case, dtype, True, "forward", _parts)
    for case in HEAD_DIMS + TILES + DECODE:
        yield Check(case, "float16", False, "+".join(ATTENTION), _parts)
    for dtype in DTYPES:
        yield Check(CACHE, dtype, True, "NaN outside the span", _outside_is_not_read)
        yield Check(TILES[0], dtype, True, "two runs, same bits", _twice_the_same)
        yield from (Check(case, dtype, True, "packed", _packed) for case in PACKED)
    for case in SMALL + SHAPES:
        for dtype in DTYPES:
            yield Check(case, dtype, True, every, _parts)


def quick() -> Iterator[Check]:
    """A few seconds' worth on a CPU: every kind of check, every part, every dtype."""
    everything = list(checks())
    small = [c for c in everything if c.case in SITUATIONS and c.run is _parts]
    special = [c for c in everything if c.run is not _parts]
    decode = [c for c in everything if c.case in DECODE[1:5] and c.dtype == "float32"]
    return iter([*small[::7], *special, *decode, *everything[3:6]])


def sanitizer() -> Iterator[Check]:
    """Small shapes for tools that slow a kernel down a hundred times; each kernel once."""
    every = "+".join(PARTS)
    for dtype in ("float16", "float32", "bfloat16"):
        for d in (64, 128):
            case = Case(f"sanitizer-D{d}", 1, 2, 1, 70, 150, d, slopes="learned")
            yield Check(case, dtype, True, every, _parts)
    yield Check(Case("sanitizer-decode", 1, 2, 1, 1, 900, 64), "float16", True, "forward", _parts)
    yield Check(Case("sanitizer-D5", 1, 2, 1, 17, 33, 5), "float16", True, every, _parts)


SETS = {"all": checks, "quick": quick, "sanitizer": sanitizer}


def outcome(check: Check, library: Path, arrays: Arrays) -> str:
    try:
        check.run(check, library, arrays)
    except Exception as error:  # a wrong result is a row, not the end of the run
        return " ".join(f"{type(error).__name__}: {error}".split())
    return "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--device", default="host", help="host, cpu (PyTorch) or cuda")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="all")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--bare", action="store_true", help="no guards, outputs not poisoned")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    rows = Rows(options.csv, COLUMNS, keys=4)
    memory = memory_on(options.device)
    for check in SETS[options.set]():
        if rows.has(check.key):
            continue
        if time.monotonic() > end:
            print("time is up; run again to go on")
            break
        print(" ".join(check.key), flush=True)  # the last line names what a crash interrupted
        start = time.monotonic()
        status = outcome(check, options.library, Arrays(memory, options.bare))
        rows.add((*check.key, status, f"{time.monotonic() - start:.2f}"))
        if any(words in status for words in BROKEN):
            return 3  # the rest needs a new process
    return 0


if __name__ == "__main__":
    sys.exit(main())
