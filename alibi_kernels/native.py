"""The CPU kernels on NumPy arrays, without MindSpore: for tests, tools and other frameworks.

The same C entry points that MindSpore calls, with explicit gradients and a choice of instruction
set and thread count. Arrays are float32, float16 or (ml_dtypes) bfloat16, in any layout whose last
axis is contiguous: views are read and written where they are, never copied. The GIL is released
while a kernel runs, and results never depend on the number of threads.

Arguments that all functions share:

    q, k, v       [B, Hq, Sq, D], [B, Hkv, Sk, D], [B, Hkv, Sk, D]  ("BNSD"; "BSND" swaps H and S)
    slopes        [Hq] float32, or a flat sequence of numbers
    scale         factor on the dot products; None = D ** -0.5
    causal        True: row i sees no key beyond its own position
    bias          "symmetric": -slope * |distance|     "signed": slope * (key - query position)
    spans         [B, 3] int32 rows (kv_start, kv_end, q_start); None = (0, Sk, Sk - Sq)
    prune         True: skip keys that provably cannot change the result; False: read all
    threads       None = the OpenMP default
    isa           a name of isas(); None = ALIBI_CPU_ISA, or the best one
    stats         a dict to fill: "tiles_visited" of "tiles_allowed" key tiles were computed
    out, grads    arrays to write the results to (not overlapping the inputs); None allocates

They raise TypeError or ValueError before anything is computed, when an argument breaks a rule of
alibi_kernels.contract. Supported Platforms: ``CPU``. Source: arXiv 2108.12409.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alibi_kernels import contract

try:
    from alibi_kernels import _native
except ImportError as missing:
    raise ImportError(
        "alibi_kernels._native cannot be loaded; build it with `make build` in a checkout, or "
        "reinstall the package with `pip install .`"
    ) from missing

Array = NDArray[Any]
Stats = dict[str, int]


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    slopes: Array | Sequence[float],
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    threads: int | None = None,
    isa: str | None = None,
    out: Array | tuple[Array | None, Array | None] | None = None,
    stats: Stats | None = None,
) -> tuple[Array, Array]:
    r"""Attention with linear biases; the module's docstring explains the shared arguments.

    s_ij = scale * <q_i, k_j> + bias      lse_i = log sum_j exp(s_ij)
    out_i = sum_j exp(s_ij - lse_i) v_j

    Args:
        out: an array like q, or a tuple (out, lse).

    Returns:
        (out like q, lse [B, Hq, Sq] float32); 0 and -inf for a row that may see no key.
    """
    options = _options(scale, causal, bias, input_layout, prune)
    call = _Call(
        "attention_forward", {"q": q, "k": k, "v": v}, slopes, spans, options, threads, isa
    )
    given = out if isinstance(out, tuple) else (out, None)
    results = call.make("out", given[0], "q"), call.make("lse", given[1], "lse")
    call.run(_native.attention_fwd, stats)
    return results


def attention_backward(
    q: Array,
    k: Array,
    v: Array,
    slopes: Array | Sequence[float],
    out: Array,
    lse: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    threads: int | None = None,
    isa: str | None = None,
    grads: tuple[Array | None, ...] | None = None,
    stats: Stats | None = None,
) -> tuple[Array, Array, Array, Array]:
    r"""The gradients of attention_forward.

    ds = P * (dP - delta),   dP = dout v^T,   delta_i = <dout_i, out_i> - dlse_i

    Args:
        out, lse: what attention_forward returned.
        dout, dlse: gradients that arrive at out and lse; None = 0 for dlse.
        grads: (dq, dk, dv, dslopes), each an array or None.

    Returns:
        (dq like q, dk like k, dv like v, dslopes [Hq] float32).
    """
    options = _options(scale, causal, bias, input_layout, prune)
    call = _Call(
        "attention_backward", {"q": q, "k": k, "v": v}, slopes, spans, options, threads, isa
    )
    call.take("out", out, "q")
    call.take("lse", lse, "lse")
    call.take("dout", dout, "q")
    call.take("dlse", dlse, "lse", optional=True)
    results = call.make_all({"dq": "q", "dk": "k", "dv": "k", "dslopes": "slopes"}, grads)
    call.run(_native.attention_bwd, stats)
    return results


def attention_weights(
    q: Array,
    k: Array,
    slopes: Array | Sequence[float],
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    threads: int | None = None,
    isa: str | None = None,
    out: Array | None = None,
    stats: Stats | None = None,
) -> Array:
    r"""The attention weights P_ij = exp(s_ij - lse_i) themselves, [B, Hq, Sq, Sk], dtype of q.

    With prune=True weights below 2^-24 of their row's sum may be written as 0.
    """
    options = _options(scale, causal, bias, input_layout, prune)
    call = _Call("attention_weights", {"q": q, "k": k}, slopes, spans, options, threads, isa)
    result = call.make("out", out, "p")
    call.run(_native.weights_fwd, stats)
    return result


def attention_weights_backward(
    q: Array,
    k: Array,
    slopes: Array | Sequence[float],
    p: Array,
    dp: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    threads: int | None = None,
    isa: str | None = None,
    grads: tuple[Array | None, ...] | None = None,
    stats: Stats | None = None,
) -> tuple[Array, Array, Array]:
    r"""The gradients of attention_weights: ds = P * (dP - sum_j P_ij dP_ij).

    Args:
        p: what attention_weights returned.
        dp: the gradient that arrives at it, [B, Hq, Sq, Sk], dtype of q.
        grads: (dq, dk, dslopes), each an array or None.

    Returns:
        (dq like q, dk like k, dslopes [Hq] float32).
    """
    options = _options(scale, causal, bias, input_layout, prune)
    call = _Call(
        "attention_weights_backward", {"q": q, "k": k}, slopes, spans, options, threads, isa
    )
    call.take("p", p, "p")
    call.take("dp", dp, "p")
    results = call.make_all({"dq": "q", "dk": "k", "dslopes": "slopes"}, grads)
    call.run(_native.weights_bwd, stats)
    return results


def isas() -> list[dict[str, Any]]:
    """The instruction sets of the kernels, best first: {"name", "built", "supported"} each.

    "built": this library holds it; "supported": this CPU has it. Only names with both can run.
    """
    return json.loads(_native.build_info())["isas"]


def _options(
    scale: float | None, causal: bool, bias: str, input_layout: str, prune: bool
) -> dict[str, Any]:
    names = ("scale", "causal", "bias", "input_layout", "prune")
    return dict(zip(names, (scale, causal, bias, input_layout, prune), strict=True))


class _Call:
    """One checked call: the arguments of an entry point in its order, tensors as [B, H, S, X].

    Kinds of arrays: "q" and "k" are like those (in the call's layout); "p" is [B, Hq, Sq, Sk] and
    "lse" [B, Hq, Sq] in every layout; "slopes" is [Hq].
    """

    def __init__(
        self,
        op: str,
        tensors: dict[str, Array],
        slopes: Array | Sequence[float],
        spans: Array | None,
        options: dict[str, Any],
        threads: int | None,
        isa: str | None,
    ) -> None:
        self.op = op
        for name, array in tensors.items():
            contract.require_type(name, array, np.ndarray, op=op)
        if not isinstance(slopes, np.ndarray):
            slopes = np.array(contract.fixed_slopes(slopes, op=op), np.float32)
        if spans is not None:
            contract.require_type("spans", spans, np.ndarray, op=op)
        validate: Callable[..., contract.Signature] = (
            contract.validate_attention if "v" in tensors else contract.validate_weights
        )
        specs = {name: contract.spec(array) for name, array in tensors.items()}
        spans_spec = None if spans is None else contract.spec(spans)
        call = validate(**specs, slopes=contract.spec(slopes), spans=spans_spec, op=op, **options)
        contract.validate_slopes_values(slopes.tolist(), op=op)
        if spans is not None and call.len_k is not None:
            contract.validate_spans_values(spans.tolist(), call.len_k, call.causal, op=op)
        if threads is not None and (type(threads) is not int or threads < 1):
            raise contract.error("threads.range", op, got=repr(threads))
        usable = [row["name"] for row in isas() if row["built"] and row["supported"]]
        if isa is not None and isa not in usable:
            raise contract.error("isa.choice", op, choices=usable, got=repr(isa))

        self._native = _native.Call(
            scale=call.scale,
            causal=call.causal,
            signed_bias=call.bias == "signed",
            prune=call.prune,
            threads=threads or 0,
            isa=isa,
        )
        self._swap = call.input_layout == "BSND"
        rows = (call.batch, call.heads_q, call.len_q)
        float32, dtype = np.dtype(np.float32), tensors["q"].dtype
        self._kinds: dict[str, tuple[tuple[Any, ...], np.dtype[Any]]] = {
            "q": (tensors["q"].shape, dtype),
            "k": (tensors["k"].shape, dtype),
            "p": ((*rows, call.len_k), dtype),
            "lse": (rows, float32),
            "slopes": ((call.heads_q,), float32),
        }
        self._arrays: list[Array | None] = []  # the arguments of the entry point, in its order
        for name, array in tensors.items():
            self.take(name, array, "q" if name == "q" else "k")
        self.take("slopes", slopes, "slopes")
        self._arrays.append(None if spans is None else np.ascontiguousarray(spans))

    def take(self, name: str, array: Array | None, kind: str, optional: bool = False) -> None:
        """Adds an input."""
        if array is None and optional:
            self._arrays.append(None)
            return
        contract.require_type(name, array, np.ndarray, op=self.op)
        assert array is not None
        shape, dtype = self._kinds[kind]
        if array.shape != shape:
            raise contract.error("array.shape", self.op, name=name, want=shape, shape=array.shape)
        if array.dtype != dtype:
            raise contract.error("array.dtype", self.op, name=name, want=dtype, got=array.dtype)
        self._arrays.append(
            np.ascontiguousarray(array) if array.ndim < 4 else self._view(name, array, kind)
        )

    def make(self, name: str, given: Array | None, kind: str) -> Array:
        """Adds a result and returns it: the array given, or a new one."""
        result = np.empty(*self._kinds[kind]) if given is None else given
        self.take(name, result, kind)
        if not result.flags.writeable:
            raise contract.error("array.readonly", self.op, name=name)
        if result.ndim < 4 and not result.flags.c_contiguous:
            raise contract.error("array.contiguous", self.op, name=name, strides=result.strides)
        return result

    def make_all(self, kinds: dict[str, str], given: tuple[Array | None, ...] | None) -> Any:
        """Adds the gradients and returns them, a tuple in the order of `kinds`."""
        arrays = (None,) * len(kinds) if given is None else given
        if not isinstance(arrays, tuple) or len(arrays) != len(kinds):
            got = f"a tuple of {len(arrays)}" if isinstance(arrays, tuple) else repr(type(arrays))
            names = ", ".join(kinds)
            raise contract.error("grads.length", self.op, want=len(kinds), names=names, got=got)
        pairs = zip(kinds.items(), arrays, strict=True)
        return tuple(self.make(name, array, kind) for (name, kind), array in pairs)

    def run(self, entry: Callable[..., int], stats: Stats | None) -> None:
        """Calls the entry point; raises for any status but "ok"."""
        status = entry(self._native, *self._arrays)
        if status:
            raise contract.error(_native.status_name(status), self.op)
        if stats is not None:
            stats["tiles_visited"] = self._native.tiles_visited
            stats["tiles_allowed"] = self._native.tiles_allowed

    def _view(self, name: str, array: Array, kind: str) -> Array:
        """As [B, H, S, X], after the one rule that memory has to keep."""
        item = array.itemsize
        # NumPy leaves the strides of empty arrays and of axes of length 1 undefined.
        steps = [step for step, size in zip(array.strides, array.shape, strict=True) if size > 1]
        last = array.strides[3] if array.shape[3] > 1 else item
        strided = last == item and not any(step % item for step in steps) and array.flags.aligned
        if array.size and not strided:
            raise contract.error(
                "array.strides", self.op, name=name, strides=array.strides, itemsize=item
            )
        return array.transpose(0, 2, 1, 3) if self._swap and kind != "p" else array
