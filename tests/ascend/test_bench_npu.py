"""benchmarks/ascend/bench_npu.py where there is no NPU: its error, and its own float64 truth."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from tests import oracle
from tests.ascend.device import ROOT

SCRIPT = ROOT / "benchmarks" / "ascend" / "bench_npu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_npu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_without_an_npu_the_message_says_what_to_do() -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, check=False
    )
    if result.stdout:
        pytest.skip("an NPU is here")
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("bench_npu: MindSpore finds no Ascend NPU here")
    assert "csrc/ascend/README.md" in message


def test_its_truth_is_the_oracle(script: ModuleType) -> None:
    for case in script.PROBES:
        arrays, slopes = script.inputs_of(case)
        out, _ = oracle.attention(*arrays, slopes, causal=case.causal)
        rows = np.arange(case.len_q)
        heads = sorted({0, case.heads_q - 1})
        truth = script.truth(case, arrays, slopes, rows)
        np.testing.assert_allclose(truth, out[0, heads], rtol=1e-9, atol=1e-12)
