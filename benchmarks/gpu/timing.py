"""Our kernels and the public peers, interleaved on the same inputs, checked before they are timed.

    python -m benchmarks.gpu.timing --library L.so --device cuda --csv FILE

Per case: every provider computes it once and is compared with float64 (device_truth.py, the first
and the last head); who is off by more than LIMITS in any result gets a row that says so and
no time. The others take turns, A B C A B C, so that clocks and heat hit all alike. A sample is one
call between two CUDA events. Before each, 256 MB are written, so that no input is left in the L2
cache, and the GPU is kept busy for a moment, so that it is not the launch by the CPU that is timed.
Reported are the median and the 20% and 80% quantiles.

One formula for the work, whoever does it: 4 B H D pairs forward, 2.5 times that backward, half of
all pairs when causal; so TFLOP/s of a pruned run counts work that was not done, as a ratio of times
would. Decode is bytes of K and V over time. "training" is the backward alone.

Cases are in order of value; rows that the file has are not measured again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np
from cases import DECODE, FORWARD, TRAINING, Case, round_to
from providers import Prepared, Provider
from truth import Truth

from benchmarks.gpu import ours, peers
from benchmarks.gpu.device_truth import DeviceTruth
from benchmarks.gpu.memory import memory_on
from benchmarks.gpu.rows import Rows

COLUMNS = (
    *("case", "provider", "mode", "dtype", "batch", "heads", "queries", "keys", "head_dim"),
    *("causal", "status", "error", "median_ms", "p20_ms", "p80_ms", "samples", "tflops"),
    *("gb_per_s", "clock", "note", "version", "sm_mhz"),
)
FLUSH_BYTES = 256 << 20
SPIN_CYCLES = 400_000  # about 0.2 ms, longer than any provider takes to launch
# Largest ||got - truth|| / ||truth|| of a result, by dtype: a few roundings of the operands; a bias
# in memory is one of them, and TensorFloat-32 is what float32 means to some peers.
LIMITS = {"float32": 2e-3, "float16": 5e-3, "bfloat16": 2e-2}


def square(mode: str, head_dim: int, tokens: int, dtype: str = "bfloat16", **more: Any) -> Case:
    """16k tokens in all, as many heads as make a width of 2048."""
    batch, heads = max(1, 16384 // tokens), 2048 // head_dim
    return Case(mode, batch, heads, tokens, tokens, head_dim, dtype=dtype, threads=0, **more)


def decode(head_dim: int, batch: int, keys: int) -> Case:
    heads = 2048 // head_dim
    return Case(DECODE, batch, heads, 1, keys, head_dim, dtype="bfloat16", threads=0)


def gpu_cases() -> Iterator[Case]:
    """The bar first, then what a user would ask next."""
    for tokens in (16384, 4096):
        for mode in (FORWARD, TRAINING):
            yield square(mode, 128, tokens)
    yield square(FORWARD, 64, 16384)
    yield decode(128, 8, 8192)
    yield square(TRAINING, 64, 16384)
    for batch, keys in ((1, 16384), (64, 2048), (1, 131072)):
        yield decode(128, batch, keys)
    for tokens in (1024, 2048, 8192):
        for head_dim in (128, 64):
            yield square(FORWARD, head_dim, tokens)
            yield square(TRAINING, head_dim, tokens)
    yield square(FORWARD, 64, 4096)
    yield square(TRAINING, 64, 4096)
    yield from (square(FORWARD, 128, tokens) for tokens in (32768, 65536, 131072))  # growth
    yield square(FORWARD, 128, 4096, causal=False)
    yield square(FORWARD, 128, 4096, "float16")
    yield square(FORWARD, 128, 4096, "float32")
    yield square(TRAINING, 128, 4096, "float32")
    yield from (square(FORWARD, d, 4096) for d in (32, 256))
    yield decode(64, 8, 8192)


def rehearsal_cases() -> Iterator[Case]:
    for mode in (FORWARD, TRAINING):
        yield Case(mode, 2, 2, 65, 65, 16, dtype="float32", threads=0)
    yield Case(FORWARD, 1, 4, 48, 48, 64, dtype="bfloat16", threads=0)
    yield Case(DECODE, 2, 4, 1, 97, 32, dtype="float16", threads=0)


CASES = {"gpu": gpu_cases, "rehearsal": rehearsal_cases}


def label(case: Case) -> str:
    return case.name.rsplit("t", 1)[0]


def work(case: Case) -> float:
    """Floating-point operations; in training of the backward alone, 5 of 7 products."""
    return case.flops * 5 / 7 if case.mode == TRAINING else case.flops


def relative_errors(truth: Truth, outputs: dict[str, Any]) -> dict[str, float]:
    errors = {}
    for name, want in truth.values.items():
        got = outputs[name][0, truth.heads].astype(np.float64)
        got = got[:, truth.rows] if name == "out" else got
        errors[name] = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return errors


def verdict(case: Case, truth: Truth, outputs: dict[str, Any]) -> tuple[str, str]:
    """(status, largest error)"""
    missing = [name for name in truth.values if name not in outputs]
    if missing:
        return f"did not return {', '.join(missing)}", ""
    errors = relative_errors(truth, outputs)
    name = max(errors, key=lambda n: errors[n] if errors[n] == errors[n] else np.inf)
    if not errors[name] <= LIMITS[case.dtype]:
        return f"wrong result: {name} is off by {errors[name]:.1e} of its norm", ""
    return "ok", f"{errors[name]:.1e}"


class Draws:
    """Inputs of cases, drawn once: all cases of a dtype look at the same numbers."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Any] = {}
        self._random = np.random.default_rng(0)

    def inputs(self, case: Case) -> dict[str, Any]:
        lengths = {"q": case.queries, "k": case.keys, "v": case.keys, "dout": case.queries}
        return {name: self._draw(case, name, length) for name, length in lengths.items()}

    def _draw(self, case: Case, name: str, length: int) -> Any:
        shape = (case.batch, case.heads, length, case.head_dim)
        size, key = int(np.prod(shape)), (name, case.dtype)
        if key not in self._known or self._known[key].size < size:
            fresh = self._random.standard_normal(size, dtype=np.float32)
            self._known[key] = round_to(fresh, case.dtype)
        return self._known[key][:size].reshape(shape)


