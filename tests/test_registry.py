"""Which backend runs a call, and how that is said."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alibi_kernels
from alibi_kernels import _library, contract, norms_contract, registry, rows
from tests.custom_tools import normal

HEADER = Path(__file__).resolve().parent.parent / "csrc" / "alibi_attention.h"


def signature(head_dim: int = 8, **options: Any) -> contract.Signature:
    x = contract.Spec((1, 2, 4, head_dim), "float32")
    slopes = contract.Spec((2,), "float32")
    return contract.validate_attention(x, x, x, slopes, fixed_slopes=True, **options)


@pytest.fixture(autouse=True)
def forget() -> None:
    """Each fallback is logged once per process: start every test as a new process would."""
    registry.warn_once.cache_clear()


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As if no kernel library had been built; returns the directory where it would be."""
    monkeypatch.setattr(_library, "DIRECTORY", tmp_path)
    _library.load.cache_clear()
    yield tmp_path
    _library.load.cache_clear()


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_the_best_backend_is_chosen(ms: Any, backend: str) -> None:
    assert registry.select(signature()).name == "cpu"
    assert registry.select(signature(backend="reference")).name == "reference"


def test_the_reference_is_last_and_has_no_reasons(ms: Any) -> None:
    last = registry.BACKENDS[-1]
    assert last.name == "reference"
    assert last.not_supported_reasons(signature(head_dim=100_000)) == []


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_fallback_is_logged_once_with_its_reasons(
    ms: Any, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alibi_kernels")
    for _ in range(3):
        assert registry.select(signature(head_dim=300)).name == "reference"
    assert [record.getMessage() for record in caplog.records] == [
        "alibi_attention runs on backend reference "
        "(not cpu: head_dim is 300, and the kernels take at most 256)"
    ]
    caplog.clear()
    registry.select(signature())
    registry.select(signature(head_dim=300, backend="reference"))
    assert not caplog.records


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_head_dim_beyond_the_kernels_runs_on_the_reference(ms: Any, backend: str) -> None:
    q = normal(ms, 1, 1, 3, 257)
    out = alibi_kernels.alibi_attention(q, q, q, (0.5,))
    want = alibi_kernels.alibi_attention(q, q, q, (0.5,), backend="reference")
    np.testing.assert_array_equal(out.asnumpy(), want.asnumpy())
    with pytest.raises(RuntimeError, match='backend "cpu" cannot run this call: head_dim is 257'):
        alibi_kernels.alibi_attention(q, q, q, (0.5,), backend="cpu")


def test_an_error_lists_every_reason(ms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASCEND_OPP_PATH", raising=False)
    with pytest.raises(RuntimeError) as caught:
        registry.select(signature(head_dim=300, backend="ascend"))
    assert str(caught.value) == (
        'alibi_attention: backend "ascend" cannot run this call: it runs on device Ascend, but the '
        "device is CPU; ASCEND_OPP_PATH is not set; run `source <CANN>/set_env.sh` first; dtype is "
        "float32, and it takes float16 and bfloat16; head_dim is 300, and the kernels take at most "
        "256. Pass backend=None (and unset ALIBI_BACKEND) to have one chosen that can."
    )


def test_environment_variable(ms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIBI_BACKEND", "reference")
    assert registry.select(signature()).name == "reference"
    monkeypatch.setenv("ALIBI_BACKEND", "fast")
    with pytest.raises(ValueError, match='ALIBI_BACKEND: backend must be one of "cpu"'):
        registry.select(signature())
    monkeypatch.setenv("ALIBI_BACKEND", "")
    assert registry.environment_choice() is None


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_environment_variable_reaches_calls_already_planned(
    ms: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    q = normal(ms, 1, 2, 4, 8)
    alibi_kernels.alibi_attention(q, q, q, (0.5, 0.25))
    monkeypatch.setenv("ALIBI_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match='backend "cuda" cannot run this call'):
        alibi_kernels.alibi_attention(q, q, q, (0.5, 0.25))


def test_missing_library(ms: Any, no_library: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert registry.select(signature()).name == "reference"
    assert "libalibi_cpu.so is not there; build it with" in caplog.text
    with pytest.raises(RuntimeError, match=r"libalibi_cpu\.so is not there"):
        registry.select(signature(backend="cpu"))
    with pytest.raises(RuntimeError, match=r"libalibi_cuda\.so is not there; nvcc was not found"):
        registry.select(signature(backend="cuda"))


def test_library_that_is_none(ms: Any, no_library: Path) -> None:
    (no_library / "libalibi_cpu.so").write_bytes(b"not a library")
    with pytest.raises(_library.LibraryError, match="cannot be loaded"):
        _library.load("cpu")


def test_library_of_another_version(
    ms: Any, no_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_library / "libalibi_cpu.so").touch()

    class Old:
        alibi_build_info = None

        @staticmethod
        def alibi_abi_version() -> int:
            return _library.ABI_VERSION + 1

    monkeypatch.setattr(ctypes, "CDLL", lambda path: Old)
    with pytest.raises(_library.LibraryError, match=r"has ABI version 3, but .* needs 2"):
        _library.load("cpu")


def test_numbers_shared_with_the_header() -> None:
    numbers = dict(re.findall(r"#define (ALIBI_\w+) (\d+)", HEADER.read_text()))
    assert int(numbers["ALIBI_ABI_VERSION"]) == _library.ABI_VERSION
    assert int(numbers["ALIBI_MAX_HEAD_DIM"]) == rows.MAX_HEAD_DIM
    assert int(numbers["ALIBI_NORM_KEYS"]) == norms_contract.NORM_KEYS
    dtypes = {name: i for i, name in enumerate(contract.DTYPES)}
    enum = re.findall(r"ALIBI_(B?FLOAT\d+) = (\d)", HEADER.read_text())
    assert {name.lower(): int(value) for name, value in enum} == dtypes


@pytest.mark.parametrize("name", ["q", "k", "v", "spans", "key_norms"])
def test_explain_says_what_is_no_tensor(name: str) -> None:
    x = np.zeros((1, 2, 5, 4), np.float32)
    with pytest.raises(TypeError) as caught:
        alibi_kernels.explain(**{"q": x, "k": x, "v": x, "slopes": (0.5, 0.25), name: [1.0]})
    text = f"alibi_attention: {name} must be a mindspore.Tensor or numpy.ndarray, got [1.0] (list)"
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_explain(ms: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q = normal(ms, 1, 2, 4, 8)
    isa = _library.load("cpu").build["selected"]
    lines = alibi_kernels.explain(q, q, q, (0.5, 0.25)).splitlines()
    assert lines[0] == f"cpu: runs it, as cpu-{isa}"
    assert [line.partition(":")[0] for line in lines] == list(contract.BACKENDS)
    for line, device in zip(lines[1:-1], ("GPU", "Ascend", "Ascend"), strict=True):
        assert "cannot run it" in line
        assert f"it runs on device {device}, but the device is CPU" in line
    assert lines[-1] == "reference: could run it too"
    wide = normal(ms, 1, 2, 4, 300)
    slopes = ms.Tensor(np.ones(2, np.float32))
    lines = alibi_kernels.explain(wide, wide, wide, slopes, causal=False).splitlines()
    assert lines[0] == "cpu: cannot run it: head_dim is 300, and the kernels take at most 256"
    assert lines[-1] == "reference: runs it, as reference"
    lines = alibi_kernels.explain(q, q, q, (0.5, 0.25), backend="cuda").splitlines()
    assert lines[0] == "cpu: not asked for (backend cuda is)"
    assert lines[1].startswith("cuda: cannot run it: ")
    with pytest.raises(ValueError, match="alibi_attention: v has length 3 but k has 4"):
        alibi_kernels.explain(q, q, normal(ms, 1, 2, 3, 8), (0.5, 0.25))


def test_rows_are_the_known_backends_in_order() -> None:
    assert tuple(row.name for row in registry.BACKENDS) == contract.BACKENDS
