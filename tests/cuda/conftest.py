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


@pytest.fixture
def model(library_of_model: cuda_model.Model) -> Iterator[cuda_model.Model]:
    """The CUDA kernels on the CPU, in the default schedule."""
    library_of_model.configure()
    yield library_of_model
    library_of_model.release()


@pytest.fixture
def hopper(library_of_model: cuda_model.Model) -> Iterator[cuda_model.Model]:
    """The same, on a GPU of compute capability 9.0."""
    library_of_model.capability = 9
    library_of_model.configure()
    yield library_of_model
    library_of_model.release()
    library_of_model.capability = 8