class Timer:
    """How one sample is taken: between CUDA events, or by the host's clock."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        if self.cuda:
            import torch

            self.torch = torch
            self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def synchronize(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def clock(self, prepared: Prepared) -> str:
        return getattr(prepared, "clock", "host") if self.cuda else "host"

    def start(self, prepared: Prepared) -> Callable[[], float]:
        """Runs one call; the seconds it took, once everything is synchronised."""
        if self.cuda:
            self.flush.zero_()
        if self.clock(prepared) == "events":
            self.torch.cuda._sleep(SPIN_CYCLES)
            first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            prepared.run()
            last.record()
            return lambda: float(first.elapsed_time(last)) / 1e3
        self.synchronize()
        begin = time.perf_counter()
        prepared.run()
        seconds = time.perf_counter() - begin
        return lambda: seconds


def interleave(
    ready: dict[str, Prepared], timer: Timer, rounds: int, seconds: float
) -> dict[str, measure.Timing]:
    """At least 3 rounds, at most `rounds`, as many as fit into `seconds`."""
    samples: dict[str, list[float]] = {name: [] for name in ready}
    end = time.monotonic() + seconds
    for i in range(rounds):
        taken = {name: timer.start(prepared) for name, prepared in ready.items()}
        timer.synchronize()
        for name, read in taken.items():
            samples[name].append(read())
        if i >= 2 and time.monotonic() > end:
            break
    return {name: measure.Timing.of(values) for name, values in samples.items()}


def sm_clock() -> str:
    """MHz right now, of the first GPU; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _row(case: Case, provider: Provider, **found: str) -> list[str]:
    values = {
        "case": label(case),
        "provider": provider.name,
        "note": provider.note,
        "version": provider.version if provider.kind == "peer" else "",
        **{name: str(getattr(case, name)) for name in COLUMNS[2:10]},
        **found,
    }
    return [values.get(name, "") for name in COLUMNS]


def _times(case: Case, clock: str, timing: measure.Timing) -> dict[str, str]:
    cache = f"{case.cache_bytes / timing.median / 1e9:.4g}" if case.mode == DECODE else ""
    return {
        "median_ms": f"{timing.median * 1e3:.4f}",
        "p20_ms": f"{timing.p20 * 1e3:.4f}",
        "p80_ms": f"{timing.p80 * 1e3:.4f}",
        "samples": str(timing.samples),
        "tflops": f"{work(case) / timing.median / 1e12:.4g}",
        "gb_per_s": cache,
        "clock": clock,
    }


