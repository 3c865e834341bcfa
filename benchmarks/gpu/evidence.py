"""Everything that a GPU can show about the CUDA library, in one command; see run_h200.sh.

    python -m benchmarks.gpu.evidence OUT --minutes 10     on a machine with a GPU and nvcc
    python -m benchmarks.gpu.evidence OUT --rehearse       the same steps on the CPU library

Steps are in order of value and each has a share of the time, so that a short slot yields the most
important rows; the same command again goes on where the last one stopped. What crashes or hangs
costs one row. The exit status says whether a check or a sanitizer found fault. OUT gets
machine.json, correctness.csv, sanitizer.csv, timing.csv, counters.csv, sm80.json and sm90.json
(recorded instructions), and log.txt, which ends with a summary.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.gpu import correctness, counters, machine, summary, timing
from benchmarks.gpu.aot import ROOT
from benchmarks.gpu.rows import Rows, read

CPU_LIBRARY = ROOT / "alibi_kernels" / "_lib" / "libalibi_cpu.so"
BUILD = ROOT / "build" / "gpu"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_COLUMNS = ("tool", "status", "detail", "seconds")
UNFINISHED = "not finished"
TOOL_SECONDS = 240.0  # a sanitizer that was given less and did not finish is tried again
RESTART = 3  # exit status of a worker whose GPU context is broken
MAX_RESTARTS = 8
COMPILERS = 4  # processes in which peers compile
GRACE = 60.0  # seconds that a worker may need to finish the row it is at
LAST_GRACE = 10.0  # the same when the slot is over


@dataclass
class Run:
    out: Path
    end: float  # time.monotonic() at which the slot is over
    library: Path
    device: str
    rehearse: bool

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def log(self, text: str) -> None:
        print(text, flush=True)
        with (self.out / "log.txt").open("a") as file:
            file.write(text.rstrip() + "\n")


def run_process(
    command: list[str], seconds: float, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """(exit status, output); no status when it had to be ended after `seconds`."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(seconds, 1.0))
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output


@dataclass(frozen=True)
class Keys:
    """The columns of a worker's table, and the key of the row that a line of its output names."""

    columns: tuple[str, ...]
    parse: Callable[[str], list[str] | None]


def interrupted(output: str, known: Callable[[str], list[str] | None]) -> list[str] | None:
    """The key of the row that a worker was at when it died: of the last line that names one."""
    keys = (known(line) for line in reversed(output.splitlines()))
    return next((key for key in keys if key is not None), None)


def work(run: Run, name: str, options: list[str], seconds: float, keys: Keys) -> None:
    """Runs a module of this package until it is done, replacing it when it dies."""
    end = min(time.monotonic() + seconds, run.end)
    csv = run.out / f"{name}.csv"
    every = ["--library", str(run.library), "--device", run.device, "--csv", str(csv), *options]
    for _ in range(MAX_RESTARTS):
        left = end - time.monotonic()
        if left <= 0:
            return
        module = [
            sys.executable,
            "-m",
            f"benchmarks.gpu.{name}",
            *every,
            "--seconds",
            f"{left:.0f}",
        ]
        # Rows are on disk as they come: what the end of the slot cuts off is measured next time.
        status, output = run_process(module, min(left + GRACE, run.left + LAST_GRACE))
        if status is None and run.left <= 0:
            run.log(f"== {name}: the slot ended\n{output}")
            return
        run.log(f"== {name} {' '.join(options)}: exit status {status}\n{output}")
        if status == 0:
            return
        if status != RESTART:
            died = f"crashed: exit status {status}" if status is not None else "hung; it was ended"
            key = interrupted(output, keys.parse)
            if key is None:
                return  # it never began: the log says why
            table = Rows(csv, keys.columns, len(key))
            if table.has(key):
                return
            fields = dict(zip(keys.columns, key, strict=False)) | {"status": died}
            table.add([fields.get(column, "") for column in keys.columns])


def _correctness_key(line: str) -> list[str] | None:
    names = {" ".join(check.key): list(check.key) for check in correctness.checks()}
    return names.get(line.strip())


def _timing_key(line: str) -> list[str] | None:
    parts = line.strip().split(" | ")
    return parts if len(parts) == 2 else None


CORRECTNESS = Keys(correctness.COLUMNS, _correctness_key)
TIMING = Keys(timing.COLUMNS, _timing_key)


