"""The backward kernel against the float64 oracle, on every instruction set of this CPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from alibi_kernels import native
from tests import oracle
from tests.cases import DTYPES, LONG, SHAPES, SHARED, SMALL, Case, Inputs, make_inputs
from tests.compare import assert_close, to_float64, worst_error
from tests.native.float32_rival import attention_gradients
from tests.native.guarded import Guarded

Array = Any
NAMES = ("dq", "dk", "dv", "dslopes")
ISAS = [isa["name"] for isa in native.isas() if isa["built"] and isa["supported"]]


def options_of(case: Case, x: Inputs, **changes: Any) -> dict[str, Any]:
    return {**case.options, "spans": x.spans, **changes}


def backward(case: Case, x: Inputs, dlse: Array = None, **changes: Any) -> tuple[Array, ...]:
    """Forward, then backward into memory that holds NaN."""
    options = options_of(case, x, **changes)
    isa = {"isa": options.get("isa"), "threads": options.get("threads")}
    forward = {**options_of(case, x), **isa}
    out, lse = native.attention_forward(x.q, x.k, x.v, x.slopes, **forward)
    grads = tuple(np.full_like(a, np.nan) for a in (x.q, x.k, x.v, x.slopes))
    got = native.attention_backward(
        x.q, x.k, x.v, x.slopes, out, lse, x.dout, dlse=dlse, grads=grads, **options
    )
    assert all(a is b for a, b in zip(got, grads, strict=True))
    return got


def named(grads: tuple[Array, ...]) -> dict[str, Array]:
    return dict(zip(NAMES, grads, strict=True))


def truth_of(case: Case, x: Inputs, dlse: Array = None) -> dict[str, Array]:
    return named(
        oracle.attention_grad(x.q, x.k, x.v, x.slopes, x.dout, dlse, **options_of(case, x))
    )


def bits(grads: tuple[Array, ...]) -> list[bytes]:
    return [np.ascontiguousarray(g).tobytes() for g in grads]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_mode(case: Case, dtype: str) -> None:
    """At most 3 times the error of the same formulas in float32 NumPy, plus what rounding `out` to
    the dtype must cost (float32_rival.py). With dlse, and every output element written."""
    x = make_inputs(case, dtype)
    truth, rival = truth_of(case, x, x.dlse), attention_gradients(case, x, dtype, x.dlse)
    for isa in ISAS:
        rival.check(named(backward(case, x, x.dlse, isa=isa)), truth, isa)


@pytest.mark.parametrize("case", [*SHAPES, *SHARED, Case("16", 1, 16, 16, 60, 1030, 128)], ids=str)
def test_shapes(case: Case) -> None:
    """Odd lengths, head counts and head dims, several chunks of keys (full ones, too); no dlse."""
    for dtype in DTYPES if case.Sq <= 260 else DTYPES[::2]:
        x = make_inputs(case, dtype)
        none = np.zeros_like(x.dlse)
        truth, rival = truth_of(case, x), attention_gradients(case, x, dtype, none)
        for isa in ISAS:
            rival.check(named(backward(case, x, isa=isa)), truth, f"{isa} {dtype}")


@pytest.mark.parametrize("head_dim", [1, 2, 3, 7, 15, 17, 31, 33, 100, 127, 129, 200, 255])
def test_any_head_dim(head_dim: int) -> None:
    """Whatever is left over after whole vectors and micro-kernels."""
    for causal in (True, False):
        case = Case(f"D{head_dim}", 1, 2, 1, 53, 61, head_dim, causal, slopes="learned")
        for dtype in DTYPES[::2]:
            x = make_inputs(case, dtype)
            truth, rival = truth_of(case, x, x.dlse), attention_gradients(case, x, dtype, x.dlse)
            for isa in ISAS:
                rival.check(named(backward(case, x, x.dlse, isa=isa)), truth, f"{isa} {dtype}")


def test_every_diagonal() -> None:
    """Tiles of keys that begin and end anywhere, even and odd, against the keys [5, 60)."""
    for causal in (True, False):
        for q_start in range(0, 80, 3):
            case = Case("", 1, 2, 1, 53, 61, 8, causal, spans=((5, 60, q_start),), slopes="learned")
            for dtype in DTYPES[::2]:
                x = make_inputs(case, dtype)
                truth = truth_of(case, x, x.dlse)
                rival = attention_gradients(case, x, dtype, x.dlse)
                for isa in ISAS:
                    what = f"{isa} {dtype} {q_start}"
                    rival.check(named(backward(case, x, x.dlse, isa=isa)), truth, what)


def test_finite_differences() -> None:
    """The gradient along a random direction is the change of the forward's results along it.

    Shares nothing with the oracle's formulas. The step is large enough for the forward's float32
    rounding (1e-6 of a sum of size 30) and small enough for the third derivative: 2e-3 in all.
    """
    case = Case(
        "differences", 2, 4, 2, 37, 45, 16, slopes="learned", spans=((0, 45, 8), (3, 44, 5))
    )
    x, options = make_inputs(case), options_of(case, make_inputs(case))
    rng = np.random.default_rng(5)

    def loss(q: Array, k: Array, v: Array, slopes: Array) -> float:
        out, lse = native.attention_forward(q, k, v, slopes, prune=False, **options)
        seen = np.isfinite(lse)
        terms = to_float64(out) * x.dout
        return float(terms.sum() + (np.where(seen, lse, 0.0) * x.dlse).sum(dtype=np.float64))

    point = [x.q, x.k, x.v, x.slopes]
    for index, (name, grad) in enumerate(named(backward(case, x, x.dlse)).items()):
        direction = rng.standard_normal(point[index].shape).astype(np.float32)
        direction /= np.linalg.norm(direction)
        step = np.float32(0.01)
        ahead, behind = (
            loss(*(a + s * direction if i == index else a for i, a in enumerate(point)))
            for s in (step, -step)
        )
        slope = (ahead - behind) / (2 * float(step))
        along = float((to_float64(grad) * direction).sum())
        assert abs(slope - along) <= 2e-3 * np.linalg.norm(grad), name


def packed(heads: int, kv_heads: int, length: int, dim: int, order: str) -> tuple[Array, ...]:
    """Views of q, k, v (in this order) into one [B, S, heads, D] projection output."""
    counts = {"q": heads, "k": kv_heads, "v": kv_heads}
    whole = np.full((2, length, sum(counts.values()), dim), np.nan, np.float32)
    starts = np.cumsum([0] + [counts[name] for name in order])
    views = {name: whole[:, :, starts[i] : starts[i + 1]] for i, name in enumerate(order)}
    return whole, *(views[name] for name in "qkv")


@pytest.mark.parametrize("order", ["qkv", "kqv"])
def test_packed_projection(order: str) -> None:
    """Strided views in, strided views out, the same bits as contiguous tensors, and no gap."""
    case = Case("packed", 2, 6, 3, 150, 150, 24, layout="BSND")
    x = make_inputs(case)
    plain = backward(case, x, x.dlse)
    (_, *inputs), (whole, *grads) = (packed(6, 3, 150, 24, order) for _ in range(2))
    for view, value in zip(inputs, (x.q, x.k, x.v), strict=True):
        view[...] = value
    options = options_of(case, x)
    out, lse = native.attention_forward(*inputs, x.slopes, **options)
    dslopes = np.full_like(x.slopes, np.nan)
    native.attention_backward(
        *inputs, x.slopes, out, lse, x.dout, dlse=x.dlse, grads=(*grads, dslopes), **options
    )
    assert bits((*grads, dslopes)) == bits(plain)
    assert np.isfinite(whole).all()


@pytest.mark.parametrize(("dtype", "head_dim"), [("float32", 16), ("bfloat16", 23)])
def test_layouts_agree_to_the_bit(dtype: str, head_dim: int) -> None:
    case = Case("layouts", 2, 4, 2, 70, 90, head_dim, causal=False)
    x = make_inputs(case, dtype)
    plain = backward(case, x, x.dlse)
    options = options_of(case, x, input_layout="BSND")
    turned = [np.ascontiguousarray(a.transpose(0, 2, 1, 3)) for a in (x.q, x.k, x.v, x.dout)]
    out, lse = native.attention_forward(*turned[:3], x.slopes, **options)
    got = native.attention_backward(
        *turned[:3], x.slopes, out, lse, turned[3], dlse=x.dlse, **options
    )
    assert bits((*(g.transpose(0, 2, 1, 3) for g in got[:3]), got[3])) == bits(plain)


THREADED = (
    Case("one-head", 1, 1, 1, 700, 700, 32),
    Case("one-head-full", 1, 1, 1, 300, 900, 16, causal=False),
    *SHARED,
    Case("signed", 2, 3, 3, 260, 260, 8, causal=False, bias="signed"),
    Case("wide", 1, 2, 2, 200, 520, 256, spans=((7, 500, 250),)),
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", THREADED, ids=str)
def test_threads_do_not_change_a_bit(case: Case, dtype: str) -> None:
    """One key head, so that threads share it; each thread count several times, because a race
    need not show at once. More threads than cores make the turns of dQ, dK and dV wait."""
    x = make_inputs(case, dtype)
    for isa in ISAS[:2]:
        one = bits(backward(case, x, x.dlse, threads=1, isa=isa))
        for threads in (2, 3, 2, 7, 16, 2):
            assert bits(backward(case, x, x.dlse, threads=threads, isa=isa)) == one


def test_concurrent_calls() -> None:
    """Calls from several Python threads, each with its own inputs, do not touch each other."""
    cases = [case for case in THREADED for _ in range(2)]
    inputs = [make_inputs(case) for case in cases]
    alone = [bits(backward(c, x, x.dlse)) for c, x in zip(cases, inputs, strict=True)]
    together: list[Any] = [None] * len(cases)

    def call(i: int) -> None:
        for _ in range(3):
            together[i] = bits(backward(cases[i], inputs[i], inputs[i].dlse, threads=2))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_touches_nothing_beyond_the_tensors(isa: str, dtype: str) -> None:
    """Every tensor ends at a guard page; no shape here is a multiple of a vector or a tile."""
    guarded = Guarded()
    for head_dim in (1, 5, 20, 67):
        case = Case("guarded", 1, 2, 1, 53, 71, head_dim, causal=head_dim != 5)
        x = make_inputs(case, dtype)
        options = options_of(case, x, isa=isa)
        out, lse = native.attention_forward(x.q, x.k, x.v, x.slopes, **options)
        plain = native.attention_backward(
            x.q, x.k, x.v, x.slopes, out, lse, x.dout, dlse=x.dlse, **options
        )
        inputs = [guarded.like(a) for a in (x.q, x.k, x.v, x.slopes, out, lse, x.dout)]
        grads = tuple(guarded.like(np.full_like(g, np.nan)) for g in plain)
        native.attention_backward(*inputs, dlse=guarded.like(x.dlse), grads=grads, **options)
        assert bits(grads) == bits(plain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("causal", [True, False])
def test_hidden_elements_may_hold_anything(causal: bool, dtype: str) -> None:
    """NaN in keys outside the span or after the last row (an odd position, so that it lies beside
    one that counts), and in the gradient of rows that see nothing, reaches no one; keys that no row
    may see, and such rows, have gradient exactly 0."""
    case = Case("hidden", 2, 2, 1, 59, 200, 23, causal, spans=((80, 139, 60), (40, 40, 0)))
    x, clean = make_inputs(case, dtype), make_inputs(case, dtype)
    expected = backward(case, clean, clean.dlse)
    blind = (
        [np.arange(59) < 20, np.ones(59, bool)]
        if causal
        else [np.zeros(59, bool), np.ones(59, bool)]
    )
    seen = [
        (start, min(end, q_start + 59) if causal else end) for start, end, q_start in case.spans
    ]
    for b, (start, end) in enumerate(seen):
        for a in (x.k, x.v):
            a[b, :, :start] = np.nan
            a[b, :, max(start, end) :] = np.inf
        for a in (x.q, x.dout):
            a[b][:, blind[b]] = np.nan
        x.dlse[b][:, blind[b]] = np.nan
    for isa in ISAS:
        dq, dk, dv, dslopes = backward(case, x, x.dlse, isa=isa)
        if isa == ISAS[0]:
            assert bits((dq, dk, dv, dslopes)) == bits(expected)
        assert np.isfinite(dslopes).all()
        for b, (start, end) in enumerate(seen):
            for grad in (dk, dv):
                assert not grad[b, :, :start].any()
                assert not grad[b, :, max(start, end) :].any()
            assert not dq[b][:, blind[b]].any()


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0), (1, 2, 0, 0)])
def test_empty_sizes(shape: tuple[int, int, int, int]) -> None:
    """Nothing to sum is 0, written out; dslopes too."""
    batch, heads, len_q, len_k = shape
    case = Case("empty", batch, heads, heads, len_q, len_k, 8, causal=False)
    x = make_inputs(case)
    for grad in backward(case, x, x.dlse):
        assert not np.isnan(grad).any()
        assert not grad.any()


PRUNED = (
    Case("steep", 1, 4, 4, 1500, 1500, 16, slopes="learned"),
    Case("two-sided", 1, 2, 2, 700, 1100, 16, causal=False, slopes="learned"),
    Case("geometric", 1, 8, 2, 1100, 1100, 32),
    Case("large-norms", 1, 2, 2, 900, 900, 16, slopes="steep", magnitude=3.0),
    Case("mixed", 2, 4, 2, 600, 600, 8, slopes="mixed", spans=((0, 600, 0), (40, 590, 300))),
    Case("gentle", 1, 2, 2, 600, 600, 16, scale=1e-3),
)


def as_drawn(x: Inputs) -> None:
    pass


def far_keys_score_highest(x: Inputs) -> None:
    """Keys sorted so that norm and match with every query grow with the distance from the last
    rows."""
    order = np.argsort(-np.linalg.norm(x.k, axis=-1), axis=-1)
    x.k[...] = abs(np.take_along_axis(x.k, order[..., None], axis=2))
    x.q[...] = abs(x.q)


def bound_is_tight(x: Inputs) -> None:
    """All queries and keys equal: Cauchy-Schwarz and the geometric series hold with equality, so
    what is left out weighs as much as the rule permits."""
    x.q[...] = x.k[...] = 0.5


@pytest.mark.parametrize("change", [as_drawn, far_keys_score_highest, bound_is_tight])
@pytest.mark.parametrize("case", PRUNED, ids=str)
def test_pruning_stays_within_its_bound(case: Case, change: Callable[[Inputs], None]) -> None:
    """|pruned - truth| <= |dense - truth| + Theorem 2, and no worse than float32 rounding: at most
    twice the dense error plus a unit in the last place of the largest entry. The first is proved
    for any input, the second is what the tile-wise use of the bound leaves of it."""
    x = make_inputs(case)
    change(x)
    truth = truth_of(case, x, x.dlse)
    dense, pruned = (named(backward(case, x, x.dlse, prune=p)) for p in (False, True))
    eps, group = 2.0**-24, case.Hq // case.Hkv
    length = lambda a: float(np.linalg.norm(to_float64(a), axis=-1).max())  # noqa: E731
    scale, slope = abs(case.options["scale"]), x.slopes.astype(np.float64)
    largest = 2 * length(x.dout) * length(x.v) + abs(x.dlse).max()  # |<dout, v> - delta|
    columns = group * eps * np.log1p(np.clip(slope, 0, None) * (case.Sq + case.Sk)).max()
    gentlest = slope[slope > 0].min(initial=np.inf)
    bound = {
        "dq": eps * scale * largest * length(x.k),
        "dk": columns * scale * largest * length(x.q),
        "dv": columns * length(x.dout),
        "dslopes": case.B * case.Sq * eps * largest / gentlest,
    }
    for name in NAMES:
        error, unit = worst_error(dense[name], truth[name]), 2 * eps * abs(truth[name]).max()
        allowed = min(error + bound[name] + unit, 2 * error + unit)
        assert_close(pruned[name], truth[name], allowed, name)


def test_pruning_leaves_tiles_out() -> None:
    """Steep heads visit few tiles; prune=False, slopes of 0 and below, and a signed bias without
    causal mask visit all; and a pruned result is not the dense one bit by bit."""
    visited: dict[str, int] = {}

    def run(case: Case, x: Inputs, prune: bool) -> tuple[float, list[bytes]]:
        options = options_of(case, x)
        out, lse = native.attention_forward(x.q, x.k, x.v, x.slopes, **options)
        grads = native.attention_backward(
            x.q, x.k, x.v, x.slopes, out, lse, x.dout, prune=prune, stats=visited, **options
        )
        return visited["tiles_visited"] / visited["tiles_allowed"], bits(grads)

    case = Case("counted", 1, 2, 2, 1500, 1500, 8, slopes="learned")
    x = make_inputs(case)
    share, pruned = run(case, x, True)
    whole, dense = run(case, x, False)
    assert share < 0.5
    assert whole == 1.0
    assert pruned != dense
    full = Case("counted-signed", 1, 2, 2, 2000, 2000, 8, False, "signed", slopes="learned")
    assert run(full, make_inputs(full), True)[0] == 1.0
    for slopes in ("zero", "negative"):
        flat = Case(f"counted-{slopes}", 1, 2, 2, 2000, 2000, 8, slopes=slopes)
        assert run(flat, make_inputs(flat), True)[0] == 1.0


def test_slope_gradients_of_long_sequences() -> None:
    """dslopes sums 8 million terms of both signs, weighted with distances up to 4096. The error is
    measured against the sum of their absolute values, which is what float32 terms can promise:
    each term carries a few roundings (8 * 2^-24), and the sum adds next to nothing."""
    case = Case("slopes-4096", 1, 2, 1, 4096, 4096, 16, slopes="geometric")
    x = make_inputs(case)
    truth = truth_of(case, x, x.dlse)["dslopes"]
    sizes = np.zeros(case.Hq)
    p = oracle.weights(x.q, x.k, x.slopes, **options_of(case, x))
    distance = abs(np.arange(4096)[:, None] - np.arange(4096)[None, :])
    for h in range(case.Hq):
        dp = to_float64(x.dout[0, h]) @ to_float64(x.v[0, 0]).T
        delta = (p[0, h] * dp).sum(axis=1) - x.dlse[0, h]
        sizes[h] = (p[0, h] * abs(dp - delta[:, None]) * distance).sum()
    for prune in (False, True):
        got = backward(case, x, x.dlse, prune=prune)[3]
        assert (abs(got - truth) <= 8 * 2.0**-24 * sizes).all(), (got, truth, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LONG, ids=str)
def test_long(case: Case, dtype: str) -> None:
    x = make_inputs(case, dtype)
    truth, rival = truth_of(case, x, x.dlse), attention_gradients(case, x, dtype, x.dlse)
    rival.check(named(backward(case, x, x.dlse)), truth, dtype)


def test_bfloat16_is_the_ml_dtypes_one() -> None:
    """The cases above would be empty if the dtype were converted on the way."""
    case = SMALL[0]
    x = make_inputs(case, "bfloat16")
    assert all(g.dtype == ml_dtypes.bfloat16 for g in backward(case, x)[:3])
