"""The harness that checks a library through its operators, run here on the CPU library.

On a GPU the same code runs with PyTorch tensors on the device and libalibi_cuda.so; what is new
there is the device alone. So the harness itself is tested here: that right results pass, that
wrong ones, unwritten ones and stray writes do not.
"""

from __future__ import annotations

import csv
import ctypes
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import correctness
from benchmarks.gpu.aot import Operator, OperatorError
from benchmarks.gpu.correctness import Check
from benchmarks.gpu.memory import Arrays, HostMemory, TorchMemory
from benchmarks.gpu.operators import Calls
from tests.cases import SITUATIONS, Case, make_inputs
from tests.cuda.model import QUICK, ROOT, build_with_operators

LIBRARY = ROOT / "alibi_kernels" / "_lib" / "libalibi_cpu.so"
CASE = Case("harness", 2, 4, 2, 9, 14, 16, slopes="learned")

pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="libalibi_cpu.so was not built"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="aot_caller.cc needs g++"),
]


def memories() -> list[Any]:
    torch = pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
    )
    return [
        pytest.param(HostMemory, id="numpy"),
        pytest.param(lambda: TorchMemory("cpu"), id="torch", marks=torch),
    ]


def outcome(check: Check, **more: Any) -> str:
    return correctness.outcome(check, LIBRARY, Arrays(HostMemory(), **more))


@pytest.mark.parametrize("check", list(correctness.quick()), ids=lambda c: "-".join(c.key))
def test_the_quick_set_passes(check: Check) -> None:
    assert outcome(check) == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("check", list(correctness.checks()), ids=lambda c: "-".join(c.key))
def test_every_check_passes(check: Check) -> None:
    assert outcome(check) == "ok"


def few_on_the_model() -> list[Check]:
    """What the other tests of the model do not call: packed operands, NaN outside of a span."""
    wanted = (correctness._packed, correctness._outside_is_not_read)
    return [c for c in correctness.checks() if c.run in wanted and c.dtype == "float16"]


@pytest.mark.parametrize("check", few_on_the_model(), ids=lambda c: "-".join(c.key))
def test_operators_of_the_cuda_kernels_on_the_model(check: Check) -> None:
    library = build_with_operators(QUICK)
    assert correctness.outcome(check, library, Arrays(HostMemory())) == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("check", list(correctness.checks())[:40], ids=lambda c: "-".join(c.key))
def test_the_checks_of_a_gpu_on_the_model(check: Check) -> None:
    """The first of those that run_h200.sh makes, with the same sizes and every head_dim."""
    library = build_with_operators()
    assert correctness.outcome(check, library, Arrays(HostMemory())) == "ok"


@pytest.mark.parametrize("memory", memories())
@pytest.mark.parametrize("bare", [False, True], ids=["guarded", "bare"])
def test_memories(memory: Any, bare: bool) -> None:
    check = next(correctness.sanitizer())
    assert correctness.outcome(check, LIBRARY, Arrays(memory(), bare)) == "ok"


def test_every_check_has_a_name_of_its_own() -> None:
    for name, checks in correctness.SETS.items():
        keys = [check.key for check in checks()]
        assert len(set(keys)) == len(keys), name


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"causal": False}, "out"),
        ({"bias": "signed"}, "out"),
        ({"scale": 0.26}, "out"),
        ({"input_layout": "BSND"}, "Error"),
    ],
    ids=str,
)
def test_a_wrong_attribute_is_noticed(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], part: str
) -> None:
    """The result is then that of another problem: the comparison with float64 must fail."""
    case = SITUATIONS[15]
    case = Case("other", 1, 2, 2, 9, 14, 8, causal=change != {"bias": "signed"}, scale=case.scale)
    if change == {"bias": "signed"}:
        case = Case("other", 1, 2, 2, 9, 14, 8, causal=False)
    check = Check(case, "float32", True, "forward", correctness._parts)
    assert outcome(check) == "ok"
    right = correctness.Calls
    monkeypatch.setattr(correctness, "Calls", lambda *a, **m: right(*a, **m, **change))
    assert part in outcome(check)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_output_that_is_not_written_is_noticed(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(Operator, "bind", lambda self, *_: lambda: None)
    status = outcome(Check(CASE, dtype, True, "forward", correctness._parts))
    assert "is nan at index (0, 0, 0, 0)" in status


@pytest.mark.parametrize("where", [-1, 2 * 2 * 9 * 16 * 2], ids=["before", "after"])
def test_a_write_beside_an_array_is_noticed(monkeypatch: pytest.MonkeyPatch, where: int) -> None:
    right = Operator.bind

    def bind(self: Operator, operands: Any, stream: int) -> Any:
        run = right(self, operands, stream)

        def stray() -> None:
            run()
            q = operands[0]
            size = int(np.prod(q.shape)) * 4
            ctypes.memset(q.address + (size if where > 0 else -1), 0, 1)

        return stray

    monkeypatch.setattr(Operator, "bind", bind)
    status = outcome(Check(CASE, "float32", True, "forward", correctness._parts))
    assert status == "AssertionError: memory around (2, 4, 9, 16) float32 was overwritten"


def test_an_operators_words_arrive() -> None:
    arrays = Arrays(HostMemory())
    x = make_inputs(CASE)
    calls = Calls(LIBRARY, arrays, CASE, "float32", x)
    calls.modes = [arrays.of(x.slopes[:3])]
    with pytest.raises(OperatorError, match=r"slopes must have shape \(4\).*got \(3\)"):
        calls.forward()
    with pytest.raises(OperatorError, match='bias: expected "signed" or "symmetric", got "other"'):
        Calls(LIBRARY, arrays, CASE, "float32", x, bias="other").forward()


def test_fixed_slopes_are_an_attribute() -> None:
    """On the host; a library whose kernels read device memory takes an operand, which may be a
    constant too."""
    x = make_inputs(CASE)
    arrays = Arrays(HostMemory())
    trained = Calls(LIBRARY, arrays, CASE, "float32", x)
    out, grads = trained.forward()[0], trained.backward()
    assert len(grads) == 4
    for more in ({"slopes": tuple(map(float, x.slopes))}, {"fixed_slopes": True}):
        fixed = Calls(LIBRARY, arrays, CASE, "float32", x, **more)
        np.testing.assert_array_equal(fixed.forward()[0], out)
        found = fixed.backward()
        assert len(found) == 3
        for got, want in zip(found, grads, strict=False):
            np.testing.assert_array_equal(got, want)


def run_main(monkeypatch: pytest.MonkeyPatch, file: Path, *more: str) -> list[list[str]]:
    options = ["--library", str(LIBRARY), "--csv", str(file), "--set", "sanitizer", *more]
    monkeypatch.setattr(sys, "argv", ["correctness", *options])
    assert correctness.main() == 0
    with file.open(newline="") as lines:
        return list(csv.reader(lines))


def test_a_run_that_was_cut_short_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "out" / "correctness.csv"
    assert len(run_main(monkeypatch, file, "--seconds", "0")) == 1  # the header
    rows = run_main(monkeypatch, file)
    assert [row[:4] for row in rows[1:]] == [list(c.key) for c in correctness.sanitizer()]
    assert {row[4] for row in rows[1:]} == {"ok"}
    assert run_main(monkeypatch, file) == rows
    file.write_text("another,header\n")
    with pytest.raises(ValueError, match="from another version; give another output directory"):
        run_main(monkeypatch, file)
