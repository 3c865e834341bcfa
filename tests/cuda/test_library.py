"""The built CUDA library, as far as a machine without a GPU can tell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cuda.capi import Library, Problem, tensor
from tests.cuda.model import ROOT

PATH = ROOT / "alibi_kernels" / "_lib" / "libalibi_cuda.so"
OPERATORS = ("AlibiAttentionFwd", "AlibiAttentionBwd", "AlibiWeightsFwd", "AlibiWeightsBwd")

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
    assert set(OPERATORS) <= set(names)
    assert not [name for name in names if "cuda" in name and "alibi" in name.lower()]


def test_the_runtime_of_another_cuda_version_may_be_in_the_process() -> None:
    needed = subprocess.run(["ldd", str(PATH)], capture_output=True, text=True, check=True).stdout
    assert "libcudart" not in needed


def test_it_says_what_it_is(library: Library) -> None:
    info = json.loads(library.c.alibi_build_info())
    assert info["backend"] == "cuda"
    assert info["abi"] == library.c.alibi_abi_version() == 1
    assert {800, 900} <= set(info["architectures"])
    assert "cuda-sm80" in info["implementations"]


def test_without_a_gpu_a_call_returns_a_status(library: Library) -> None:
    """In a process of its own: where there is a GPU, host pointers would end it."""
    code = "from tests.cuda.test_library import call_with_host_memory as f; print(f())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    assert run.returncode == 0, run.stderr
    status, text = run.stdout.strip().split(" ", 1)
    assert status == "device"
    assert text.startswith("cudaGetDevice: ")


def call_with_host_memory() -> str:
    library = Library(PATH)
    x, slopes, lse = np.zeros((1, 1, 8, 64), np.float16), np.ones(1, np.float32), np.zeros(8, "f4")
    every = dict.fromkeys(("q", "k", "v", "out"), tensor(x.ctypes.data, x.shape, "BNSD"))
    problem = Problem(1, 1, 1, 8, 8, 64, "float16", 0.125)
    places = {"slopes": slopes.ctypes.data, "lse": lse.ctypes.data}
    status = library.status("alibi_attention_fwd", problem, **every, **places)
    return f"{status} {library.last_error()}"


def disassembler() -> str | None:
    installed = Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin/cuobjdump")
    return shutil.which("cuobjdump") or next(map(str, installed), None)


@pytest.mark.slow
def test_products_of_16_bit_types_run_on_tensor_cores() -> None:
    """In the machine code of sm_80: HMMA and asynchronous copies in each 16-bit kernel, none in a
    float32 one, and no access to local memory anywhere, where registers would be spilled."""
    tool = disassembler()
    if tool is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    listing = subprocess.run(
        [tool, "-sass", "-arch", "sm_80", str(PATH)], capture_output=True, text=True, check=True
    ).stdout
    kernels = [part for part in listing.split("Function : ")[1:] if "attention_" in part[:60]]
    assert len(kernels) >= 40
    for kernel in kernels:
        name = kernel.split(None, 1)[0]
        sixteen_bits = "half" in name or "bfloat" in name
        assert ("HMMA" in kernel) == sixteen_bits, name
        assert "LDGSTS" in kernel, name
        assert "STL" not in kernel, name
        assert "LDL" not in kernel, name
