"""Calls alike are checked once; what only looks alike, or no shape tells, is checked again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests.cases import Case, make_inputs

CASE = Case("binding", 2, 4, 2, 9, 13, 8)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"slopes": [True, 1.0, 1.0, 1.0]},
            "attention_forward: slopes must be a float32 Tensor, or",
        ),
        ({"causal": 1}, "attention_forward: causal must be True or False, got 1"),
        ({"threads": True}, "attention_forward: threads must be an integer"),
        (
            {"slopes": np.array([1, 1, np.inf, 1], np.float32)},
            "attention_forward: slopes[2] is inf",
        ),
        (
            {"q": np.zeros((2, 4, 9, 16), np.float32)[..., ::2]},
            "attention_forward: q has strides of",
        ),
    ],
)
def test_a_call_that_looks_like_a_remembered_one(change: dict[str, Any], text: str) -> None:
    x = make_inputs(CASE)
    arguments = {"q": x.q, "k": x.k, "v": x.v, "slopes": x.slopes, "threads": 1}
    native.attention_forward(**arguments)
    native.attention_forward(**{**arguments, "slopes": [1, 1.0, 1.0, 1.0]})
    out = np.full_like(x.q, np.nan)
    with pytest.raises((TypeError, ValueError)) as raised:
        native.attention_forward(**{**arguments, "out": out, **change})
    assert str(raised.value).startswith(text)
    assert np.isnan(out).all(), "something was written"


def test_values_that_change_in_place_are_checked_again() -> None:
    x = make_inputs(CASE)
    spans = np.array([[0, 13, 4]] * 2, np.int32)
    native.attention_forward(x.q, x.k, x.v, x.slopes, spans=spans)
    spans[1, 1] = 14
    with pytest.raises(ValueError, match=r"spans\[1\] = \(0, 14, 4\)"):
        native.attention_forward(x.q, x.k, x.v, x.slopes, spans=spans)
    x.slopes[3] = np.nan
    with pytest.raises(ValueError, match=r"slopes\[3\] is nan"):
        native.attention_forward(x.q, x.k, x.v, x.slopes)
