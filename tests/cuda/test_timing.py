"""How our kernels and the peers are timed on a GPU: who is checked, in which order, what counts."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import peers, read_pth_files, timing
from benchmarks.gpu.device_truth import DeviceTruth
from benchmarks.gpu.rows import Rows, read

from cases import DECODE, FORWARD, TRAINING, Case  # isort: skip
from providers import Prepared, Provider  # isort: skip
from truth import Truth  # isort: skip

CASE = Case(TRAINING, 2, 2, 17, 17, 8, dtype="float32")

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed"
)


def _provider(name: str, prepare: Any) -> Provider:
    return Provider(name, "peer", "numpy", prepare, lambda case: [], "")


def _right(case: Case) -> dict[str, Any]:
    """Every head and batch item; Truth computes the first and the last of the first item."""
    values = Truth(case, case.inputs()).values
    return {n: np.broadcast_to(x, (case.batch, *x.shape)).copy() for n, x in values.items()}


@pytest.mark.parametrize("name", ["out", "dq", "dk", "dv"])
def test_a_wrong_result_is_refused(name: str) -> None:
    truth, outputs = Truth(CASE, CASE.inputs()), _right(CASE)
    assert timing.verdict(CASE, truth, outputs)[0] == "ok"
    right = outputs.pop(name)
    assert timing.verdict(CASE, truth, outputs)[0] == f"did not return {name}"
    outputs[name] = right * 1.01
    assert timing.verdict(CASE, truth, outputs)[0].startswith(f"wrong result: {name} is off by 1.0")
    outputs[name] = np.where(np.arange(right.size).reshape(right.shape) == 3, np.nan, right)
    assert timing.verdict(CASE, truth, outputs)[0].startswith(f"wrong result: {name} is off by nan")


@needs_torch
@pytest.mark.parametrize(
    "case",
    [
        CASE,
        Case(TRAINING, 1, 4, 33, 33, 8, causal=False, dtype="float32"),
        Case(DECODE, 2, 2, 1, 40, 8, dtype="float32"),
    ],
    ids=lambda case: case.name,
)
def test_the_truth_of_a_device_is_the_truth(case: Case) -> None:
    inputs = case.inputs()
    want, got = Truth(case, inputs).values, DeviceTruth(case, inputs, "cpu").values
    assert want.keys() == got.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-12)


def test_cases_look_at_the_same_numbers() -> None:
    draws, large = timing.Draws(), Case(FORWARD, 2, 2, 17, 17, 8, dtype="bfloat16")
    small = Case(FORWARD, 1, 2, 9, 9, 8, dtype="bfloat16")
    first, second = draws.inputs(large), draws.inputs(small)
    assert first["q"].shape == (2, 2, 17, 8)
    assert second["q"].shape == (1, 2, 9, 8)
    assert np.shares_memory(first["k"], second["k"])
    assert not np.array_equal(first["q"], first["k"])
    assert abs(first["q"].std() - 1.0) < 0.2


def options(**more: Any) -> Namespace:
    return Namespace(**{"device": "host", "rounds": 4, "per_case": 1.0, **more})


def test_only_who_is_right_is_timed_and_everyone_has_a_row(tmp_path: Path) -> None:
    order = []

    def prepared(name: str, outputs: Any) -> Any:
        return lambda case, inputs: Prepared(lambda: order.append(name), lambda: outputs(case))

    def fails(case: Case, inputs: Any) -> Any:
        raise NotImplementedError("no such\n kernel")

    everyone = [
        _provider("first", prepared("first", _right)),
        _provider(
            "wrong", prepared("wrong", lambda case: {n: -x for n, x in _right(case).items()})
        ),
        _provider("fails", fails),
        _provider("second", prepared("second", _right)),
    ]
    rows = Rows(tmp_path / "timing.csv", timing.COLUMNS, keys=2)
    assert timing.measure_case(CASE, CASE.inputs(), everyone, rows, options())
    found = {row["provider"]: row for row in read(rows.path)}
    assert list(found) == ["first", "wrong", "fails", "second"]
    assert found["fails"]["status"] == "NotImplementedError: no such kernel"
    assert found["wrong"]["status"].startswith("wrong result")
    assert not found["wrong"]["median_ms"]
    assert found["second"]["samples"] == "4"
    assert order == ["first", "second"] * 5  # in turns, after one call each that is not timed


def test_a_broken_context_ends_the_process_but_not_the_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(self: timing.Timer) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    rows = Rows(tmp_path / "timing.csv", timing.COLUMNS, keys=2)
    one = _provider("one", lambda case, inputs: Prepared(lambda: None, lambda: _right(case)))
    with monkeypatch.context() as patch:
        patch.setattr(timing.Timer, "synchronize", broken)
        assert not timing.measure_case(CASE, CASE.inputs(), [one], rows, options())
    assert "illegal memory access" in read(rows.path)[0]["status"]


def test_work_is_counted_by_one_formula() -> None:
    forward, training = (Case(mode, 2, 16, 1024, 1024, 128) for mode in (FORWARD, TRAINING))
    assert timing.work(forward) == 4 * 2 * 16 * 1024 * 1024 * 128 / 2
    assert timing.work(training) == 2.5 * timing.work(forward)
    assert timing.work(Case(FORWARD, 1, 1, 64, 64, 8, causal=False)) == 4 * 64 * 64 * 8
    assert Case(DECODE, 3, 2, 1, 100, 64, dtype="bfloat16").cache_bytes == 2 * 3 * 2 * 100 * 64 * 2


def test_cases_have_names_of_their_own_and_the_bar_comes_first() -> None:
    cases = list(timing.gpu_cases())
    assert len({timing.label(case) for case in cases}) == len(cases)
    assert [timing.label(case) for case in cases[:2]] == [
        "forward-causal-bfloat16-b1h16s16384d128",
        "training-causal-bfloat16-b1h16s16384d128",
    ]


def test_peers_that_need_the_bias_in_memory_have_a_limit() -> None:
    long = timing.square(FORWARD, 64, 131072)
    reasons = {p.name: p.unsupported(long) for p in peers.providers("cpu")}
    assert reasons["torch SDPA, cuDNN"] == ["the bias alone would need 1100 GB"]
    assert reasons["cuDNN frontend"] == []


@needs_torch
@pytest.mark.parametrize("mode", [FORWARD, TRAINING, DECODE])
@pytest.mark.parametrize("causal", [True, False])
def test_the_bias_in_memory_is_right(mode: str, causal: bool) -> None:
    case = Case(mode, 2, 4, 1 if mode == DECODE else 33, 33, 16, causal=causal)
    prepared = peers._sdpa(case, case.inputs(), "cpu", backend="MATH")
    assert timing.verdict(case, Truth(case, case.inputs()), prepared.outputs())[0] == "ok"


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@needs_torch
@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
def test_jax_is_asked_the_right_question(mode: str) -> None:
    case = Case(mode, 2, 2, 33, 33, 16)
    prepare = partial(peers._jax, implementation="xla")
    outputs = prepare(case, case.inputs(), "cpu").outputs()
    assert timing.verdict(case, Truth(case, case.inputs()), outputs)[0] == "ok"


def test_a_wheel_may_name_more_folders_in_a_pth_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packages = tmp_path / "inside"
    packages.mkdir()
    (tmp_path / "wheel.pth").write_text("inside\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    read_pth_files(tmp_path)
    assert str(packages) in sys.path
    read_pth_files(tmp_path / "absent")
