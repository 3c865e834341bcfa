"""The emulated device, built once per session."""

from __future__ import annotations

import pytest

from tests.ascend import device as emulated


@pytest.fixture(scope="session")
def device() -> emulated.Device:
    if emulated.CXX is None:
        pytest.skip("no g++: the Ascend kernels are compiled against the emulator with it")
    return emulated.Device(emulated.build_cached())
