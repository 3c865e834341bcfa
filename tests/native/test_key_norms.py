"""Key norms that the caller keeps: what they are, and that they replace those a call computes."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alibi_kernels import native
from alibi_kernels._call import _native
from tests.cases import DTYPES, Case, make_inputs
from tests.native.plain import ISAS
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


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_head_dim(dtype: str, isa: str) -> None:
    """Norms of float32 sums; the proof allows for 2^-12, and 257 roundings are 2^-16."""
    for dim in range(1, 257):
        k = make_inputs(Case("", 1, 2, 2, 1, 37, dim), dtype).k
        exact = np.linalg.norm(k.astype(np.float64), axis=3)
        want = np.stack([exact[..., i : i + 16].max(axis=2) for i in (0, 16, 32)], axis=2)
        assert np.abs(native.key_norms(k, isa=isa) / want - 1).max() < 2.0**-20


@pytest.mark.parametrize("isa", ISAS)
def test_any_strides(isa: str) -> None:
    """A part of a cache, heads and keys backwards, a key that stands for all: no copy is made."""
    cache = make_inputs(Case("", 2, 4, 4, 1, 90, 24)).k
    same = np.broadcast_to(cache[:, :, :1], cache.shape)
    for k in (cache[:, 1:3, 7:50, :11], cache[:, ::-1, ::-2], same):
        want = native.key_norms(np.ascontiguousarray(k), isa=isa)
        assert np.array_equal(native.key_norms(k, isa=isa), want)
        backwards = k.transpose(0, 2, 1, 3)
        assert np.array_equal(native.key_norms(backwards, input_layout="BSND", isa=isa), want)


def test_same_bits_for_any_number_of_threads() -> None:
    k = make_inputs(Case("", 2, 8, 8, 1, 3000, 64)).k
    one = native.key_norms(k, threads=1)
    assert all(np.array_equal(native.key_norms(k, threads=n), one) for n in (2, 3, 7))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_keys_without_a_norm_count_as_infinite(value: float, isa: str) -> None:
    """So they are never left out. Whatever a larger key of the same block hides, NaN is not."""
    for others in (1.0, 2e19):
        k = np.full((1, 1, 40, 4), np.float32(others))
        k[0, 0, 17, 2] = value
        norms = native.key_norms(k, isa=isa)
        assert np.isinf(norms[0, 0, 1])
        assert norms[0, 0, 0] == norms[0, 0, 2]


def test_no_keys() -> None:
    norms = np.full((2, 3, 4), 7, np.float32)
    for shape in ((2, 3, 0, 8), (2, 3, 64, 8)):
        assert native.key_norms(np.zeros(shape, np.float32), norms=norms) is norms
        assert (norms == 7).all()
    assert native.key_norms(np.zeros((2, 3, 0, 8), np.float32), start=5).shape == (2, 3, 1)
    for batch, heads in ((0, 3), (2, 0)):
        k = np.zeros((batch, heads, 20, 8), np.float32)
        assert native.key_norms(k).shape == (batch, heads, 2)


def test_numpy_integers_are_integers() -> None:
    """They were refused: "start must be an integer of at least 0, got 5"."""
    k = make_inputs(Case("", 1, 2, 2, 1, 40, 8)).k
    got = native.key_norms(k, start=np.int64(5), threads=np.int32(1))
    np.testing.assert_array_equal(got, native.key_norms(k, start=5))


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
        ({"start": -1}, ValueError, r"start must be an integer of at least 0, got -1 \(int\)"),
        ({"start": 1.0}, ValueError, r"start must be .* of at least 0, got 1.0 \(float\)"),
        ({"start": True}, ValueError, r"start must be .* of at least 0, got True \(bool\)"),
        ({"norms": [0.0]}, TypeError, "key_norms: norms must be a"),
        (
            {"norms": np.zeros((1, 2, 2), np.float32)},
            ValueError,
            r"norms must have shape \(1, 2, at least 3\), .* but norms.shape = \(1, 2, 2\)",
        ),
        ({"norms": np.zeros((1, 2, 3))}, TypeError, "norms has dtype float64; it must be float32"),
        (
            {"norms": np.broadcast_to(np.float32(0), (1, 2, 3))},
            ValueError,
            "norms is read-only; pass an array that can be written to",
        ),
        (
            {"norms": np.zeros((1, 2, 6), np.float32)[:, :, ::2]},
            ValueError,
            "norms must be C-contiguous to be written to",
        ),
        (
            {"k": np.zeros((1, 2, 40, 16), np.float32)[..., ::2]},
            ValueError,
            r"k has strides of \(.*\) bytes for elements of 4; its last axis must be contiguous",
        ),
        ({"k": np.zeros((1, 2, 40, 0), np.float32)}, ValueError, "k has head_dim 0"),
        ({"k": np.zeros((1, 2, 40, 8))}, TypeError, "k has dtype float64; k must be float32, "),
        ({"threads": 0}, ValueError, "threads must be an integer of at least 1"),
        ({"isa": "avx"}, ValueError, "isa must be None or one of"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        native.key_norms(**{"k": np.zeros((1, 2, 40, 8), np.float32), **options})


class KeyNormsArgs(ctypes.Structure):
    """AlibiKeyNormsArgs of csrc/alibi_cache.h."""

    _fields_ = (
        *[(name, ctypes.c_int64) for name in ("batch", "heads_kv", "len_k", "head_dim")],
        ("dtype", ctypes.c_int32),
        ("k", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("stride_b", "stride_h", "stride_s")],
        ("start", ctypes.c_void_p),
        ("blocks", ctypes.c_int64),
        ("norms", ctypes.c_void_p),
        ("options", ctypes.c_void_p),
    )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"batch": -1}, "shape"),
        ({"heads_kv": 2**31}, "shape"),
        ({"len_k": -1}, "shape"),
        ({"blocks": -1}, "shape"),
        ({"head_dim": 0}, "head_dim"),
        ({"dtype": 3}, "dtype"),
        ({"k": None}, "null_pointer"),
        ({"start": None}, "null_pointer"),
        ({"norms": None}, "null_pointer"),
        ({"blocks": 2}, "spans"),
        ({"len_k": 33}, "spans"),
        ({"first": -1}, "spans"),
        ({"first": 17}, "spans"),
        ({"len_k": 0, "k": None}, "ok"),
        ({"batch": 0, "k": None, "start": None, "norms": None}, "ok"),
    ],
    ids=str,
)
def test_what_a_c_caller_is_told(change: dict[str, Any], status: str) -> None:
    """The checks of the library itself; nothing is written when one of them fails."""
    library = ctypes.CDLL(str(Path(native.__file__).parent / "_lib" / "libalibi_cpu.so"))
    k, norms = np.ones((2, 1, 32, 4), np.float32), np.zeros((2, 1, 3), np.float32)
    start = np.array([0, change.get("first", 16)], np.int32)
    wrong = {name: value for name, value in change.items() if name != "first"}
    fields = {"batch": 2, "heads_kv": 1, "len_k": 32, "head_dim": 4, "dtype": 0, "blocks": 3}
    fields |= {"k": k.ctypes.data, "stride_b": 128, "stride_h": 128, "stride_s": 4}
    fields |= {"start": start.ctypes.data, "norms": norms.ctypes.data}
    got = library.alibi_key_norms(ctypes.byref(KeyNormsArgs(**{**fields, **wrong})), None)
    assert _native.status_name(got) == status
    assert library.alibi_key_norms(None, None) == 1  # ALIBI_NULL_POINTER
    assert norms.any() == (not change)
    if not change:
        assert norms.tolist() == [[[2.0, 2.0, 0.0]], [[0.0, 2.0, 2.0]]]
