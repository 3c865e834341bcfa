"""What changes inside the CPU library for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.native.plain import choose_tuning

OF_THIS_CPU = -1


@pytest.fixture(params=range(choose_tuning(OF_THIS_CPU)))
def tuning(request: pytest.FixtureRequest) -> Iterator[None]:
    """The kernels are tuned as on each CPU of csrc/cpu/tuning.cc."""
    choose_tuning(request.param)
    yield
    choose_tuning(OF_THIS_CPU)
