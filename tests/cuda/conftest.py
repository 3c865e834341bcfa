"""Fixtures of the CUDA tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.cuda import model as cuda_model


@pytest.fixture(scope="session")
def library_of_model() -> cuda_model.Model:
    if shutil.which("g++") is None:
        pytest.skip("the CPU model of the CUDA kernels needs g++")
    return cuda_model.Model(cuda_model.build(flags=cuda_model.QUICK))


@pytest.fixture(scope="session")
def library_of_wide_model(library_of_model: cuda_model.Model) -> cuda_model.Model:
    """Only the largest head size, which the other has not."""
    return cuda_model.Model(cuda_model.build(flags=cuda_model.WIDE))


@pytest.fixture
def model(library_of_model: cuda_model.Model) -> Iterator[cuda_model.Model]:
    """The CUDA kernels on the CPU, in the default schedule."""
    library_of_model.configure()
    yield library_of_model
    library_of_model.release()


def _gpu(library: cuda_model.Model, capability: int) -> Iterator[cuda_model.Model]:
    before, library.capability = library.capability, capability
    library.configure()
    yield library
    library.release()
    library.capability = before


@pytest.fixture
def hopper(library_of_model: cuda_model.Model) -> Iterator[cuda_model.Model]:
    """The same, on a GPU of compute capability 9.0."""
    yield from _gpu(library_of_model, 90)


@pytest.fixture
def turing(library_of_model: cuda_model.Model) -> Iterator[cuda_model.Model]:
    """The same, on a GPU of compute capability 7.5."""
    yield from _gpu(library_of_model, 75)


@pytest.fixture(params=[75, 80, 90], ids="sm{}".format)
def every_gpu(
    library_of_model: cuda_model.Model, request: pytest.FixtureRequest
) -> Iterator[cuda_model.Model]:
    """The same, on a GPU of each kind that has kernels or tiles of its own."""
    yield from _gpu(library_of_model, request.param)