def first_line(error: BaseException) -> str:
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return words[:300]


def check(
    case: Case, provider: Provider, inputs: dict[str, Any], truth: Truth
) -> tuple[Prepared | None, str, str]:
    """(what can be timed, status, error)"""
    reasons = provider.reasons_against(case)
    if reasons:
        return None, "; ".join(reasons), ""
    try:
        prepared = provider.prepare(case, inputs)
        status, error = verdict(case, truth, prepared.outputs())
    except Exception as error:  # a peer that fails is a row, not the end of the run
        return None, first_line(error), ""
    return (prepared if status == "ok" else None), status, error


def measure_case(
    case: Case, inputs: dict[str, Any], providers: list[Provider], rows: Rows, options: Any
) -> bool:
    """Adds the rows of a case; False when the GPU needs a new process."""
    todo = [p for p in providers if not rows.has((label(case), p.name))]
    timer = Timer(options.device)
    truth = DeviceTruth(case, inputs, options.device) if timer.cuda else Truth(case, inputs)
    ready: dict[str, Prepared] = {}
    found: dict[str, dict[str, str]] = {}
    for provider in todo:
        print(f"{label(case)} | {provider.name}", flush=True)  # names what a crash interrupted
        prepared, status, error = check(case, provider, inputs, truth)
        found[provider.name] = {"status": status, "error": error}
        try:
            if prepared is not None:
                timer.start(prepared)  # warms up
                ready[provider.name] = prepared
            timer.synchronize()
        except RuntimeError as failure:  # a broken GPU context outlives the call that broke it
            rows.add(_row(case, provider, status=first_line(failure)))
            return False
    for name, timing in interleave(ready, timer, options.rounds, options.per_case).items():
        found[name] |= {**_times(case, timer.clock(ready[name]), timing), "sm_mhz": sm_clock()}
    for provider in todo:
        rows.add(_row(case, provider, **found[provider.name]))
        print(f"  {provider.name}: {found[provider.name]}", flush=True)
    return True


def compile_peers(cases: list[Case], device: str, seconds: float) -> None:
    """Runs the peers that compile themselves once, on zeros: their caches lie on disk, so that the
    time they take is not taken from the measurement."""
    end = time.monotonic() + seconds
    for case in cases:
        for provider in peers.providers(device):
            if time.monotonic() > end or not provider.name.startswith(peers.COMPILED):
                continue
            lengths = {"q": case.queries, "k": case.keys, "v": case.keys, "dout": case.queries}
            inputs = {
                name: np.zeros((case.batch, case.heads, length, case.head_dim), np.float32)
                for name, length in lengths.items()
            }
            try:
                if not provider.reasons_against(case):
                    provider.prepare(case, inputs).run()
            except Exception as error:  # it will have a row that says so
                print(f"{label(case)} | {provider.name}: {first_line(error)}", flush=True)
        peers.forget()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--device", default="host", help="host, cpu (PyTorch) or cuda")
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--cases", choices=CASES, default="gpu")
    parser.add_argument("--first", type=int, default=10**6, help="only the first N cases")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--per-case", type=float, default=2.0, help="seconds of samples")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--compile", help="K/N: only let peers compile, for cases K, K + N, ...")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    device = "cpu" if options.device == "host" else options.device
    if options.compile:
        first, step = map(int, options.compile.split("/"))
        compile_peers(list(CASES[options.cases]())[first::step], device, options.seconds)
        return 0
    rows, draws = Rows(options.csv, COLUMNS, keys=2), Draws()
    place = memory_on(options.device, own_stream=False)
    providers = ours.providers(options.library, place) + peers.providers(device)
    longest = 0.0
    for case in list(CASES[options.cases]())[: options.first]:
        if all(rows.has((label(case), p.name)) for p in providers):
            continue
        begin = time.monotonic()
        if begin + longest > end:
            print("time is up; run again to go on")
            break
        if not measure_case(case, draws.inputs(case), providers, rows, options):
            return 3
        peers.forget()
        longest = max(longest, time.monotonic() - begin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
