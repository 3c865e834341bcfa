"""The built CUDA library, as far as a machine without a GPU can tell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.aot import OperatorError
from benchmarks.gpu.memory import Arrays, HostMemory
from benchmarks.gpu.operators import Calls, PackedCalls
from tests.cases import Case, make_dp, make_inputs
from tests.cuda.capi import ARGUMENTS, PTR, CTensor, Library, Problem, tensor
from tests.cuda.model import ROOT

PATH = ROOT / "alibi_kernels" / "_lib" / "libalibi_cuda.so"
OPERATORS = tuple(
    f"Alibi{name}{way}" for name in ("Attention", "Weights", "Packed") for way in ("Fwd", "Bwd")
)

pytestmark = pytest.mark.skipif(
    not PATH.exists(), reason="libalibi_cuda.so was not built: nvcc was not found, or it is off"
)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(PATH)


def symbols() -> dict[str, str]:
    """Exported names and their kinds."""
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(PATH)], capture_output=True, text=True, check=True
    )
    fields = [line.split() for line in listing.stdout.splitlines()]
    return {row[-1]: row[-2] for row in fields}


def test_the_entry_points_and_the_operators_are_exported_and_no_kernel_is() -> None:
    names = symbols()
    contract = ("fwd", "bwd", "weights_fwd", "weights_bwd")
    assert {f"alibi_attention_{name}" for name in contract} <= set(names)
    parts = ("", "Init", "InferShape", "InferType")
    assert {operator + part for operator in OPERATORS for part in parts} <= set(names)
    assert not [name for name in names if "cuda" in name and "alibi" in name.lower()]


def test_the_runtime_of_another_cuda_version_may_be_in_the_process() -> None:
    needed = subprocess.run(["ldd", str(PATH)], capture_output=True, text=True, check=True).stdout
    assert "libcudart" not in needed
    assert "libcuda.so" not in needed  # the driver: it loads where there is none


def test_it_says_what_it_is(library: Library) -> None:
    info = json.loads(library.c.alibi_build_info())
    assert info["backend"] == "cuda"
    assert info["abi"] == library.c.alibi_abi_version() == 2
    assert {750, 800, 900} <= set(info["architectures"])
    assert info["implementations"] == ["cuda-sm90", "cuda-sm80"]


def outcomes_with_host_memory() -> dict[str, str]:
    """What each entry point and each operator says when it is called without a GPU."""
    case = Case("no-gpu", 1, 2, 2, 8, 8, 64, layout="BSND")
    x = make_inputs(case, "float16")
    library, arrays = Library(PATH), Arrays(HostMemory())
    problem = Problem(1, 2, 2, 8, 8, 64, "float16", 0.125)
    found = {}
    for name, arguments in ARGUMENTS.items():
        fields = dict(arguments._fields_)
        memory = np.zeros(64 * 8 * 8, np.float32)
        place = {CTensor: tensor(memory.ctypes.data, x.q.shape, "BSND"), PTR: memory.ctypes.data}
        names = fields.keys() - {"problem", "spans", "segments", "options"}
        status = library.status(name, problem, **{n: place[fields[n]] for n in names})
        found[name] = f"{status}: {library.last_error()}"
    rows = [arrays.empty(x.q.shape, x.q.dtype), arrays.of(x.dlse)]
    p = arrays.empty((1, 2, 8, 8), x.q.dtype)
    for make in (Calls, PackedCalls):
        calls = make(PATH, arrays, case, "float16", x)
        calls.results, calls.p = rows, p
        for method in ("forward", "backward", "weights", "weights_backward"):
            if make is PackedCalls and "weights" in method:
                continue
            try:
                getattr(calls, method)(*[make_dp(case, "float16")] * (method == "weights_backward"))
                found[f"{make.__name__}.{method}"] = "ok"
            except OperatorError as error:
                found[f"{make.__name__}.{method}"] = str(error)
    return found


def test_without_a_gpu_every_call_returns_a_status() -> None:
    """In a process of its own: where there is a GPU, host pointers would end it."""
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    code = "import json; from tests.cuda.test_library import outcomes_with_host_memory as f"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; print(json.dumps(f()))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == len(ARGUMENTS) + len(OPERATORS)
    for name, said in found.items():
        if name in ARGUMENTS:
            assert said.startswith("device: cudaGetDevice: "), name
        else:
            words = 'status "device": the accelerator reported an error, or there is none'
            assert said.startswith("alibi_attention"), name
            assert words in said, name


def disassembler() -> str | None:
    installed = Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump")
    return shutil.which("cuobjdump") or next(map(str, installed), None)


def attention_kernels(architecture: str) -> dict[str, str]:
    """Machine code of the attention kernels, by mangled name."""
    tool = disassembler()
    if tool is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    command = [tool, "-sass", "-arch", architecture, str(PATH)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = listing.split("Function : ")[1:]
    return {part.split(None, 1)[0]: part for part in parts if "attention_" in part[:60]}


def assert_no_spills(name: str, kernel: str) -> None:
    """Local memory is where registers would be spilled."""
    assert "STL" not in kernel, name
    assert "LDL" not in kernel, name


def kernels_and_stubs(architecture: str) -> tuple[dict[str, str], set[str]]:
    """Kernels by mangled name; names of those that an architecture leaves to another, whose code is
    one trap."""
    every = attention_kernels(architecture)
    stubs = {name for name, code in every.items() if "BPT.TRAP" in code}
    assert all(len(every[name].splitlines()) < 100 for name in stubs)
    return {name: code for name, code in every.items() if name not in stubs}, stubs


# The last template argument: whose tiles a kernel was made with (enum Gpu in tile_config.h).
AMPERE, TURING = "LNS0_3GpuE0E", "LNS0_3GpuE1E"


@pytest.mark.slow
def test_products_of_16_bit_types_run_on_tensor_cores() -> None:
    """In the machine code of sm_80: HMMA and asynchronous copies in each 16-bit kernel, none in a
    float32 one."""
    kernels, stubs = kernels_and_stubs("sm_80")
    assert len(kernels) == 70, sorted(kernels)
    assert all(AMPERE in name for name in kernels)
    assert all(TURING in name for name in stubs)
    for name, kernel in kernels.items():
        sixteen_bits = "half" in name or "bfloat" in name
        assert ("HMMA" in kernel) == sixteen_bits, name
        assert "LDGSTS" in kernel, name
        assert_no_spills(name, kernel)


@pytest.mark.slow
def test_the_kernels_of_turing_are_its_own_where_it_has_tiles_of_its_own() -> None:
    """In the machine code of sm_75: every head size in float16 and float32, on the small product of
    its tensor cores, without asynchronous copies and without spilling; no bfloat16."""
    kernels, stubs = kernels_and_stubs("sm_75")
    assert len(kernels) == 45, sorted(kernels)
    own = {name for name in kernels if TURING in name}
    assert len(own) == 16, sorted(own)
    replaced = {name.replace(TURING, AMPERE) for name in own}
    assert stubs == replaced | {name for name in stubs if "bfloat" in name}
    assert not [name for name in kernels if "bfloat" in name]
    for name, kernel in kernels.items():
        assert ("HMMA.1688" in kernel) == ("half" in name), name
        assert "LDGSTS" not in kernel, name
        assert_no_spills(name, kernel)


@pytest.mark.slow
def test_hopper_kernels_use_the_copy_engine_and_warpgroup_products() -> None:
    """In the machine code of sm_90a: HGMMA on tiles that UTMALDG has brought, registers moved
    between warpgroups, no product of the older kind and none that waits for the one before it."""
    listed = attention_kernels("sm_90a")  # those of sm_90 besides
    kernels = {name: kernel for name, kernel in listed.items() if "hopper" in name}
    assert len(kernels) == 12, sorted(kernels)
    for name, kernel in kernels.items():
        assert "HGMMA" in kernel, name
        assert "UTMALDG.4D" in kernel, name
        assert "USETMAXREG" in kernel, name
        # A wait after every product is what ptxas writes when it cannot keep them asynchronous.
        assert kernel.count("WARPGROUP.DEPBAR") * 4 <= kernel.count("HGMMA"), name
        assert "HMMA." not in kernel.replace("HGMMA.", ""), name
        assert_no_spills(name, kernel)
