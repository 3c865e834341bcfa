"""alibi_slopes against published values, the authors' recursion, and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alibi_kernels import alibi_attention, alibi_slopes
from tests.custom_tools import normal, run_python

# Head counts of published models, with the slopes that their code prints.
PUBLISHED = {
    1: [2**-8],
    2: [2**-4, 2**-8],
    6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8],
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    12: [
        *(1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256),
        *(0.7071067811865476, 0.35355339059327384, 0.17677669529663692, 0.08838834764831849),
    ],
}


@pytest.mark.parametrize("heads", PUBLISHED)
def test_paper_slopes_are_the_published_ones(heads: int) -> None:
    slopes = alibi_slopes(heads)
    assert slopes.dtype == np.float32
    assert np.array_equal(slopes, np.array(PUBLISHED[heads], np.float32))


def _by_recursion(heads: int) -> list[float]:
    """The definition in words: powers of two are geometric, others borrow from twice their size."""
    if math.log2(heads).is_integer():
        first = 2.0 ** (-8.0 / heads)
        return [first ** (i + 1) for i in range(heads)]
    below = 2 ** math.floor(math.log2(heads))
    return _by_recursion(below) + _by_recursion(2 * below)[0::2][: heads - below]


@pytest.mark.parametrize("heads", range(1, 130))
def test_paper_slopes_follow_the_recursion(heads: int) -> None:
    # The recursion multiplies in float64, so it may fall on the other side of a float32 rounding.
    np.testing.assert_allclose(alibi_slopes(heads), _by_recursion(heads), rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 71, 112])
def test_geometric_slopes(heads: int) -> None:
    want = np.array([2.0 ** (-8.0 * i / heads) for i in range(1, heads + 1)], np.float32)
    assert np.array_equal(alibi_slopes(heads, "geometric"), want)
    if heads & (heads - 1) == 0:
        assert np.array_equal(alibi_slopes(heads, "paper"), want)


@pytest.mark.parametrize("kind", ["paper", "geometric"])
def test_max_bias_is_the_exponent_of_the_flattest_head(kind: str) -> None:
    for max_bias in (4, 16.0, 0.5):
        assert alibi_slopes(8, kind, max_bias)[-1] == np.float32(2.0**-max_bias)
        default = alibi_slopes(12, kind).astype(np.float64)
        np.testing.assert_allclose(
            alibi_slopes(12, kind, max_bias), default ** (max_bias / 8), rtol=1e-6
        )


def test_in_a_graph(ms: Any, mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant of the compilation: graphs once failed on the checks, with an unrelated text."""
    monkeypatch.chdir(tmp_path)  # MindSpore writes a dump of the graph that failed
    q = normal(ms, 1, 6, 9, 8)

    def inside(q):  # type: ignore[no-untyped-def]
        return alibi_attention(q, q, q, alibi_slopes(q.shape[1], max_bias=4))

    def without_heads(q):  # type: ignore[no-untyped-def]
        return alibi_attention(q, q, q, alibi_slopes(q.shape[1] - 6))

    want = alibi_attention(q, q, q, alibi_slopes(6, max_bias=4)).asnumpy()
    np.testing.assert_array_equal(mode(inside)(q).asnumpy(), want)
    with pytest.raises(ValueError, match="alibi_slopes: num_heads must be at least 1, got 0"):
        mode(without_heads)(q)


def test_in_a_graph_whatever_was_imported_first(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from alibi_kernels import alibi_slopes; first = alibi_slopes(4).tolist()\n"
        "import mindspore as ms, numpy as np; from alibi_kernels import alibi_attention\n"
        "class Net(ms.nn.Cell):\n"
        "    def construct(self, q):\n"
        "        return alibi_attention(q, q, q, alibi_slopes(4))\n"
        "ms.set_context(mode=ms.GRAPH_MODE)\n"
        "q = ms.Tensor(np.ones((1, 4, 3, 8), np.float32))\n"
        "print(Net()(q).shape, first == alibi_slopes(4).tolist())\n"
    )
    done = run_python(script, tmp_path)
    assert done.stdout.strip() == "(1, 4, 3, 8) True", done.stderr


def test_numpy_integers_are_integers() -> None:
    assert np.array_equal(alibi_slopes(np.int64(8)), alibi_slopes(8))


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        ((8.0,), TypeError, "num_heads must be an integer, got 8.0 (float)."),
        ((True,), TypeError, "num_heads must be an integer, got True (bool)."),
        ((None,), TypeError, "num_heads must be an integer, got None."),
        ((0,), ValueError, "num_heads must be at least 1, got 0."),
        (
            (8, "alibi"),
            ValueError,
            'kind must be one of "paper", "geometric"; got \'alibi\' (str).',
        ),
        ((8, "paper", "8"), TypeError, "max_bias must be a real number, got '8' (str)."),
        ((8, "paper", 0), ValueError, "max_bias must be finite and above 0, got 0."),
        ((8, "paper", math.inf), ValueError, "max_bias must be finite and above 0, got inf."),
    ],
)
def test_bad_input(args: tuple[Any, ...], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        alibi_slopes(*args)
    assert str(caught.value) == f"alibi_slopes: {message}"