# ---- the steps


def check_correctness(run: Run, seconds: float) -> None:
    options = ["--set", "quick" if run.rehearse else "all"]
    work(run, "correctness", options, seconds, CORRECTNESS)


def compile_peers(run: Run, seconds: float) -> None:
    """Peers that compile themselves do so beside the checks, in processes of their own."""
    if run.rehearse or (run.out / "timing.csv").exists():
        return
    module = [sys.executable, "-m", "benchmarks.gpu.timing", "--device", run.device]
    paths = ["--library", str(run.library), "--csv", "/dev/null", "--seconds", f"{seconds / 2:.0f}"]

    def one(k: int) -> None:
        command = [*module, *paths, "--compile", f"{k}/{COMPILERS}"]
        status, output = run_process(command, seconds)
        run.log(f"== compile {k}/{COMPILERS}: exit status {status}\n{output[-1000:]}")

    beside(*(partial(one, k) for k in range(COMPILERS)))


def check_everything(run: Run, seconds: float) -> None:
    """What is not timed runs side by side."""
    steps = (check_correctness, record_instructions, sanitize, compile_peers)
    beside(*(partial(step, run, seconds) for step in steps))


def beside(*calls: Callable[[], None]) -> None:
    with ThreadPoolExecutor(max(len(calls), 1)) as pool:
        for done in [pool.submit(call) for call in calls]:
            done.result()


def time_first(run: Run, seconds: float) -> None:
    time_cases(run, seconds, ["--first", "6"])


def time_cases(run: Run, seconds: float, more: list[str] | None = None) -> None:
    few = ["--cases", "rehearsal", "--rounds", "3"] if run.rehearse else []
    work(run, "timing", [*few, *(more or [])], seconds, TIMING)


def record_instructions(run: Run, seconds: float) -> None:
    if (run.out / "sm80.json").exists():
        return
    more = ["--model"] if run.rehearse else []
    command = [sys.executable, "-m", "tests.cuda.conformance", str(run.out), *more]
    status, output = run_process(command, seconds)
    run.log(f"== conformance: exit status {status}\n{output}")


def sanitize(run: Run, seconds: float) -> None:
    """Each tool on small shapes; arrays have allocations of their own, and no guards."""
    table = Rows(run.out / "sanitizer.csv", SANITIZER_COLUMNS, keys=1)
    path = shutil.which("compute-sanitizer")
    share = min(seconds, run.left)

    def one(tool: str) -> None:
        if path is None:
            table.add((tool, "not run", "compute-sanitizer was not found", ""))
            return
        begin = time.monotonic()
        status, detail = _sanitize_with(run, path, tool, share)
        if status == UNFINISHED and share < TOOL_SECONDS:
            run.log(f"{tool} needs more than {share:.0f} s; run again to go on")
            return
        table.add((tool, status, detail, f"{time.monotonic() - begin:.0f}"))

    waiting = [tool for tool in SANITIZERS if not table.has((tool,))]
    beside(*(partial(one, tool) for tool in waiting))


def count(run: Run, seconds: float) -> None:
    """Nsight Compute on our kernels, at the shapes of the targets."""
    table = Rows(run.out / "counters.csv", counters.COLUMNS, keys=1)
    ncu = shutil.which("ncu")
    end = time.monotonic() + seconds
    for case in map(timing.label, counters.cases(run.rehearse)):
        if table.has((case,)):
            continue
        if ncu is None:
            table.add((case, "", "", "", "", "ncu was not found"))
            continue
        command = counters.command(ncu, run.library, run.device, case)
        status, output = run_process(command, min(end, run.end) - time.monotonic())
        run.log(f"== ncu {case}: exit status {status}\n{output[-2000:]}")
        found = list(counters.numbers(case, output))
        if status is None:
            return
        for row in found or [(case, "", "", "", "", f"nothing counted: exit status {status}")]:
            table.add(row)


