"""What a valid call is: names, shapes, dtypes, values.

    s_ij    = scale * <q_i, k_j> + bias(p_i, j),  p_i = q_start + i       for allowed (i, j)
    bias    = -slope_h * abs(p_i - j)  ("symmetric")   or   slope_h * (j - p_i)  ("signed")
    allowed = kv_start <= j < kv_end  and, if causal, j <= p_i
    lse_i   = log sum_j exp(s_ij)         out_i = sum_j exp(s_ij - lse_i) v_j

`validate_attention`, `validate_weights` and `validate_packed` look at shapes and dtypes, as plain
tuples and strings, and return the frozen `Signature` of the call. They need neither NumPy nor
MindSpore, remember the calls that passed, and skip rules whose sizes are unknown (as in dynamic
graphs). Concrete values are checked by `fixed_slopes` and `validate_*_values`. Words: rules.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from itertools import permutations
from numbers import Real
from typing import Any, NamedTuple, TypeVar

from alibi_kernels.rules import RULES as RULES
from alibi_kernels.rules import error as error

DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("BNSD", "BSND")
BIASES = ("symmetric", "signed")
ORDERS = tuple("".join(p) for p in permutations("qkv"))
BACKENDS = ("cpu", "cuda", "ascend", "ascend_builtin", "reference")
SLOPE_KINDS = ("paper", "geometric")

# Where batch, heads, length and head_dim stand in a shape, and how a message names the axes.
_AXES = {"BNSD": (0, 1, 2, 3), "BSND": (0, 2, 1, 3)}
_AXIS_NAMES = {
    "BNSD": "(batch, heads, length, head_dim)",
    "BSND": "(batch, length, heads, head_dim)",
}
# What must be equal: (tensor, other tensor, field of _Sizes, rule, how a message names the axis).
_EQUAL_SIZES = (
    ("k", "q", "batch", "shape.batch", "batch size"),
    ("v", "q", "batch", "shape.batch", "batch size"),
    ("k", "q", "head_dim", "head_dim.match", "head_dim"),
    ("v", "q", "head_dim", "head_dim.match", "head_dim"),
    ("v", "k", "heads", "shape.heads", "head count"),
    ("v", "k", "length", "shape.length", "length"),
)
_UNKNOWN_RANK = (-2,)  # the shape that MindSpore gives a tensor of unknown rank
_FLOAT32_MAX = (2.0 - 2.0**-23) * 2.0**127


class Spec(NamedTuple):
    """What the rules need to know of a tensor: its shape and the name of its dtype."""

    shape: tuple[int | None, ...]
    dtype: str


class Options(NamedTuple):
    """The arguments of a call that are not tensors, with their defaults."""

    scale: float | None = None  # None = head_dim ** -0.5
    causal: bool = True
    bias: str = "symmetric"
    input_layout: str = "BNSD"
    prune: bool = True
    backend: str | None = None  # None = the first that can run the call


@dataclass(frozen=True)
class Signature:
    """A call that keeps the rules: all that decides what can run it. Unknown sizes are None."""

    op: str
    batch: int | None
    heads_q: int | None
    heads_kv: int | None
    len_q: int | None
    len_k: int | None
    head_dim: int | None
    dtype: str
    scale: float | None  # None only while head_dim is unknown
    causal: bool
    bias: str
    input_layout: str
    prune: bool
    backend: str | None  # the one that was asked for
    spans: bool  # whether there are any
    fixed_slopes: bool  # constants, rather than a tensor that may be trained
    order: str | None = None  # of the thirds of a packed projection
    key_norms: bool = False  # whether the caller keeps any (norms_contract.py)
    graph: bool = False  # compiled, rather than run as Python


class _Sizes(NamedTuple):
    """batch, heads, length, head_dim of one tensor."""

    batch: int | None
    heads: int | None
    length: int | None
    head_dim: int | None


def dtype_name(dtype: Any) -> str:
    """The lower-case name, such as "float32", of a dtype of NumPy, ml_dtypes or MindSpore."""
    return str(dtype).rpartition(".")[2].lower()


def spec(tensor: Any) -> Spec:
    """The Spec of anything with a shape and a dtype."""
    return Spec(tuple(tensor.shape), dtype_name(tensor.dtype))


def is_real(value: Any) -> bool:
    """Whether value is a number, NumPy's included, and not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_type(name: str, value: Any, expected: type, *, op: str) -> None:
    """TypeError unless value is an `expected`: the Tensor of the framework, or a NumPy array."""
    if not isinstance(value, expected):
        kind = f"{expected.__module__.partition('.')[0]}.{expected.__name__}"
        raise error("tensor.type", op, name=name, expected=kind, got=describe(value))


