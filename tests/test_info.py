"""`python -m alibi_kernels.info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import alibi_kernels
from alibi_kernels import _library, info
from tests.custom_tools import run_python


def test_report(ms: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([]) == 0
    text = capsys.readouterr().out
    for part in (
        "alibi-kernels ",
        "mindspore     2.10",
        "ALIBI_CPU_ISA",
        "cpu library: ",
        "cuda library: ",
        "ascend op package: ",
        "CUDA toolchain: ",
        "Ascend toolchain: ",
    ):
        assert part in text
    assert "runs it" not in text


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_libraries_and_what_would_run(
    ms: Any, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    library = _library.load("cpu")
    assert info.main(["--shape", "1,8,512,32", "--dtype", "float16"]) == 0
    text = capsys.readouterr().out
    assert f"cpu library: {library.path}" in text
    assert f"chosen: {library.build['selected']}; threads: {library.build['threads']}" in text
    for isa in library.build["isas"]:
        assert f"{isa['name']} (" in text
    assert (
        "alibi_attention, float16, q [1, 8, 512, 32], k [1, 8, 512, 32], causal, symmetric:" in text
    )
    assert f"  cpu: runs it, as cpu-{library.build['selected']}" in text


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("dtype", "wanted", "state"),
    [
        ("float32", "", "runs it, as cpu-"),
        ("float32", "cpu", "runs it, as cpu-"),
        ("float32", "reference", "not asked for (backend reference is)"),
        ("float16", "", "cannot run it: the tensors are float16, and it takes float32"),
    ],
)
def test_what_runs_the_other_operators_of_a_layer(
    ms: Any,
    backend: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kernel_calls: list[str],
    dtype: str,
    wanted: str,
    state: str,
) -> None:
    """The report says what a call does."""
    monkeypatch.setenv("ALIBI_BACKEND", wanted)
    assert info.main(["--shape", "1,8,512,32", "--dtype", dtype]) == 0
    _, text = capsys.readouterr().out.split(f"layer_norm and bias_gelu, {dtype}:\n")
    ours, theirs = text.splitlines()
    assert ours.startswith(f"  cpu: {state}")
    runs = "runs it" in ours
    assert theirs == f"  MindSpore's operators: {'could run it too' if runs else 'run it'}"

    x = ms.ops.zeros((2, 4), getattr(ms, dtype))
    alibi_kernels.layer_norm(x, x[0], x[0])
    alibi_kernels.bias_gelu(x, x[0])
    assert kernel_calls == (["AlibiLayerNormFwd", "AlibiBiasGeluFwd"] if runs else [])


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_why_not(ms: Any, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "2,8,16,320", "--kv-heads", "2", "--kv-length", "64", "--full"]
    assert info.main([*options, "--weights", "--bias", "signed"]) == 0
    text = capsys.readouterr().out
    assert "alibi_attention_weights, float32, q [2, 8, 16, 320], k [2, 2, 64, 320]" in text
    assert "not causal, signed:" in text
    assert "cpu: cannot run it: head_dim is 320, and the kernels take at most 256" in text
    assert "reference: runs it" in text


def test_no_library(
    ms: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_library, "DIRECTORY", tmp_path)
    _library.load.cache_clear()
    try:
        assert info.main([]) == 0
    finally:
        _library.load.cache_clear()
    assert "cpu library: none (" in capsys.readouterr().out


def test_an_installed_op_package(op_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--shape", "1,8,512,64", "--dtype", "float16"]) == 0
    text = capsys.readouterr().out
    assert f"ascend op package: {op_package}/opp/vendors/alibi\n" in text
    assert "  ascend: runs it, as ascend\n" in text
    assert "  ascend_builtin: could run it too\n" in text


def test_bad_calls(ms: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--shape", "1,8,512,32", "--kv-heads", "3"]) == 2
    assert "q has 8 heads and k has 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        info.main(["--shape", "1,8,512"])
    assert "expected four sizes such as 1,8,512,32, got '1,8,512'" in capsys.readouterr().err


def test_as_a_command(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import runpy; runpy.run_module('alibi_kernels.info', run_name='__main__')")
    done = run_python(script, tmp_path, "--shape", "1,8,512,32", ALIBI_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert "reference: runs it, as reference" in done.stdout
    assert "cpu: not asked for (backend reference is)" in done.stdout
