"""alibi_kernels.native as a Python interface: views, outputs, errors, the GIL, no MindSpore.

Whether the numbers are right for every size and mode is the business of the other files here.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import DTYPES, NUMPY_DTYPES, SMALL, Case, make_dp, make_inputs
from tests.compare import EPSILON, assert_close

CASE = Case("binding", 2, 4, 2, 9, 13, 8)
BSND = Case("binding-BSND", 2, 4, 2, 9, 13, 8, layout="BSND")

# The bindings add no error of their own, so a generous bound will do: these inputs give results of
# size 10 at most, and a gradient passes through results that were rounded to the dtype.
BOUND = {dtype: 64 * epsilon for dtype, epsilon in EPSILON.items()}


def forward(case: Case, x: Any, **changes: Any) -> tuple[Any, Any]:
    return native.attention_forward(
        x.q, x.k, x.v, x.slopes, **{**case.options, "spans": x.spans, **changes}
    )


def backward(case: Case, x: Any, out: Any, lse: Any, **changes: Any) -> Any:
    options = {**case.options, "spans": x.spans, "dlse": x.dlse, **changes}
    return native.attention_backward(x.q, x.k, x.v, x.slopes, out, lse, x.dout, **options)


def nan_like(x: Any, **changes: Any) -> Any:
    return np.full_like(x, np.nan, **changes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_mode_reaches_the_kernels(case: Case, dtype: str) -> None:
    """Every argument arrives: a layout, mode or span that got lost would be far off."""
    x = make_inputs(case, dtype)
    options = {**case.options, "spans": x.spans}
    p, dp = native.attention_weights(x.q, x.k, x.slopes, **options), make_dp(case, dtype)
    out, lse = forward(case, x)
    got = (
        *(out, lse, *backward(case, x, out, lse), p),
        *native.attention_weights_backward(x.q, x.k, x.slopes, p, dp, **options),
    )
    truth = (
        *oracle.attention(x.q, x.k, x.v, x.slopes, **options),
        *oracle.attention_grad(x.q, x.k, x.v, x.slopes, x.dout, x.dlse, **options),
        oracle.weights(x.q, x.k, x.slopes, **options),
        *oracle.weights_grad(x.q, x.k, x.slopes, dp, **options),
    )
    gradients = ("dq", "dk", "dslopes")
    names = ("out", "lse", "dq", "dk", "dv", "dslopes", "p", *(f"weights {x}" for x in gradients))
    for name, a, b in zip(names, got, truth, strict=True):
        largest = np.abs(b[np.isfinite(b)]).max(initial=1.0)
        assert_close(a, b, BOUND[dtype] * largest, f"{name}, {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_projection_without_a_copy(dtype: str) -> None:
    """q, k, v read from, and their gradients written into, one [B, S, 3, H, D] array each."""
    case = Case("packed", 2, 4, 4, 11, 11, 8, layout="BSND")
    x = make_inputs(case, dtype)
    packed = np.stack([x.k, x.q, x.v], axis=2)
    k, q, v = (packed[:, :, n] for n in range(3))
    out, lse = native.attention_forward(q, k, v, x.slopes, **case.options)
    expected, expected_lse = forward(case, x)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(lse, expected_lse)

    dpacked = nan_like(packed)
    into = dpacked[:, :, 1], dpacked[:, :, 0], dpacked[:, :, 2], None
    grads = native.attention_backward(
        q, k, v, x.slopes, out, lse, x.dout, grads=into, **case.options
    )
    for got, want in zip(grads, backward(case, x, out, lse, dlse=None), strict=True):
        np.testing.assert_array_equal(got, want)
    assert all(a is b for a, b in zip(grads[:3], into[:3], strict=True))
    assert not np.isnan(dpacked.astype(np.float32)).any()


VIEWS: dict[str, Callable[[Any], Any]] = {
    "reversed heads": lambda x: x[:, ::-1],
    "every second row": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
    "part of the last axis": lambda x: np.concatenate([x, x], axis=3)[..., : x.shape[3]],
    "one batch item, broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "other order of the axes": lambda x: x.transpose(2, 1, 0, 3).copy().transpose(2, 1, 0, 3),
    "offset by one element": lambda x: np.concatenate([x.ravel()[:1], x.ravel()])[1:].reshape(
        x.shape
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_any_strides(view: Callable[[Any], Any], dtype: str) -> None:
    x = make_inputs(CASE, dtype)
    q, k, v = view(x.q), view(x.k), view(x.v)
    got = native.attention_forward(q, k, v, x.slopes)
    want = native.attention_forward(q.copy(), k.copy(), v.copy(), x.slopes)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


def unaligned(x: Any) -> Any:
    """The same numbers, one byte further."""
    return np.frombuffer(b"\0" + x.tobytes(), np.int8)[1:].view(x.dtype).reshape(x.shape)


def test_vectors_may_lie_anywhere() -> None:
    """They are small, and copied where the kernels could not read them."""
    x, spans = make_inputs(CASE), np.array([[0, 13, 4], [1, 12, 4]], np.int32)
    out, lse = forward(CASE, x, spans=spans)
    want = backward(CASE, x, out, lse, spans=spans)
    for moved in (unaligned, lambda v: np.repeat(v, 2, axis=-1)[..., ::2]):
        y = replace(x, slopes=moved(x.slopes))
        got = backward(CASE, y, out, moved(lse), spans=moved(spans), dlse=moved(x.dlse))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_inputs_are_not_copied() -> None:
    """NumPy reports its allocations to tracemalloc: a copy of q, k or v would show."""
    packed = np.zeros((2, 4096, 3, 4, 64), np.float32)  # 25 MB
    x = packed[:, :8, 0], packed[:, :, 1], packed[:, :, 2]
    out = np.empty((2, 8, 4, 64), np.float32)
    tracemalloc.start()
    try:
        native.attention_forward(*x, [0.5] * 4, input_layout="BSND", out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20, f"{peak} bytes were allocated"


def test_results_go_into_the_arrays_given_and_nowhere_else() -> None:
    x = make_inputs(BSND)
    expected, expected_lse = forward(BSND, x)
    frame = np.full((4, 11, 6, 10), np.nan, np.float32)
    inside = frame[1:3, 1:10, 1:5, 1:9]
    lse = np.full((2, 4, 9), np.nan, np.float32)
    got = forward(BSND, x, out=(inside, lse))
    assert got[0] is inside
    assert got[1] is lse
    np.testing.assert_array_equal(inside, expected)
    np.testing.assert_array_equal(lse, expected_lse)
    inside[:] = np.nan
    assert np.isnan(frame).all(), "the kernel wrote outside its output"


def test_out_may_be_one_array() -> None:
    x = make_inputs(CASE)
    out = nan_like(x.q)
    assert forward(CASE, x, out=out)[0] is out
    assert not np.isnan(out).any()


def test_stats_count_tiles() -> None:
    x = make_inputs(CASE)
    stats: dict[str, int] = {}
    forward(CASE, x, prune=False, stats=stats)
    assert stats["tiles_visited"] == stats["tiles_allowed"] >= 1


def test_slopes_may_be_a_list() -> None:
    x = make_inputs(CASE)
    want, _ = forward(CASE, x)
    got, _ = native.attention_forward(x.q, x.k, x.v, x.slopes.tolist(), **CASE.options)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    q, k = np.ones(shape, np.float32), np.ones((shape[0], 2, 5, 4), np.float32)
    out, lse = native.attention_forward(q, k, k, [0.5, 0.25])
    assert out.shape == shape
    assert lse.shape == shape[:3]


def test_isas() -> None:
    rows = native.isas()
    assert rows[-1] == {"name": "scalar", "built": True, "supported": True}
    x = make_inputs(CASE)
    for row in rows:
        if row["built"] and row["supported"]:
            forward(CASE, x, isa=row["name"])
        else:
            with pytest.raises(ValueError, match="isa must be None or one of"):
                forward(CASE, x, isa=row["name"])


# Errors: (changed arguments of a valid call, exception, how the text starts).


def q_like(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not an array": (
        {"q": [[1.0]]},
        TypeError,
        "attention_forward: q must be a numpy.ndarray, got",
    ),
    "float64": (
        {"q": q_like((2, 4, 9, 8), np.float64)},
        TypeError,
        "attention_forward: q has dtype float64",
    ),
    "foreign byte order": (
        {"q": q_like((2, 4, 9, 8), ">f4")},
        TypeError,
        "attention_forward: q has dtype >f4",
    ),
    "head_dim": (
        {"k": q_like((2, 2, 13, 4))},
        ValueError,
        "attention_forward: k has head_dim 4 but q has 8",
    ),
    "last axis": (
        {"q": q_like((2, 4, 9, 16))[..., ::2]},
        ValueError,
        "attention_forward: q has strides of (2304, 576, 64, 8) bytes for elements of 4; its last "
        "axis must be contiguous, and its elements aligned. Pass numpy.ascontiguousarray(q).",
    ),
    "unaligned": (
        {"q": np.zeros(2305, np.int8)[1:].view(np.float32).reshape(2, 4, 9, 8)},
        ValueError,
        "attention_forward: q has strides of (1152, 288, 32, 4) bytes for elements of 4; its last",
    ),
    "slopes of the wrong length": (
        {"slopes": q_like((3,))},
        ValueError,
        "attention_forward: slopes must have shape (4,)",
    ),
    "slopes in float64": (
        {"slopes": q_like((4,), np.float64)},
        TypeError,
        "attention_forward: slopes has dtype float64",
    ),
    "slopes not finite": (
        {"slopes": np.array([1, np.nan, 1, 1], np.float32)},
        ValueError,
        "attention_forward: slopes[1] is nan",
    ),
    "spans as a list": (
        {"spans": [[0, 13, 4], [0, 13, 4]]},
        TypeError,
        "attention_forward: spans must be a numpy.ndarray, got",
    ),
    "spans out of range": (
        {"spans": np.array([[0, 13, 4], [0, 14, 4]], np.int32)},
        ValueError,
        "attention_forward: spans[1] = (0, 14, 4)",
    ),
    "layout": ({"input_layout": "BHSD"}, ValueError, "attention_forward: input_layout must be one"),
    "bias": ({"bias": "alibi"}, ValueError, "attention_forward: bias must be one of"),
    "out of another shape": (
        {"out": q_like((2, 4, 9, 9))},
        ValueError,
        "attention_forward: out must have shape (2, 4, 9, 8), but out.shape = (2, 4, 9, 9).",
    ),
    "out of another dtype": (
        {"out": q_like((2, 4, 9, 8), np.float16)},
        TypeError,
        "attention_forward: out has dtype float16; it must be float32. Cast out first.",
    ),
    "out read-only": (
        {"out": np.broadcast_to(np.float32(0), (2, 4, 9, 8)).copy()},
        ValueError,
        "attention_forward: out is read-only; pass an array that can be written to.",
    ),
    "lse not contiguous": (
        {"out": (None, q_like((2, 4, 18))[..., ::2])},
        ValueError,
        "attention_forward: lse must be C-contiguous to be written to, but lse.strides = "
        "(288, 72, 8).",
    ),
    "lse unaligned": (
        {"out": (None, np.zeros(289, np.int8)[1:].view(np.float32).reshape(2, 4, 9))},
        ValueError,
        "attention_forward: lse has strides of (144, 36, 4) bytes for elements of 4; its last axis",
    ),
    "lse not an array": (
        {"out": (None, [0.0])},
        TypeError,
        "attention_forward: lse must be a numpy.ndarray, got",
    ),
    "threads": (
        {"threads": 0},
        ValueError,
        "attention_forward: threads must be an integer of at least 1, or None for the OpenMP "
        "default; got 0 (int).",
    ),
    "isa": (
        {"isa": "sse9"},
        ValueError,
        "attention_forward: isa must be None or one of",
    ),
}
BAD["out read-only"][0]["out"].flags.writeable = False


@pytest.mark.parametrize("name", BAD)
def test_errors_before_anything_is_computed(name: str) -> None:
    changes, kind, text = BAD[name]
    x = make_inputs(CASE)
    out = nan_like(x.q)
    arguments = {"q": x.q, "k": x.k, "v": x.v, "slopes": x.slopes, "out": out, **changes}
    with pytest.raises(kind) as raised:
        native.attention_forward(**arguments)
    assert str(raised.value).startswith(text)
    assert np.isnan(out).all(), "something was written"


def test_grads_of_the_wrong_length() -> None:
    x = make_inputs(CASE)
    out, lse = forward(CASE, x)
    with pytest.raises(ValueError, match=r"tuple of 4 arrays or None, dq, dk, dv, dslopes; got a"):
        backward(CASE, x, out, lse, grads=(None, None))
    with pytest.raises(ValueError, match=r"out must be a tuple of 2 arrays or None, out, lse; got"):
        forward(CASE, x, out=(out,))


def test_vectors_and_gradients_of_another_kind() -> None:
    x = make_inputs(CASE)
    out, lse = forward(CASE, x)
    with pytest.raises(ValueError, match=r"lse must have shape \(2, 4, 9\), but lse.shape = "):
        backward(CASE, x, out, lse[..., :5])
    with pytest.raises(TypeError, match=r"dlse has dtype float64; it must be float32. Cast dlse"):
        backward(CASE, x, out, lse, dlse=lse.astype(np.float64))
    p = native.attention_weights(x.q, x.k, x.slopes)
    with pytest.raises(ValueError, match=r"dp must have shape \(2, 4, 9, 13\)"):
        native.attention_weights_backward(x.q, x.k, x.slopes, p, p[:1])


def test_mindspore_is_not_imported() -> None:
    program = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mindspore":
            raise ImportError("mindspore is blocked")
sys.meta_path.insert(0, Blocker())
import numpy as np
from alibi_kernels import native
x = np.ones((1, 1, 3, 4), np.float32)
assert (native.attention_forward(x, x, x, [0.5])[0] == 1).all()
assert "mindspore" not in sys.modules
try:
    import mindspore
except ImportError:
    print("done")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "done\n", result.stderr


def test_another_python_thread_runs_during_a_kernel() -> None:
    """With the GIL held, the main thread would stand still for as long as the kernel runs."""
    q = np.ones((1, 8, 2048, 64), np.float32)
    spans = []

    def work() -> None:
        start = time.perf_counter()
        native.attention_forward(q, q, q, [0.0] * 8, prune=False, threads=1, isa="scalar")
        spans.append((start, time.perf_counter()))

    thread = threading.Thread(target=work)
    ticks = [time.perf_counter()]
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    thread.join()
    start, end = spans[0]
    longest = max(b - a for a, b in pairwise(ticks))
    assert longest < 0.5 * (end - start), f"stood still {longest:.3f} s of {end - start:.3f} s"


def test_bfloat16_is_the_ml_dtypes_type() -> None:
    x = make_inputs(CASE, "bfloat16")
    assert x.q.dtype == NUMPY_DTYPES["bfloat16"] == ml_dtypes.bfloat16
    assert forward(CASE, x)[0].dtype == ml_dtypes.bfloat16
