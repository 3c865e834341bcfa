"""The CUDA kernels on the CPU: builds their unchanged sources with tests/cuda/simt and calls them.

Every array lies in memory of its own that ends at a page which must not be touched, and outputs
start as NaN, so that a kernel which reads or writes too far, or too little, cannot pass.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.cases import NUMPY_DTYPES, Case, Inputs
from tests.cuda.capi import CTensor, Library, Problem, tensor

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "cuda"
FLAGS = (
    *("-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-psabi"),
    *("-DALIBI_CPU_MODEL", f"-I{MODEL}"),
)
# From how many keys on the Hopper forward kernel prunes: fewer than in the released library, which
# test_hopper.py builds, so that small problems show it.
PRUNED = "-DALIBI_HOPPER_DENSE_KEYS=64"
# What a quick build instantiates: one head size per row width that the swizzle treats differently.
QUICK = ("-DALIBI_HEAD_DIMS_16=32,64,96,128", "-DALIBI_HEAD_DIMS_32=32,64,128", PRUNED)
WIDE = ("-DALIBI_HEAD_DIMS_16=256", "-DALIBI_HEAD_DIMS_32=256")
# The model itself.
MACHINE = ("machine.cc", "races.cc", "hopper.cc", "products.cc", "runs.cc", "control.cc")


def sources(csrc: Path) -> list[Path]:
    return [*sorted((csrc / "cuda").rglob("*.cu")), *(MODEL / "simt" / name for name in MACHINE)]


def _object(source: Path) -> str:
    return f"{source.parent.name}-{source.name}.o"


def _digest(csrc: Path, flags: Sequence[str]) -> str:
    digest = hashlib.sha256(repr((FLAGS, tuple(flags))).encode())
    for folder in (csrc, MODEL / "simt"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".cu", ".cuh", ".h", ".cc"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _compile(source: Path, target: Path, csrc: Path, flags: Sequence[str]) -> None:
    command = ["g++", "-x", "c++", *FLAGS, *flags, f"-I{csrc}", "-c", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)


def _link(objects: Sequence[Path], library: Path, flags: Sequence[str]) -> None:
    part = f"{library}.part"
    subprocess.run(["g++", "-shared", *flags, *map(str, objects), "-o", part], check=True)
    os.replace(part, library)


def build(flags: Sequence[str] = ()) -> Path:
    """The model library; built once per content of the sources."""
    csrc = ROOT / "csrc"
    folder = ROOT / "build" / "cuda-model" / _digest(csrc, flags)
    library = folder / "libalibi_cuda_model.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    objects = {source: folder / _object(source) for source in sources(csrc)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: _compile(source, objects[source], csrc, flags), objects))
    _link(list(objects.values()), library, flags)
    return library


def build_with_operators(flags: Sequence[str] = ()) -> Path:
    """The model library with the operators that MindSpore calls: the bridge is linked to it."""
    base = build(flags).parent
    library = base / "libalibi_cuda_model_operators.so"
    if not library.exists():
        objects = sorted(base.glob("*.o"))
        bridge = base / "bridge.o"
        old_strings = "-D_GLIBCXX_USE_CXX11_ABI=0"  # see csrc/aot/aot_extra.h
        source = ROOT / "csrc" / "aot" / "bridge.cc"
        _compile(source, bridge, ROOT / "csrc", [*flags, old_strings])
        _link([*(x for x in objects if x != bridge), bridge], library, flags)
    return library


def build_variant(
    csrc: Path, changed: str, flags: Sequence[str], folder: Path, more: Sequence[str] = ()
) -> Path:
    """The library with the one source file `changed`, as in "sm80/forward.cu", compiled from
    another csrc/, or with more flags."""
    base = build(flags).parent
    objects = [base / _object(source) for source in sources(ROOT / "csrc")]
    source = csrc / "cuda" / changed
    variant = folder / _object(source)
    _compile(source, variant, csrc, [*flags, *more, "-w"])
    library = folder / "libalibi_cuda_model.so"
    # First: of an inline function that several objects hold, the linker takes the first copy.
    others = [path for path in objects if path.name != variant.name]
    _link([variant, *others], library, flags)
    return library


class Model(Library):
    """The model library with NumPy arrays in and out."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.c.simt_allocate.restype = ctypes.c_void_p
        self.c.simt_allocate.argtypes = [ctypes.c_size_t]
        self.c.simt_release.argtypes = [ctypes.c_void_p]
        self.c.simt_configure.argtypes = [ctypes.c_uint64, *[ctypes.c_int] * 5]
        self._held: list[int] = []
        self.capability = 80  # ten times the compute capability: 75 is Turing, 90 Hopper

    def configure(
        self,
        seed: int = 0,
        races: bool = True,
        naive: bool = False,
        multiprocessors: int = 1,
    ) -> None:
        """The schedule of the next kernels and the size of the GPU; also resets the counters."""
        # Where shared memory starts is not promised: at 128 in every other schedule.
        gpu = (multiprocessors, self.capability, seed % 2 * 128)
        self.c.simt_configure(seed, races, naive, *gpu)

    def stats(self) -> dict[str, int]:
        names = ("multiplies", "async_copies", "bank_conflicts", "blocks", "boxes", "wide_products")
        values = (ctypes.c_int64 * len(names))()
        self.c.simt_stats(values)
        return dict(zip(names, values, strict=True))

    def pool(self, device: int) -> dict[str, int]:
        """Of the scratch memory of a device: see simt_pool in simt/control.cc."""
        names = ("pools", "kept", "given", "back", "capture_mode")
        values = (ctypes.c_int64 * len(names))()
        self.c.simt_pool(device, values)
        return dict(zip(names, values, strict=True))

    def release(self) -> None:
        for address in self._held:
            self.c.simt_release(address)
        self._held.clear()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A guarded array full of NaN."""
        size = int(np.prod(shape))
        count = max(size * np.dtype(dtype).itemsize, 1)
        address = self.c.simt_allocate(count)
        self._held.append(address)
        memory = (ctypes.c_char * count).from_address(address)
        return np.frombuffer(memory, dtype, size).reshape(shape)

    def guarded(self, x: Any) -> Any:
        copy = self.empty(x.shape, x.dtype)
        copy[...] = x
        return copy


def address(x: Any) -> int:
    return 0 if x is None else int(x.ctypes.data)


def problem(case: Case, dtype: str, prune: bool = True) -> Problem:
    options = case.options
    sizes = (case.B, case.Hq, case.Hkv, case.Sq, case.Sk, case.D)
    return Problem(*sizes, dtype, options["scale"], case.causal, case.bias, prune)


class Calls:
    """The four entry points on one case."""

    def __init__(self, model: Model, case: Case, dtype: str, x: Inputs, prune: bool = True) -> None:
        self.model, self.case, self.type = model, case, NUMPY_DTYPES[dtype]
        self.problem = problem(case, dtype, prune)
        self.q, self.k, self.v, self.dout = map(model.guarded, (x.q, x.k, x.v, x.dout))
        self.slopes, self.dlse = model.guarded(x.slopes), model.guarded(x.dlse)
        self.spans = None if x.spans is None else model.guarded(x.spans)
        self.modes = {"slopes": address(self.slopes), "spans": address(self.spans)}

    def _tensor(self, x: Any) -> CTensor:
        return tensor(address(x), x.shape, self.case.layout)

    def _new(self, like: Any) -> Any:
        return self.model.empty(like.shape, like.dtype)

    def _float(self, *shape: int) -> Any:
        return self.model.empty(shape, np.float32)

    def forward(self) -> tuple[Any, Any]:
        """(out, lse)"""
        self.out = self._new(self.q)
        self.lse = self._float(self.case.B, self.case.Hq, self.case.Sq)
        tensors = {name: self._tensor(getattr(self, name)) for name in ("q", "k", "v", "out")}
        lse = address(self.lse)
        self.model.call("alibi_attention_fwd", self.problem, **tensors, **self.modes, lse=lse)
        return self.out, self.lse

    def backward(self) -> tuple[Any, Any, Any, Any]:
        """(dq, dk, dv, dslopes), after forward()"""
        grads = {f"d{name}": self._new(getattr(self, name)) for name in ("q", "k", "v")}
        dslopes = self._float(self.case.Hq)
        inputs = {name: getattr(self, name) for name in ("q", "k", "v", "out", "dout")}
        tensors = {name: self._tensor(x) for name, x in {**inputs, **grads}.items()}
        rows = {"lse": address(self.lse), "dlse": address(self.dlse), "dslopes": address(dslopes)}
        self.model.call("alibi_attention_bwd", self.problem, **tensors, **self.modes, **rows)
        return grads["dq"], grads["dk"], grads["dv"], dslopes

    def _weights_tensor(self, p: Any) -> CTensor:
        return tensor(address(p), p.shape, "BNSD")

    def weights(self) -> Any:
        c = self.case
        self.p = self.model.empty((c.B, c.Hq, c.Sq, c.Sk), self.type)
        tensors = {"q": self._tensor(self.q), "k": self._tensor(self.k)}
        p = self._weights_tensor(self.p)
        self.model.call("alibi_attention_weights_fwd", self.problem, **tensors, **self.modes, p=p)
        return self.p

    def weights_backward(self, dp: Any) -> tuple[Any, Any, Any]:
        """(dq, dk, dslopes), after weights()"""
        dp = self.model.guarded(dp)
        dq, dk, dslopes = self._new(self.q), self._new(self.k), self._float(self.case.Hq)
        heads = {"q": self.q, "k": self.k, "dq": dq, "dk": dk}
        tensors = {name: self._tensor(x) for name, x in heads.items()}
        maps = {"p": self._weights_tensor(self.p), "dp": self._weights_tensor(dp)}
        self.model.call(
            "alibi_attention_weights_bwd",
            self.problem,
            **tensors,
            **maps,
            **self.modes,
            dslopes=address(dslopes),
        )
        return dq, dk, dslopes
