"""Fixtures of all tests. Nothing here imports MindSpore until a test asks for it."""

from __future__ import annotations

from collections.abc import Callable
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


@pytest.fixture(params=["pynative", "graph"])
def mode(
    request: pytest.FixtureRequest, ms: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Each test that takes it runs twice: `mode(f)` is f itself, then f compiled to a graph."""
    return ms.jit if request.param == "graph" else (lambda f: f)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take `backend` run once per row of the registry."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "backend" in metafunc.fixturenames and not any("backend" in mark.args[0] for mark in marks):
        from alibi_kernels import registry

        names = [row.name for row in registry.BACKENDS]
        metafunc.parametrize("backend", names, indirect=True)


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
