"""Key norms that the caller keeps: what they are, and that they replace those a call computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from tests.cases import Case, make_inputs
from tests.native.test_forward import forward


@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
def test_norms_of_a_cache_that_grows(layout: str) -> None:
    """Appending raises entries in place; the result is what one call over all keys gives."""
    case = Case("", 2, 2, 2, 1, 77, 24, layout=layout)
    k = make_inputs(case, "bfloat16").k
    axis = 2 if layout == "BNSD" else 1
    norms = np.zeros((2, 2, 5), np.float32)
    for start, end in ((0, 20), (20, 21), (21, 64), (64, 77)):
        part = np.take(k, np.arange(start, end), axis=axis)
        given = native.key_norms(part, start=start, norms=norms, input_layout=layout)
        assert given is norms
    assert np.array_equal(norms, native.key_norms(k, input_layout=layout))
    exact = np.linalg.norm(k.astype(np.float64), axis=3)
    exact = exact if layout == "BNSD" else exact.transpose(0, 2, 1)
    blocks = [exact[..., i : i + 16].max(axis=2) for i in range(0, 77, 16)]
    assert np.abs(norms / np.stack(blocks, axis=2) - 1).max() < 2.0**-20


def test_norms_serve_the_tiles_too() -> None:
    """More rows than a decode step has: the norms kept are as good as those computed."""
    case = Case("", 1, 4, 2, 300, 1500, 32)
    x = make_inputs(case)
    stats: list[dict[str, int]] = [{}, {}]
    norms = native.key_norms(x.k)
    out, lse = forward(case, x, stats=stats[0], key_norms=norms)
    want, want_lse = forward(case, x, stats=stats[1])
    assert stats[0] == stats[1]
    assert stats[0]["tiles_visited"] < stats[0]["tiles_allowed"]
    assert np.array_equal(out, want)
    assert np.array_equal(lse, want_lse)


def test_norms_of_the_wrong_shape_or_dtype() -> None:
    case = Case("", 1, 4, 2, 1, 40, 8)
    x = make_inputs(case)
    norms = native.key_norms(x.k)
    for wrong, error in (
        (norms[:, :, :2], ValueError),
        (norms[:, [0, 0, 1, 1]], ValueError),
        (norms.astype(np.float64), TypeError),
        (norms.tolist(), TypeError),
    ):
        with pytest.raises(error, match="key_norms"):
            forward(case, x, key_norms=wrong)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"k": [[1.0]]}, TypeError, "key_norms: k must be a"),
        ({"k": np.zeros((2, 3, 4), np.float32)}, ValueError, "key_norms: k must have 4 axes"),
        ({"input_layout": "BHSD"}, ValueError, "input_layout must be one of"),
        ({"start": -1}, ValueError, "start must be an integer of at least 0, got -1."),
        ({"start": 1.0}, ValueError, "start must be an integer of at least 0, got 1.0."),
        ({"norms": [0.0]}, TypeError, "key_norms: norms must be a"),
        (
            {"norms": np.zeros((1, 2, 2), np.float32)},
            ValueError,
            r"norms must have shape \(1, 2, at least 3\), but norms.shape = \(1, 2, 2\)",
        ),
        ({"norms": np.zeros((1, 2, 3))}, TypeError, "norms has dtype float64; it must be float32"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        native.key_norms(**{"k": np.zeros((1, 2, 40, 8), np.float32), **options})
