"""Spans that are out of range, which nobody checks in a compiled graph: the kernels clamp them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.ascend import test_backward, test_forward, test_weights
from tests.ascend.device import Device
from tests.cases import Case, Inputs

FAR = 2**29 - 1  # the largest position of a first row
SPANS = (  # given, taken for
    ((0, 400, 147), (0, 200, 147)),
    ((-300, 200, 147), (0, 200, 147)),
    ((150, 100, 147), (150, 150, 147)),
    ((400, 500, 147), (200, 200, 147)),
    ((-(2**31), 2**31 - 1, 100), (0, 200, 100)),
    ((2**31 - 1, -(2**31), 100), (200, 200, 100)),
    ((0, 200, 2**31 - 1), (0, 200, FAR)),
    ((0, 200, -(2**31)), (0, 200, -FAR)),
)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("given", "taken"), SPANS)
def test_spans_out_of_range(
    device: Device, given: tuple[int, int, int], taken: tuple[int, int, int], causal: bool
) -> None:
    """All four ops: the results of the nearest valid span, and nothing read outside the tensors."""
    case = Case("", 1, 2, 1, 3, 200, 24, causal, spans=(taken,))

    def bad(x: Inputs) -> Inputs:
        return replace(x, spans=np.array([given], np.int32))

    p, w = test_backward.problem(case, "float16"), test_weights.problem(case, "float16")
    x = p.inputs
    results = [
        (
            *test_forward.forward(device, case, y)[:2],
            *test_backward.backward(device, case, p._replace(inputs=y))[:4],
            device.weights(y.q, y.k, y.slopes, spans=y.spans, **case.options).p,
            *test_weights.backward(device, case, w._replace(inputs=y))[:3],
        )
        for y in (x, bad(x))
    ]
    for got, want in zip(*results, strict=True):
        assert got.tobytes() == want.tobytes()
