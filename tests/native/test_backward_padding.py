"""Rows that no gradient reaches, such as padding behind a sequence, cost the backward nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cases import DTYPES, Case, Inputs, make_inputs
from tests.native.float32_rival import attention_gradients
from tests.native.test_backward import ISAS, backward, named, truth_of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
def test_rows_without_gradient_visit_nothing(layout: str, dtype: str) -> None:
    """Rows of padding: their dout is 0, so they pass nothing on, whatever they see."""
    ends = (70, 200, 1)
    spans = tuple((0, end, 0) for end in ends)
    case = Case("", 3, 4, 2, 200, 200, 24, layout=layout, spans=spans)
    x = make_inputs(case, dtype)
    for item, end in enumerate(ends):
        (x.dout[item] if layout == "BSND" else x.dout[item].swapaxes(0, 1))[end:] = 0
    truth = truth_of(case, x)
    rival = attention_gradients(case, x, dtype, np.zeros_like(x.dlse))
    nothing, everything = make_inputs(case, dtype), make_inputs(case, dtype)
    nothing.dout[...] = 0
    for isa in ISAS:
        rival.check(named(backward(case, x, isa=isa)), truth, isa)
        assert visited(case, nothing, isa) == 0
        assert 0 < visited(case, x, isa) < visited(case, everything, isa)
        assert visited(case, nothing, isa, prune=False) == visited(case, x, isa, prune=False)


def visited(case: Case, x: Inputs, isa: str, **options: Any) -> int:
    stats: dict[str, int] = {}
    backward(case, x, isa=isa, stats=stats, **options)
    return stats["tiles_visited"]


def test_rows_that_pass_something_on_are_not_left_out() -> None:
    """A dout of 0 is not enough: dlse, and numbers that are not finite, reach the gradients."""
    case = Case("", 1, 1, 1, 96, 96, 16)
    for isa in ISAS:
        x = make_inputs(case)
        x.dout[...] = 0
        rival = attention_gradients(case, x, "float32", x.dlse)
        rival.check(named(backward(case, x, x.dlse, isa=isa)), truth_of(case, x, x.dlse), isa)
        x.v[0, 0, 5, 3] = np.inf
        assert np.isnan(named(backward(case, x, isa=isa))["dk"]).any()


def test_a_delta_of_zero_is_not_enough() -> None:
    """dout is orthogonal to every value: dS is 0, but dv is not."""
    case = Case("", 1, 1, 1, 96, 96, 2)
    x = make_inputs(case)
    x.v[..., 1] = 0
    x.dout[..., 0] = 0
    rival = attention_gradients(case, x, "float32", np.zeros_like(x.dlse))
    truth = truth_of(case, x)
    assert np.abs(truth["dv"]).max() > 1
    for isa in ISAS:
        rival.check(named(backward(case, x, isa=isa)), truth, isa)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_keys_behind_few_rows_may_hold_anything(rows: int, dtype: str) -> None:
    """A short chunk over a cache that goes on behind it: groups of keys reach past the last row."""
    for q_start in range(8, 16):
        case = Case("", 1, 2, 1, rows, 32, 8, spans=((0, 32, q_start),))
        x, clean = make_inputs(case, dtype), make_inputs(case, dtype)
        x.k[:, :, q_start + rows :] = np.nan
        x.v[:, :, q_start + rows :] = np.inf
        for isa in ISAS:
            want = named(backward(case, clean, clean.dlse, isa=isa))
            for name, got in named(backward(case, x, x.dlse, isa=isa)).items():
                assert got.tobytes() == want[name].tobytes(), f"{name} {isa} {q_start}"
