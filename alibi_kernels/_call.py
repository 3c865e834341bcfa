"""One call of a kernel on NumPy arrays: checked, laid out, run. alibi_kernels.native is the public
side.

What can be said of all calls alike, from shapes, dtypes and options, is checked once and remembered
as a plan. What one call's arrays add (strides, alignment, the values of slopes) the bindings check;
when they refuse, `_complaint` finds the words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alibi_kernels import contract, layer_contract, norms_contract

try:
    from alibi_kernels import _native
except ImportError as missing:
    raise ImportError(
        "alibi_kernels._native cannot be loaded; build it with `make build` in a checkout, or "
        "reinstall the package with `pip install .`"
    ) from missing

Array = NDArray[Any]
Stats = dict[str, int]

# What an entry point returns after its status.
_COUNTERS = ("tiles_visited", "tiles_allowed", "decode_rows", "tiles_scored")


def _one_each(
    op: str, argument: str, kinds: dict[str, str], given: tuple[Array | None, ...] | None
) -> tuple[Array | None, ...]:
    """The arrays given as `argument`, None where one is to be allocated."""
    if given is None:
        return (None,) * len(kinds)
    if isinstance(given, tuple) and len(given) == len(kinds):
        return given
    got = f"a tuple of {len(given)}" if isinstance(given, tuple) else contract.describe(given)
    fields = {"name": argument, "want": len(kinds), "names": ", ".join(kinds), "got": got}
    raise contract.error("results.length", op, **fields)


def isas() -> list[dict[str, Any]]:
    """The instruction sets of the kernels, best first: {"name", "built", "supported"} each.

    "built": this library holds it; "supported": this CPU has it. Only names with both can run.
    """
    return json.loads(_native.build_info())["isas"]


@cache
def _usable_isas() -> list[str]:
    return [row["name"] for row in isas() if row["built"] and row["supported"]]


def _threads(op: str, threads: int | None) -> int:
    """What the kernels take: 0 for the OpenMP default."""
    if threads is None:
        return 0
    if not isinstance(threads, Integral) or isinstance(threads, bool) or threads < 1:
        raise contract.error("threads.range", op, got=contract.describe(threads))
    return int(threads)


def _isa(op: str, isa: str | None) -> str | None:
    if isa is not None and isa not in _usable_isas():
        raise contract.error("isa.choice", op, choices=_usable_isas(), got=repr(isa))
    return isa


@dataclass(frozen=True)
class _Plan:
    """A kind of call that keeps the rules: what is the same for all calls alike.

    Kinds of arrays: "q" and "k" are like those (in the call's layout); "p" is [B, Hq, Sq, Sk] and
    "lse" [B, Hq, Sq] in every layout; "slopes" is [Hq]; "key_norms" is [B, Hkv, ceil(Sk / 16)].
    """

    native: _native.Call
    kinds: dict[str, tuple[tuple[Any, ...], np.dtype[Any]]]
    len_k: int
    causal: bool


def _make_plan(
    op: str,
    q: tuple[Any, ...],  # shape and dtype, and so the next four
    k: tuple[Any, ...],
    v: tuple[Any, ...] | None,
    slopes: tuple[Any, ...],
    spans: tuple[Any, ...] | None,
    scale: float | None,
    causal: bool,
    bias: str,
    input_layout: str,
    prune: bool,
    threads: int | None,
    isa: str | None,
) -> _Plan:
    """The plan of a call; TypeError or ValueError if it breaks a rule."""

    def spec(shape_and_dtype: tuple[Any, ...] | None) -> contract.Spec | None:
        if shape_and_dtype is None:
            return None
        shape, dtype = shape_and_dtype
        return contract.Spec(tuple(shape), contract.dtype_name(dtype))

    tensors = (q, k) if v is None else (q, k, v)
    validate: Callable[..., contract.Signature] = (
        contract.validate_weights if v is None else contract.validate_attention
    )
    call = validate(
        *map(spec, tensors),
        spec(slopes),
        spec(spans),
        op=op,
        scale=scale,
        causal=causal,
        bias=bias,
        input_layout=input_layout,
        prune=prune,
    )
    native = _native.Call(
        scale=call.scale,
        causal=call.causal,
        signed_bias=call.bias == "signed",
        prune=call.prune,
        bsnd=call.input_layout == "BSND",
        threads=_threads(op, threads),
        isa=_isa(op, isa),
    )
    rows, float32 = (call.batch, call.heads_q, call.len_q), np.dtype(np.float32)
    kinds = {
        "q": q,
        "k": k,
        "p": ((*rows, call.len_k), q[1]),
        "lse": (rows, float32),
        "slopes": ((call.heads_q,), float32),
        "key_norms": ((call.batch, call.heads_kv, norms_contract.blocks(call.len_k or 0)), float32),
    }
    return _Plan(native, kinds, call.len_k or 0, call.causal)


# `typed`, or causal=1 would pass after causal=True.
_cached_plan = lru_cache(maxsize=4096, typed=True)(_make_plan)


class Call:
    """One checked call: the arguments of an entry point in its order."""

    def __init__(
        self,
        op: str,
        q: Array,
        k: Array,
        v: Array | None,
        slopes: Array | Sequence[float],
        spans: Array | None,
        scale: float | None,
        causal: bool,
        bias: str,
        input_layout: str,
        prune: bool,
        threads: int | None,
        isa: str | None,
        weights: bool = False,  # there is no v
    ) -> None:
        self.op = op
        # What goes to the entry point, and what is known of it: name, the array as it was given,
        # its kind, whether it is written to.
        self._arrays: list[Array | None] = []
        self._operands: list[tuple[str, Array, str, bool]] = []
        self.take("q", q, "q")
        self.take("k", k, "k")
        if not weights:
            self.take("v", v, "k")
        if not isinstance(slopes, np.ndarray):
            slopes = np.array(contract.fixed_slopes(slopes, op=op), np.float32)
        if spans is not None:
            contract.require_type("spans", spans, np.ndarray, op=op)
        arguments = (
            op,
            (q.shape, q.dtype),
            (k.shape, k.dtype),
            None if v is None else (v.shape, v.dtype),
            (slopes.shape, slopes.dtype),
            None if spans is None else (spans.shape, spans.dtype),
            *(scale, causal, bias, input_layout, prune, threads, isa),
        )
        try:
            self._plan = _cached_plan(*arguments)
        except TypeError:  # a broken rule, or an argument without a hash, which breaks another rule
            self._plan = _make_plan(*arguments)
        if spans is not None:
            spans = _contiguous(spans)
            contract.validate_spans_values(
                spans.tolist(), self._plan.len_k, self._plan.causal, op=op
            )
        self._slopes = slopes
        self._arrays += (_contiguous(slopes), spans)

    def take(self, name: str, array: Array | None, kind: str, optional: bool = False) -> None:
        """Adds an input."""
        if optional and array is None:
            self._arrays.append(None)
            return
        if not isinstance(array, np.ndarray):
            contract.require_type(name, array, np.ndarray, op=self.op)
        assert array is not None
        self._operands.append((name, array, kind, False))
        self._arrays.append(array if array.ndim == 4 else _contiguous(array))

    def make_all(
        self, argument: str, kinds: dict[str, str], given: tuple[Array | None, ...] | None
    ) -> Any:
        """Adds the results and returns them: the arrays given as `argument`, or new ones."""
        results = []
        arrays = _one_each(self.op, argument, kinds, given)
        for (name, kind), array in zip(kinds.items(), arrays, strict=True):
            if array is None:
                array = np.empty(*self._plan.kinds[kind])
            elif not isinstance(array, np.ndarray):
                contract.require_type(name, array, np.ndarray, op=self.op)
            self._operands.append((name, array, kind, True))
            results.append(array)
        self._arrays += results
        return tuple(results)

    def run(self, entry: Callable[..., tuple[int, ...]], stats: Stats | None) -> None:
        """Calls the entry point; raises for any status but "ok"."""
        status, *counters = entry(self._plan.native, *self._arrays)
        if status:
            raise self._complaint(status)
        if stats is not None:
            stats.update(zip(_COUNTERS, counters, strict=True))

    def _complaint(self, status: int) -> Exception:
        """What the entry point refused, in the words of the rules; nothing was computed."""
        contract.validate_slopes_values(self._slopes.tolist(), op=self.op)
        for name, array, kind, written in self._operands:
            complaint = _refused(self.op, name, array, *self._plan.kinds[kind], written)
            if complaint is not None:
                return complaint
        return contract.error(_native.status_name(status), self.op)


def _contiguous(array: Array) -> Array:
    """`array`, or a copy: vectors are read element after element."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else array.copy()


def _refused(
    op: str,
    name: str,
    array: Array,
    shape: tuple[Any, ...],
    dtype: np.dtype[Any],
    written: bool,
) -> Exception | None:
    """The rule that one array breaks, of those that native.cc has a `require` for."""
    if array.shape != shape:
        return contract.error("array.shape", op, name=name, want=shape, shape=array.shape)
    if array.dtype != dtype:
        return contract.error("array.dtype", op, name=name, want=dtype, got=array.dtype)
    if written and not array.flags.writeable:
        return contract.error("array.readonly", op, name=name)
    if written and array.ndim < 4 and not array.flags.c_contiguous:
        return contract.error("array.contiguous", op, name=name, strides=array.strides)
    if (written or array.ndim == 4) and not _is_readable(array):
        fields = {"strides": array.strides, "itemsize": array.itemsize}
        return contract.error("array.strides", op, name=name, **fields)
    return None


def _is_readable(array: Array) -> bool:
    """The one rule that memory has to keep: a contiguous last axis of aligned elements."""
    item = array.itemsize
    # NumPy leaves the strides of empty arrays and of axes of length 1 undefined.
    steps = [step for step, size in zip(array.strides, array.shape, strict=True) if size > 1]
    last = array.strides[-1] if array.shape[-1] > 1 else item
    strided = last == item and not any(step % item for step in steps) and array.flags.aligned
    return array.size == 0 or strided


def raise_norms(
    op: str,
    k: Array,
    start: int,
    norms: Array,
    input_layout: str,
    threads: int | None,
    isa: str | None,
) -> None:
    """Raises norms by the keys that stand from `start` on; shapes and dtypes have been checked."""
    if not norms.flags.writeable:
        raise contract.error("array.readonly", op, name="norms")
    if not norms.flags.c_contiguous:
        raise contract.error("array.contiguous", op, name="norms", strides=norms.strides)
    if not _is_readable(k):
        fields = {"strides": k.strides, "itemsize": k.itemsize}
        raise contract.error("array.strides", op, name="k", **fields)
    call = _native.RowsCall(_threads(op, threads), _isa(op, isa))
    status = _native.key_norms(call, input_layout == "BSND", k, start, norms)
    if status:
        raise contract.error(_native.status_name(status), op)


class RowsCall:
    """One call of a kernel over the rows of x: layer_norm or bias_gelu.

    Kinds of arrays, all of them contiguous float32: "x" is like x; "vector" is [width], the length
    of its last axis; "row" has its other axes.
    """

    def __init__(self, op: str, x: Array, threads: int | None, isa: str | None) -> None:
        self.op = op
        if not isinstance(x, np.ndarray):
            contract.require_type("x", x, np.ndarray, op=op)
        layer_contract.check_x(x.shape, op=op)
        self._native = _native.RowsCall(_threads(op, threads), _isa(op, isa))
        self._kinds = {"x": x.shape, "vector": x.shape[-1:], "row": x.shape[:-1]}
        self._arrays: list[Array] = []
        self.take("x", x, "x")

    def take(self, name: str, array: Array, kind: str) -> None:
        """Adds an input."""
        if not isinstance(array, np.ndarray):
            contract.require_type(name, array, np.ndarray, op=self.op)
        shape, whole = self._kinds[kind], self._kinds["x"]
        if array.dtype != np.float32:
            raise contract.error(
                "array.dtype", self.op, name=name, want=np.dtype(np.float32), got=array.dtype
            )
        if kind == "vector":
            layer_contract.check_vector(name, array.shape, whole, op=self.op)
        elif array.shape != shape:
            raise contract.error("array.shape", self.op, name=name, want=shape, shape=array.shape)
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise contract.error("rows.contiguous", self.op, name=name, strides=array.strides)
        # The sizes are given: -1 says nothing where there are no rows.
        rows = int(np.prod(whole[:-1]))
        self._arrays.append(array.reshape(-1 if kind != "x" else (rows, whole[-1])))

    def make_all(
        self, argument: str, kinds: dict[str, str], given: tuple[Array | None, ...] | None
    ) -> Any:
        """Adds the results and returns them: the arrays given as `argument`, or new ones."""
        arrays = _one_each(self.op, argument, kinds, given)
        results = []
        for (name, kind), array in zip(kinds.items(), arrays, strict=True):
            result = np.empty(self._kinds[kind], np.float32) if array is None else array
            self.take(name, result, kind)
            if not result.flags.writeable:
                raise contract.error("array.readonly", self.op, name=name)
            results.append(result)
        return tuple(results)

    def run(self, entry: Callable[..., int], *numbers: float) -> None:
        """Calls the entry point; raises for any status but "ok"."""
        status = entry(self._native, *numbers, *self._arrays)
        if status:
            raise contract.error(_native.status_name(status), self.op)
