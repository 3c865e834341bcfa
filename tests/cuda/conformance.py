"""What single instructions do: on a GPU, on the CPU model, and by arithmetic.

    python -m tests.cuda.conformance FOLDER     on a GPU: records FOLDER/sm80.json, and sm90.json

tests/cuda/conformance/*.cu print what went in and what came out. What a GPU printed is committed as
tests/data/cuda_conformance/<name>.json; the model must print the same (sm80). What the tensor cores
and the copy engine of Hopper must print is arithmetic, and computed here (sm90): both a GPU and the
model are held to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.cases import NUMPY_DTYPES
from tests.cuda.model import FLAGS, MODEL, ROOT

SOURCES = MODEL / "conformance"
BUILD = ROOT / "build" / "conformance"
GOLDEN = ROOT / "tests" / "data" / "cuda_conformance"
SM90_HEADER = ROOT / "csrc" / "cuda" / "sm90" / "device.cuh"
SM90_MODEL = MODEL / "simt" / "hopper_device.h"
THREADS = 128  # of the sm90 probes, but for barrier_phases and registers

# What the CPU model does in place of an instruction, and the probes that show what a GPU does.
# Tests hold these names to be those of the model, of the wrappers in device.cuh, and of what the
# kernels call. Nothing that the kernels leave alone (stmatrix, stores of boxes) is in the model.
INSTRUCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "sm80": {
        "__syncthreads": ("async_copies",),
        "__syncthreads_and": ("votes",),
        "__syncwarp": ("warp_barrier",),
        "__all_sync": ("votes",),
        "__shfl_sync": ("shuffles",),
        "__shfl_xor_sync": ("shuffles",),
        "atomicMax": ("atomic_maximum",),
        "shared_base": ("shared_vectors",),
        "load_shared": ("shared_vectors",),
        "store_shared": ("shared_vectors",),
        "copy_async": ("async_copies",),
        "copy_commit": ("async_copies",),
        "copy_wait": ("async_copies",),
        "load_matrices": ("matrices", "matrices_transposed"),
        "multiply_16816": (
            *("product_float16_exact", "product_float16"),
            *("product_bfloat16_exact", "product_bfloat16"),
        ),
        "exp2_fast": ("powers_of_two",),
        "to_float": ("rounding_float16", "rounding_bfloat16"),
        "from_float": ("rounding_float16", "rounding_bfloat16"),
        "pack": ("rounding_float16", "rounding_bfloat16"),
        "unpack": ("rounding_float16", "rounding_bfloat16"),
    },
    "sm90": {
        "barrier_init": ("box", "barrier_phases"),
        "barrier_init_fence": ("box", "barrier_phases"),
        "barrier_arrive": ("barrier_phases",),
        "barrier_arrive_expect": ("box",),
        "barrier_wait": ("box",),
        "named_sync": ("named_barriers",),
        "named_arrive": ("named_barriers",),
        "copy_box": ("box",),
        "store_shared_zeros": ("zeros",),
        "store_shared": ("runs", "additions"),
        "fence_async_proxy": ("box", "rows_float16", "runs"),
        "copy_run": ("runs", "flags"),
        "store_run": ("runs", "flags"),
        "add_run": ("additions", "subnormals", "flags"),
        "runs_commit": ("runs", "additions", "flags"),
        "runs_wait_read": ("runs", "additions"),
        "runs_wait": ("additions", "flags"),
        "load_acquire": ("flags",),
        "store_release": ("flags",),
        "fence_async_proxy_global": ("additions", "flags"),
        "take_ticket": ("flags",),
        "add_float": ("single_additions",),
        "release_registers": ("registers",),
        "acquire_registers": ("registers",),
        "products_fence": ("rows_float16",),
        "products_commit": ("rows_float16",),
        "products_wait": ("rows_float16",),
        "matrix_descriptor": ("rows_float16", "columns_float16", "held_float16"),
        "multiply_shared": (
            *("rows_float16", "rows_bfloat16", "columns_float16", "columns_bfloat16"),
            *("mixed_float16", "mixed_bfloat16", "wide_float16", "wide_bfloat16"),
        ),
        "multiply_held": ("held_float16", "held_bfloat16"),
    },
}
NO_PROBE = {
    "on_turing": "what the code was compiled for",
    "wrong_gpu": "ends a kernel that was launched by mistake",
    "prefetch_map": "a hint: no result depends on it",
    "pin_registers": "for the compiler: no instruction",
    "compute_anew": "for the compiler: no instruction",
    "barrier_try_wait": "the model waits in barrier_wait; barrier_phases asks it on a GPU",
}

Probe = dict[str, str]
Document = dict[str, Any]  # {"platform", "probes": {name: {"compare", "in", "out"}}}


def build_model(name: str) -> Path:
    """sm80.cu or sm90.cu on the CPU model; built once per content of the sources."""
    digest = hashlib.sha256(name.encode())
    for folder in (ROOT / "csrc" / "cuda", MODEL / "simt", SOURCES):
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(path.read_bytes())
    program = BUILD / f"model-{digest.hexdigest()[:16]}"
    if program.exists():
        return program
    BUILD.mkdir(parents=True, exist_ok=True)
    simt = [p for p in sorted((MODEL / "simt").glob("*.cc")) if not p.name.startswith("selftest")]
    includes = [f"-I{ROOT / 'csrc'}", f"-I{SOURCES}"]
    command = ["g++", "-x", "c++", *FLAGS, *includes, str(SOURCES / f"{name}.cu"), *map(str, simt)]
    part = f"{program}.{os.getpid()}"
    subprocess.run([*command, "-o", part], check=True)
    os.replace(part, program)
    return program


def build_cuda(name: str, architecture: str, folder: Path, nvcc: str = "nvcc") -> Path:
    """sm80.cu or sm90.cu with nvcc; a warning is an error, and so is a spilled register."""
    program = folder / f"conformance_{name}_{architecture}"
    flags = ["-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-Werror=all-warnings"]
    flags += ["-Xcompiler=-Wall,-Wextra,-Werror", "-Xptxas=--warn-on-spills,--warning-as-error"]
    flags += ["-DALIBI_NO_BFLOAT16"] if architecture == "75" else []
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, *flags, target, str(SOURCES / f"{name}.cu"), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def run(program: Path, *arguments: str) -> Document:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{program.name}: {done.stderr.strip()}")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def words(text: str) -> Any:
    return np.array([int(word, 16) for word in text.split()], np.uint32)


# ---- comparison

# Rounding of ex2.approx (the manual: 2 units in the last place) and of sums inside a tensor core
# (each product of 16 is cut, not rounded, at the size of the largest).
RELATIVE = 2.0**-21
SUM = 2.0**-19


def _close(got: Any, golden: Any, kind: str) -> Any:
    same = got == golden
    if kind == "exact":
        return same
    with np.errstate(invalid="ignore"):
        x, y = (a.view(np.float32).astype(np.float64) for a in (got, golden))
        bound = RELATIVE * np.abs(y) if kind == "relative" else SUM * np.abs(y).max(initial=0)
        return same | (np.abs(x - y) <= bound)


def differences(got: Document, golden: Document) -> list[str]:
    """What `got` does otherwise than `golden`; empty when they agree."""
    found = []
    for name, want in golden["probes"].items():
        have = got["probes"].get(name)
        if have is None:
            found.append(f"{name}: missing")
        elif have["in"] != want["in"] or have["compare"] != want["compare"]:
            found.append(f"{name}: recorded with other inputs; record it again on a GPU")
        elif (count := len(have["out"].split())) != len(want["out"].split()):
            found.append(f"{name}: {count} words came out, {len(want['out'].split())} recorded")
        else:
            x, y = words(have["out"]), words(want["out"])
            wrong = np.flatnonzero(~_close(x, y, want["compare"]))
            if wrong.size:
                i = wrong[0]
                found.append(
                    f"{name}: {wrong.size} of {x.size} words differ, the first is word {i}: "
                    f"{x[i]:08x}, recorded {y[i]:08x}"
                )
    found += [f"{name}: not recorded" for name in got["probes"] if name not in golden["probes"]]
    return found


# ---- what the sm90 probes must print


def _matrices(probe: Probe, dtype: str, *rows: int) -> list[Any]:
    """The input as matrices of 64 columns, one after the other."""
    every = words(probe["in"]).view(np.uint16).view(NUMPY_DTYPES[dtype]).astype(np.float32)
    every = every.reshape(-1, 64)
    ends = np.cumsum(rows)
    return [every[end - n : end] for n, end in zip(rows, ends, strict=True)]


def _accumulators(d: Any) -> Any:
    """[64, N] as the threads of a warpgroup hold it, element e of tile t in word 4 t + e."""
    thread = np.arange(THREADS)
    t, e = (x.ravel()[:, None] for x in np.mgrid[: d.shape[1] // 8, :4])
    row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (e // 2)
    return d[row, 8 * t + 2 * (thread % 4) + e % 2].astype(np.float32).view(np.uint32).ravel()


def _rows(probe: Probe, dtype: str) -> Any:
    a, b = _matrices(probe, dtype, 64, 64)
    return _accumulators(a @ b.T)


def _columns(probe: Probe, dtype: str) -> Any:
    a, b = _matrices(probe, dtype, 64, 64)
    return _accumulators(a.T @ b)


def _held(probe: Probe, dtype: str) -> Any:
    a, left, right = _matrices(probe, dtype, 64, 64, 64)
    return _accumulators(a @ np.concatenate([left, right], axis=1))


def _wide(probe: Probe, dtype: str) -> Any:
    a, left, right = _matrices(probe, dtype, 64, 64, 64)
    return _accumulators(a.T @ np.concatenate([left, right], axis=1))


def _terms(probe: Probe) -> Any:
    """The words as integers, rounded to float32: one row of THREADS per word of a thread."""
    return words(probe["in"]).view(np.int32).astype(np.float32).reshape(-1, THREADS)


def _sums(terms: Any) -> Any:
    """Of the rows, one after another, rounded each time."""
    sums = terms[0]
    for row in terms[1:]:
        sums = sums + row
    return sums.view(np.uint32)


def _runs(probe: Probe, _: str) -> Any:
    """Neighbours exchanged, and the two halves."""
    return np.roll(words(probe["in"])[np.arange(THREADS) ^ 1], THREADS // 2)


def _additions(probe: Probe, _: str) -> Any:
    return _sums(_terms(probe))


def _subnormals(probe: Probe, _: str) -> Any:
    """Sums below the normal range are kept (by an H200; the manual says that they become zeros)."""
    x, y = (words(probe["in"]) & 0x80FFFFFF).view(np.float32).reshape(2, THREADS)
    return (x + y).view(np.uint32)


def _flags(probe: Probe, _: str) -> Any:
    """Eight times the sums over blocks, the columns moved on by 17; three times the same."""
    terms = _terms(probe)
    return np.tile(np.concatenate([_sums(np.roll(terms, -17 * i, 1)) for i in range(8)]), 3)


def _box(probe: Probe, _: str) -> Any:
    """16 rows of 64 columns from row 8, column 64 of [20, 80]; zeros outside; swizzled."""
    tensor = words(probe["in"]).view(np.uint16)[: 20 * 80].reshape(20, 80)
    box = np.zeros((16, 8, 8), np.uint16)  # row, piece of 16 bytes, element
    box.reshape(16, 64)[:12, :16] = tensor[8:, 64:]
    r, p = np.mgrid[:16, :8]
    swizzled = np.empty_like(box)
    swizzled[r, p ^ (r % 8)] = box
    return swizzled.ravel().view(np.uint32)


def _phases(probe: Probe, _: str) -> Any:
    """(parity 0 has ended, parity 1 has ended) at the start and after 1, 2 and 4 arrivals of 2."""
    out = np.full(len(probe["in"].split()), 0xDEADBEEF, np.uint32)
    out[:8] = [0, 1, 0, 1, 1, 0, 0, 1]
    return out


def _named(probe: Probe, _: str) -> Any:
    return words(probe["in"])[np.arange(THREADS) ^ 64]


def _zeros(probe: Probe, _: str) -> Any:
    """Piece by piece, with thread t reading that of t + 1."""
    pieces = words(probe["in"]).reshape(4, THREADS).copy()
    pieces[:, ::3] = 0
    return np.roll(pieces, -1, axis=1).ravel()


def _registers(probe: Probe, _: str) -> Any:
    return words(probe["in"])


_SM90: dict[str, Callable[[Probe, str], Any]] = {
    "rows": _rows,
    "columns": _columns,
    "held": _held,
    "mixed": _held,
    "wide": _wide,
    "runs": _runs,
    "additions": _additions,
    "single": _additions,
    "subnormals": _subnormals,
    "flags": _flags,
    "box": _box,
    "barrier": _phases,
    "named": _named,
    "zeros": _zeros,
    "registers": _registers,
}


def arithmetic(document: Document) -> Document:
    """The same sm90 probes with the results that they must have."""
    probes = {}
    for name, probe in document["probes"].items():
        kind, _, dtype = name.partition("_")
        out = _SM90[kind](probe, dtype)
        probes[name] = {**probe, "out": " ".join(f"{word:08x}" for word in out)}
    return {"platform": "arithmetic", "probes": probes}


# ---- recording


def record(folder: Path, capability: str) -> dict[str, list[str]]:
    """Runs what a GPU of this capability can run, into `folder`; per program what differs: the
    model's sm80 from the GPU's, which is what is recorded, and the GPU's sm90 from arithmetic.
    Without one ("") the model takes the GPU's place: a rehearsal, which is no golden data."""
    for path in (folder, BUILD):
        path.mkdir(parents=True, exist_ok=True)
    model = run(build_model("sm80"))
    found = {"sm80": run(build_cuda("sm80", capability, BUILD)) if capability else model}
    verdicts = {"sm80": differences(model, found["sm80"])}
    if capability == "90" and SM90_HEADER.exists():
        found["sm90"] = run(build_cuda("sm90", "90a", BUILD))
        verdicts["sm90"] = differences(found["sm90"], arithmetic(found["sm90"]))
    for name, document in found.items():
        text = json.dumps(document, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(text + "\n")
    return verdicts


def capability_of_the_gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    folder, rehearsal = Path(sys.argv[1]), "--model" in sys.argv
    if not rehearsal and not (shutil.which("nvcc") and shutil.which("nvidia-smi")):
        print("needs nvcc, nvidia-smi and a GPU; --model rehearses without", file=sys.stderr)
        return 2
    capability = "" if rehearsal else capability_of_the_gpu().replace(".", "")
    verdicts = record(folder, capability)
    for name, found in verdicts.items():
        print(f"{name}: {'agrees' if not found else 'DIFFERS'}", *found, sep="\n  ")
    return int(any(verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