def check_choice(name: str, value: Any, choices: Sequence[str], *, op: str) -> None:
    """ValueError unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        names = ", ".join(f'"{choice}"' for choice in choices)
        raise error(f"{name}.choice", op, name=name, choices=names, got=describe(value))


_Validator = TypeVar("_Validator", bound=Callable[..., Signature])


def _remember(validate: _Validator) -> _Validator:
    """Validate each distinct call once. `typed`, or causal=1 would pass after causal=True."""
    cached = lru_cache(maxsize=4096, typed=True)(validate)

    @wraps(validate)
    def call(*args: Any, **kwargs: Any) -> Signature:
        try:
            return cached(*args, **kwargs)
        except TypeError:
            pass  # a broken rule, or an argument without a hash, which breaks another rule
        return validate(*args, **kwargs)

    return call  # type: ignore[return-value]


@_remember
def validate_attention(
    q: Spec,
    k: Spec,
    v: Spec,
    slopes: Spec,
    spans: Spec | None = None,
    *,
    fixed_slopes: bool = False,
    op: str = "alibi_attention",
    **options: Any,
) -> Signature:
    """The Signature of a call with some Options; TypeError or ValueError when it breaks a rule."""
    opts = _check_options(op, Options(**options))
    sizes = _check_tensors(op, {"q": q, "k": k, "v": v}, opts.input_layout)
    _check_heads(op, q, k, sizes, opts.input_layout)
    return _signature(op, sizes["q"], sizes["k"], q.dtype, slopes, spans, fixed_slopes, opts)


@_remember
def validate_weights(
    q: Spec,
    k: Spec,
    slopes: Spec,
    spans: Spec | None = None,
    *,
    fixed_slopes: bool = False,
    op: str = "alibi_attention_weights",
    **options: Any,
) -> Signature:
    """The Signature of a call for the weights; otherwise like `validate_attention`."""
    opts = _check_options(op, Options(**options))
    sizes = _check_tensors(op, {"q": q, "k": k}, opts.input_layout)
    _check_heads(op, q, k, sizes, opts.input_layout)
    return _signature(op, sizes["q"], sizes["k"], q.dtype, slopes, spans, fixed_slopes, opts)


@_remember
def validate_packed(
    packed: Spec,
    slopes: Spec,
    spans: Spec | None = None,
    *,
    order: str = "qkv",
    fixed_slopes: bool = False,
    op: str = "alibi_attention_packed",
    **options: Any,
) -> Signature:
    """The Signature of a call on a packed projection [B, S, 3, H, D], "BSND" by nature."""
    opts = _check_options(op, Options(**options))._replace(input_layout="BSND")
    check_choice("order", order, ORDERS, op=op)
    shape = (None,) * 5 if packed.shape == _UNKNOWN_RANK else packed.shape
    if len(shape) != 5 or _differ(shape[2], 3):
        raise error("packed.shape", op, shape=shape)
    one = Spec(shape[:2] + shape[3:], packed.dtype)
    sizes = _check_tensors(op, {"packed": one}, "BSND")["packed"]
    return _signature(op, sizes, sizes, one.dtype, slopes, spans, fixed_slopes, opts, order)


def fixed_slopes(slopes: Any, *, op: str = "alibi_attention") -> tuple[float, ...]:
    """Slopes given as a list, tuple or NumPy array, as finite Python floats."""
    values = slopes.tolist() if hasattr(slopes, "tolist") else slopes
    if not isinstance(values, (list, tuple)) or not all(is_real(x) for x in values):
        raise error("slopes.type", op, got=describe(slopes))
    validate_slopes_values(values, op=op)
    return tuple(float(x) for x in values)


def validate_slopes_values(values: Iterable[float], *, op: str = "alibi_attention") -> None:
    """ValueError unless every slope is a finite float32 number."""
    for index, value in enumerate(values):
        if not _is_finite_float32(value):
            raise error("slopes.finite", op, index=index, got=value)


def validate_spans_values(
    rows: Iterable[Sequence[int]], len_k: int, causal: bool, *, op: str = "alibi_attention"
) -> None:
    """ValueError unless every row (kv_start, kv_end, q_start) fits keys of length len_k."""
    for index, row in enumerate(rows):
        kv_start, kv_end, q_start = (int(x) for x in row)
        got = (kv_start, kv_end, q_start)
        if not 0 <= kv_start <= kv_end <= len_k:
            raise error("spans.range", op, index=index, got=got, len_k=len_k)
        if causal and q_start < 0:
            raise error("spans.q_start", op, index=index, got=got, q_start=q_start)


def _check_options(op: str, options: Options) -> Options:
    check_choice("input_layout", options.input_layout, LAYOUTS, op=op)
    check_choice("bias", options.bias, BIASES, op=op)
    if options.backend is not None:
        check_choice("backend", options.backend, BACKENDS, op=op)
    for name in ("causal", "prune"):
        flag = getattr(options, name)
        if not isinstance(flag, bool):
            raise error("flag.type", op, name=name, got=describe(flag))
    if options.scale is None:
        return options
    if not is_real(options.scale):
        raise error("scale.type", op, got=describe(options.scale))
    if not _is_finite_float32(options.scale):
        raise error("scale.finite", op, got=options.scale)
    return options._replace(scale=float(options.scale))


def _check_tensors(op: str, tensors: dict[str, Spec], layout: str) -> dict[str, _Sizes]:
    names = _enumerate(list(tensors))
    dtype = next(iter(tensors.values())).dtype
    sizes = {}
    for name, x in tensors.items():
        sizes[name] = sizes_of(op, name, x.shape, layout)
        if x.dtype not in DTYPES:
            raise error("dtype.unsupported", op, name=name, got=x.dtype, names=names)
        if x.dtype != dtype:
            raise error("dtype.match", op, name=name, got=x.dtype, want=dtype, names=names)
        if sizes[name].head_dim == 0:
            raise error("head_dim.zero", op, name=name, shape=x.shape)
    for name, other, field, rule, axis in _EQUAL_SIZES:
        if name in tensors:
            got, want = getattr(sizes[name], field), getattr(sizes[other], field)
            if None not in (got, want) and got != want:
                raise error(
                    rule,
                    op,
                    name=name,
                    axis=axis,
                    got=got,
                    other=other,
                    want=want,
                    shape=tensors[name].shape,
                    layout=layout,
                    names=names if other == "q" else "k and v",
                )
    return sizes


def _check_heads(op: str, q: Spec, k: Spec, sizes: dict[str, _Sizes], layout: str) -> None:
    heads_q, heads_kv = sizes["q"].heads, sizes["k"].heads
    if heads_q is None or heads_kv is None:
        return
    if heads_q == 0 or heads_kv == 0 or heads_q % heads_kv:
        raise error(
            "head_groups.divide",
            op,
            heads_q=heads_q,
            heads_kv=heads_kv,
            q_shape=q.shape,
            k_shape=k.shape,
            layout=layout,
            other_layout=LAYOUTS[1 - LAYOUTS.index(layout)],
        )


def _check_slopes(op: str, slopes: Spec, heads: int | None) -> None:
    if slopes.dtype != "float32":
        raise error("slopes.dtype", op, got=slopes.dtype)
    if slopes.shape == _UNKNOWN_RANK:
        return
    if len(slopes.shape) != 1 or _differ(slopes.shape[0], heads):
        raise error("slopes.shape", op, heads=heads or "heads", shape=slopes.shape)


def _check_spans(op: str, spans: Spec | None, q: _Sizes, k: _Sizes, causal: bool) -> None:
    if spans is None:
        if causal and q.length is not None and k.length is not None and q.length > k.length:
            missing = q.length - k.length
            raise error("spans.needed", op, len_q=q.length, len_k=k.length, missing=missing)
        return
    if spans.dtype != "int32":
        raise error("spans.mask" if spans.dtype == "bool" else "spans.dtype", op, got=spans.dtype)
    if spans.shape == _UNKNOWN_RANK:
        return
    shape, batch = spans.shape, q.batch
    if len(shape) != 2 or _differ(shape[0], batch) or _differ(shape[1], 3):
        raise error("spans.shape", op, batch="batch" if batch is None else batch, shape=shape)


def _signature(
    op: str,
    q: _Sizes,
    k: _Sizes,
    dtype: str,
    slopes: Spec,
    spans: Spec | None,
    fixed: bool,
    options: Options,
    order: str | None = None,
) -> Signature:
    _check_slopes(op, slopes, q.heads)
    _check_spans(op, spans, q, k, options.causal)
    if options.scale is None and q.head_dim is not None:
        options = options._replace(scale=float(q.head_dim) ** -0.5)
    return Signature(
        op=op,
        batch=q.batch,
        heads_q=q.heads,
        heads_kv=k.heads,
        len_q=q.length,
        len_k=k.length,
        head_dim=q.head_dim,
        dtype=dtype,
        spans=spans is not None,
        fixed_slopes=fixed,
        order=order,
        **options._asdict(),
    )


def sizes_of(op: str, name: str, shape: tuple[int | None, ...], layout: str) -> _Sizes:
    """Batch, heads, length and head_dim of a tensor that has these four axes, or ValueError."""
    if shape == _UNKNOWN_RANK:
        return _Sizes(None, None, None, None)
    if len(shape) != 4:
        axes = _AXIS_NAMES[layout]
        raise error("shape.rank", op, name=name, axes=axes, layout=layout, shape=shape)
    return _Sizes(*(_known(shape[axis]) for axis in _AXES[layout]))


def _known(size: int | None) -> int | None:
    """The size, or None while it is not known."""
    return None if size is None or size < 0 else size


def _differ(got: int | None, want: int | None) -> bool:
    """Whether two sizes are both known and not equal."""
    return None not in (_known(got), _known(want)) and got != want


def _is_finite_float32(value: Any) -> bool:
    return math.isfinite(value) and abs(value) <= _FLOAT32_MAX


def _enumerate(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def describe(value: Any) -> str:
    """A value for a message: itself where that is short, and its type."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, (bool, int, float, str, list, tuple)):
        text = repr(value)
        return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind})"
    shape = getattr(value, "shape", None)
    return f"a {kind}" if shape is None else f"a {kind} of shape {tuple(shape)}"
