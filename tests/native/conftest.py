"""What changes inside the CPU library for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.native.plain import choose_streaming

OF_THIS_CPU = -1


@pytest.fixture(params=range(choose_streaming(OF_THIS_CPU)))
def streaming(request: pytest.FixtureRequest) -> Iterator[None]:
    """Decode steps ask memory as on each CPU of csrc/cpu/streaming.cc: blocks have other sizes."""
    choose_streaming(request.param)
    yield
    choose_streaming(OF_THIS_CPU)