def _sanitize_with(run: Run, path: str, tool: str, seconds: float) -> tuple[str, str]:
    scratch = BUILD / "sanitizer" / f"{tool}-{os.getpid()}.csv"
    scratch.unlink(missing_ok=True)
    python = [sys.executable, "-m", "benchmarks.gpu.correctness", "--bare", "--set", "sanitizer"]
    options = ["--library", str(run.library), "--device", run.device, "--csv", str(scratch)]
    command = [path, "--tool", tool, "--error-exitcode", "99", *python, *options]
    own_allocations = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    status, output = run_process(command, seconds, own_allocations)
    run.log(f"== compute-sanitizer {tool}: exit status {status}\n{output[-6000:]}")
    done = read(scratch)
    wrong = [row["check"] for row in done if row["status"] != "ok"]
    summaries = [line.strip("= ") for line in output.splitlines() if "SUMMARY:" in line]
    told = "; ".join([f"{len(done)} checks", *summaries, *(f"{name} is wrong" for name in wrong)])
    if status is None:
        return UNFINISHED, told
    return ("ok" if status == 0 and not wrong and summaries else "failed"), told


# Each step, and the most of the slot that it may take the first time round. Twice through the list:
# what a step could not finish in its share is done when the others have had theirs.
STEPS: tuple[tuple[Callable[[Run, float], None], float], ...] = (
    (check_everything, 0.35),
    (time_first, 0.3),
    (count, 0.15),
    (time_cases, 0.5),
)


# Where peers keep what they compiled, and with how many processes PyTorch compiles.
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "JAX_COMPILATION_CACHE_DIR": "jax"}
COMPILE_PROCESSES = {"TORCHINDUCTOR_COMPILE_THREADS": "4"}


def build(run: Run) -> None:
    """libalibi_cuda.so, as a user would build it, into build/gpu."""
    begin = time.monotonic()
    source = [f"-DALIBI_OUTPUT_DIR={BUILD / 'package'}", "-DALIBI_WITH_CUDA=ON"]
    only = ["-DALIBI_WITH_CPU=OFF", "-DALIBI_WITH_PYTHON=OFF", "-DALIBI_WERROR=ON"]
    cmake = shutil.which("cmake")
    if cmake is None or shutil.which("nvcc") is None:
        raise SystemExit("the build needs cmake and nvcc on the PATH")
    for command in (
        [cmake, "-S", ".", "-B", str(BUILD), *source, *only],
        [cmake, "--build", str(BUILD), "--parallel", str(os.cpu_count())],
    ):
        status, output = run_process(command, run.left)
        run.log(f"== {' '.join(command)}: exit status {status}\n{output[-4000:]}")
        if status != 0:
            raise SystemExit("the CUDA library could not be built: see log.txt")
    run.log(f"built in {time.monotonic() - begin:.0f} s")


def need_gpu() -> None:
    usable = "import torch; assert torch.cuda.is_available(), 'it sees no GPU'"
    status, output = run_process([sys.executable, "-c", usable], 120)
    if status != 0:
        words = (output.strip().splitlines() or ["no answer"])[-1]
        raise SystemExit(
            f"PyTorch cannot use a GPU here ({words}); --rehearse runs the same steps on the CPU"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rehearse", action="store_true", help="the CPU library, on the host")
    parser.add_argument("--device", help="for a rehearsal: host (default) or cpu (PyTorch)")
    parser.add_argument("--commit", default="", help="where there is no git")
    parser.add_argument("--library", type=Path, help="built elsewhere, from these sources")
    options = parser.parse_args()
    os.environ.update({name: str(BUILD / folder) for name, folder in CACHES.items()})
    os.environ.update(COMPILE_PROCESSES)
    built = BUILD / "package" / "_lib" / "libalibi_cuda.so"
    library = options.library or (CPU_LIBRARY if options.rehearse else built)
    device = options.device or ("host" if options.rehearse else "cuda")
    end = time.monotonic() + 60 * options.minutes
    run = Run(options.out.resolve(), end, library, device, options.rehearse)
    if not options.rehearse:
        need_gpu()
    facts = machine.write(run.out, options.commit)
    run.log(f"== {facts}")
    if not options.rehearse and options.library is None:
        build(run)
    elif not library.exists():
        raise SystemExit(f"there is no library {library}; `make build` builds that of a rehearsal")
    whole = run.left
    for repeat in (False, True):
        for step, share in STEPS:
            if run.left > 5:
                step(run, run.left if repeat else min(share * whole, run.left))
    run.log(f"== summary\n{summary.of(run.out)}")
    return int(summary.found_fault(run.out))


if __name__ == "__main__":
    sys.exit(main())
