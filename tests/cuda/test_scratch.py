"""Where scratch memory comes from: csrc/cuda/launch.cuh, on the model of the CUDA runtime.

The model has no default pool, and objects when a pool is made while a capture could forbid it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cases import Case, make_inputs
from tests.cuda.model import Calls, Model

# Rows of 10 bytes: the inputs are copied to scratch, besides the norms and the row statistics.
CASE = Case("scratch", 1, 2, 1, 20, 40, 5)


@pytest.fixture
def devices(model: Model) -> Iterator[Model]:
    """The model, whose current device a test may change."""
    yield model
    model.c.simt_device(0, 0)


def call_twice(model: Model) -> None:
    calls = Calls(model, CASE, "float16", make_inputs(CASE, "float16"))
    for _ in range(2):
        calls.forward()
        calls.backward()


def test_scratch_comes_from_one_pool_that_keeps_it(devices: Model) -> None:
    """It came from the device's default pool, which gives all of it back at every synchronisation:
    the first backward pass after one had to wait for the driver."""
    before = devices.pool(0)["given"]
    call_twice(devices)
    pool = devices.pool(0)
    assert pool["pools"] == 1
    assert pool["kept"] == 2**30
    assert pool["given"] >= before + 2 * (4 + 5)
    assert pool["given"] == pool["back"]
    assert pool["capture_mode"] == 0


def test_each_device_has_a_pool_of_its_own(devices: Model) -> None:
    call_twice(devices)
    first = devices.pool(0)
    devices.c.simt_device(1, 0)
    assert devices.pool(1)["pools"] == 0
    call_twice(devices)
    second = devices.pool(1)
    assert (second["pools"], second["kept"]) == (1, 2**30)
    assert second["given"] == second["back"] > 0
    assert devices.pool(0) == first


def test_a_driver_without_pools_is_reported_and_asked_again(devices: Model) -> None:
    devices.c.simt_device(2, 1)
    with pytest.raises(RuntimeError, match="device: cudaMemPoolCreate: operation not supported"):
        call_twice(devices)
    assert devices.stats()["blocks"] == 0
    assert devices.device_error("float16") == "", "no scratch, no pool"
    devices.c.simt_device(2, 0)
    call_twice(devices)
    assert devices.pool(2)["pools"] == 1
