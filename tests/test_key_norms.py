"""key_norms in MindSpore: what norms are, and that all that is written to a cache raises them.

The NumPy function of the same name is tested in native/test_key_norms.py, and serves as the rival.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alibi_kernels import key_norms, native
from tests.cases import DTYPES, Case, make_inputs
from tests.compare import to_float64
from tests.custom_tools import normal, tensor


@pytest.fixture(params=["kernel", "operators"])
def made_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with the kernel, and with the operators that replace it elsewhere."""
    if request.param == "operators":
        monkeypatch.setenv("ALIBI_BACKEND", "reference")


def exact_norms(k: Any, layout: str) -> Any:
    norm = np.linalg.norm(to_float64(k), axis=3)
    norm = norm if layout == "BNSD" else norm.transpose(0, 2, 1)
    return np.stack([norm[..., i : i + 16].max(2) for i in range(0, norm.shape[2], 16)], 2)


@pytest.mark.usefixtures("made_by")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
def test_what_norms_are(ms: Any, mode: Any, layout: str, dtype: str) -> None:
    """The proof allows for 2^-12 (docs/maths.md): enlarged by that, they exceed the exact ones."""
    case = Case("", 2, 3, 3, 1, 77, 40, layout=layout)
    k = make_inputs(case, dtype).k
    k[1] *= 30

    def make(k):  # type: ignore[no-untyped-def]
        return key_norms(k, input_layout=layout)

    got = mode(make)(tensor(ms, k))
    assert got.dtype == ms.float32
    assert np.abs(got.asnumpy() / exact_norms(k, layout) - 1).max() < 2.0**-20


@pytest.mark.usefixtures("made_by")
@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
def test_norms_are_raised(ms: Any, mode: Any, layout: str) -> None:
    """In parts, at positions of each item's own, over what was there: what a cache does."""
    case = Case("", 2, 2, 2, 1, 93, 24, layout=layout)
    k = make_inputs(case).k
    axis = 2 if layout == "BNSD" else 1
    want = np.zeros((2, 2, 8), np.float32)

    def append(part, start, norms):  # type: ignore[no-untyped-def]
        return key_norms(part, start=start, norms=norms, input_layout=layout)

    norms, run = ms.Tensor(want), mode(append)
    for begin, end, starts in (
        (0, 20, (0, 0)),
        (20, 21, (20, 99)),
        (21, 93, (21, 5)),
        (4, 5, (0, 127)),
    ):
        part = np.take(k, range(begin, end), axis)
        for b, start in enumerate(starts):
            item = want[b : b + 1]
            native.key_norms(part[b : b + 1], start=start, norms=item, input_layout=layout)
        before = norms.asnumpy().copy()
        raised = run(tensor(ms, part), ms.Tensor(np.int32(starts)), norms)
        assert np.array_equal(norms.asnumpy(), before), "the norms given were changed"
        norms = raised
    np.testing.assert_allclose(norms.asnumpy(), want, rtol=2.0**-20)
    whole = tensor(ms, k)
    for start in (0, 5, 31):
        fixed = append(whole, start, None)
        assert fixed.shape == (2, 2, -(-(start + 93) // 16))
        same = append(whole, ms.Tensor(np.int32([start, start])), fixed * 0.0)
        np.testing.assert_array_equal(fixed.asnumpy(), same.asnumpy())


@pytest.mark.usefixtures("made_by")
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_keys_without_a_norm_are_never_left_out(ms: Any, value: float) -> None:
    k = np.ones((1, 1, 40, 4), np.float32)
    k[0, 0, 17, 2] = value
    assert key_norms(tensor(ms, k)).asnumpy().tolist() == [[[2.0, np.inf, 2.0]]]


@pytest.mark.usefixtures("made_by")
def test_numpy_integers_are_integers(ms: Any, mode: Any) -> None:
    """They were refused: "start must be an integer of at least 0, got 5"."""
    start, k = np.int64(5), normal(ms, 1, 2, 40, 8)

    def make(k):  # type: ignore[no-untyped-def]
        return key_norms(k, start=start)

    np.testing.assert_array_equal(mode(make)(k).asnumpy(), key_norms(k, start=5).asnumpy())


@pytest.mark.usefixtures("made_by")
def test_no_keys(ms: Any, mode: Any) -> None:
    norms = normal(ms, 2, 3, 4)

    def append(k, norms):  # type: ignore[no-untyped-def]
        return key_norms(k, start=5, norms=norms)

    got = mode(append)(ms.Tensor(np.zeros((2, 3, 0, 8), np.float32)), norms)
    np.testing.assert_array_equal(got.asnumpy(), norms.asnumpy())


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"k": [1.0]}, TypeError, "k must be a mindspore.Tensor, got [1.0] (list)"),
        ({"k": (2, 40, 8)}, ValueError, "k must have 4 axes (batch, heads, length, head_dim)"),
        ({"k": (1, 2, 40, 0)}, ValueError, "k has head_dim 0"),
        ({"k": np.float64}, TypeError, "k has dtype float64; k must be float32, float16 or"),
        ({"input_layout": "BHSD"}, ValueError, 'input_layout must be one of "BNSD", "BSND"'),
        ({"start": -1}, ValueError, "start must be an integer of at least 0, got -1 (int)."),
        ({"start": 1.0}, ValueError, "start must be an integer of at least 0, got 1.0 (float)."),
        ({"start": True}, ValueError, "start must be an integer of at least 0, got True (bool)."),
        ({"start": np.int32([0])}, ValueError, "start is a Tensor and norms is None"),
        (
            {"start": np.int64([0]), "norms": 3},
            TypeError,
            "start has dtype int64; it must be int32",
        ),
        ({"start": np.int32([0, 0]), "norms": 3}, ValueError, "start must have shape (1,), one"),
        ({"start": np.int32([9]), "norms": 3}, ValueError, "start[0] is 9, but 40 keys that have"),
        ({"start": np.int32([-1]), "norms": 3}, ValueError, "start[0] is -1"),
        ({"start": 9, "norms": 3}, ValueError, "norms must have shape (1, 2, at least 4)"),
        ({"norms": 2}, ValueError, "norms must have shape (1, 2, at least 3), a norm for every"),
        ({"norms": [0.0]}, TypeError, "norms must be a mindspore.Tensor, got [0.0] (list)"),
        ({"norms": np.float16}, TypeError, "norms has dtype float16; it must be float32, because"),
    ],
)
def test_bad_arguments(ms: Any, changes: dict[str, Any], error: type[Exception], text: str) -> None:
    """A tuple is a shape, a type a dtype, and a number of norms their blocks."""
    arguments: dict[str, Any] = {"k": np.zeros((1, 2, 40, 8), np.float32), **changes}
    if isinstance(arguments["k"], tuple):
        arguments["k"] = np.zeros(arguments["k"], np.float32)
    if arguments["k"] is np.float64:
        arguments["k"] = np.zeros((1, 2, 40, 8))
    blocks = arguments.get("norms")
    if blocks is np.float16:
        arguments["norms"] = np.zeros((1, 2, 3), np.float16)
    elif isinstance(blocks, int):
        arguments["norms"] = np.zeros((1, 2, blocks), np.float32)
    arrays = {n: ms.Tensor(x) for n, x in arguments.items() if isinstance(x, np.ndarray)}
    with pytest.raises(error) as caught:
        key_norms(**{**arguments, **arrays})
    assert str(caught.value).startswith("key_norms: ")
    assert text in str(caught.value)
