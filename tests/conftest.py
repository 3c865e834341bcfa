"""Fixtures of all tests. Nothing here imports MindSpore until a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alibi_kernels import contract


@pytest.fixture(scope="session")
def ms() -> Any:
    """The mindspore module, set to the CPU and PyNative mode."""
    import mindspore

    mindspore.set_device("CPU")
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    return mindspore


@pytest.fixture
def commit() -> None:
    """Skips where there is none to name, as in an unpacked sdist: results are kept with theirs."""
    if not (Path(__file__).parents[1] / ".git").exists():
        pytest.skip("results name their commit, and this is no checkout of git")


@pytest.fixture(params=["pynative", "graph"])
def mode(
    request: pytest.FixtureRequest, ms: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Each test that takes it runs twice: `mode(f)` is f itself, then f compiled to a graph."""
    return ms.jit if request.param == "graph" else (lambda f: f)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `backend` run once per row of the registry that runs on the device of `ms`.

    The rows of other devices are exercised on stand-ins in test_device_rows.py and its siblings.
    """
    marks = metafunc.definition.iter_markers("parametrize")
    if "backend" in metafunc.fixturenames and not any("backend" in mark.args[0] for mark in marks):
        from alibi_kernels import registry

        names = [row.name for row in registry.BACKENDS if row.device in (None, "CPU")]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The symbols of the kernels that run in PyNative mode."""
    from alibi_kernels import custom

    seen: list[str] = []
    inner = custom.Operator.__call__

    def counting(self: Any, *operands: Any) -> Any:
        seen.append(self.reg_op_name)
        return inner(self, *operands)

    monkeypatch.setattr(custom.Operator, "__call__", counting)
    return seen


@pytest.fixture
def on_ascend(ms: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the device target were Ascend, without CANN; MindSpore itself stays on the CPU."""
    from alibi_kernels import ascend, ops, registry, rows

    monkeypatch.setattr(rows, "device_target", lambda: "Ascend")
    for name in ("ASCEND_OPP_PATH", "ASCEND_CUSTOM_OPP_PATH", "ALIBI_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    caches = (ascend._op, ascend._forward, ops._cached_plan, registry.warn_once)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def op_package(on_ascend: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A fake CANN with our op package installed; returns the folder where it is."""
    from tests import fake_cann

    monkeypatch.setenv("ASCEND_OPP_PATH", fake_cann.install(tmp_path / "cann"))
    return tmp_path / "cann"


@pytest.fixture
def backend(request: pytest.FixtureRequest, ms: Any) -> str:
    """The name of a backend that runs here; the others are skipped, with the registry's reasons."""
    from alibi_kernels import registry

    x = contract.Spec((1, 1, 4, 8), "float32")
    probe = contract.validate_attention(x, x, x, contract.Spec((1,), "float32"))
    row = next(row for row in registry.BACKENDS if row.name == request.param)
    reasons = row.not_supported_reasons(probe)
    if reasons:
        pytest.skip(f"backend {row.name}: " + "; ".join(reasons))
    return row.name
