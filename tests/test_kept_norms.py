"""Attention in MindSpore that is pruned by the norms of keys that a cache keeps.

The truth is the float64 oracle. Pruned with norms, pruned without and dense may differ from each
other by what tests/native/test_prune.py derives: 2^-22 of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import alibi_kernels
from alibi_kernels import alibi_attention, alibi_slopes, key_norms, native
from tests import oracle
from tests.cases import DTYPES, Case, Inputs, make_inputs
from tests.compare import (
    EPSILON,
    assert_close_to_truth,
    assert_close_when_small,
    to_float64,
)
from tests.custom_tools import normal, run_python, tensor, tensors
from tests.native.test_prune import ADVERSARIAL, adversarial
from tests.test_custom_modes import compilations

CASES = (
    Case("one-row", 1, 8, 8, 1, 3000, 64),
    Case("grouped-BSND", 2, 8, 2, 1, 2000, 40, layout="BSND", slopes="learned"),
    Case("spans", 3, 4, 2, 2, 1500, 32, spans=((0, 1500, 1498), (9, 900, 898), (0, 0, 0))),
    Case("two-sides-BSND", 1, 4, 4, 3, 2500, 32, False, layout="BSND", spans=((70, 2500, 1200),)),
    Case("tiles", 1, 4, 2, 70, 900, 32),
)


def attend(
    case: Case, slopes: Any, backend: str = "cpu", prune: bool = True
) -> Callable[..., tuple[Any, Any]]:
    def run(q, k, v, spans, norms):  # type: ignore[no-untyped-def]  # compiled in the tests below
        return alibi_attention(
            q,
            k,
            v,
            slopes,
            spans=spans,
            key_norms=norms,
            prune=prune,
            return_lse=True,
            backend=backend,
            **case.options,
        )

    return run


def norms_of(case: Case, k: Any) -> Any:
    return key_norms(k, input_layout=case.layout)


def check(ms: Any, case: Case, x: Inputs, dtype: str, wrap: Any) -> None:
    """With norms against the oracle, with the dense call as the rival; and against that call."""
    (q, k, v), spans, slopes = tensors(ms, x), tensor(ms, x.spans), tuple(x.slopes.tolist())
    truth = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    dense = wrap(attend(case, slopes, prune=False))(q, k, v, spans, None)
    largest = float(np.abs(to_float64(x.v)).max())
    for norms in (norms_of(case, k), None):
        got = wrap(attend(case, slopes))(q, k, v, spans, norms)
        # 2^-22 as in test_prune.py; a result of 16 bits may then round to its neighbour.
        stored = 0.0 if dtype == "float32" else EPSILON[dtype]
        floor = (2.0**-22 + stored) * largest
        assert_close_to_truth(got[0], truth[0], dense[0], 1, floor, f"{case.name} out")
        assert np.abs(to_float64(got[0]) - to_float64(dense[0])).max() <= floor
        lse, dense_lse = got[1].asnumpy(), dense[1].asnumpy()
        seen = np.isfinite(dense_lse)
        assert np.array_equal(np.isfinite(lse), seen)
        lse, dense_lse = lse[seen], dense_lse[seen]
        assert (np.abs(lse - dense_lse) <= 2.0**-22 * (1 + np.abs(dense_lse))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_pruned_by_norms_is_exact(ms: Any, mode: Any, case: Case, dtype: str, backend: str) -> None:
    check(ms, case, make_inputs(case, dtype), dtype, mode)


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_adversarial_inputs(ms: Any, name: str, backend: str) -> None:
    case = Case("", 1, 4, 4, 1, 1500, 16)
    check(ms, case, adversarial(name, case), "float32", lambda f: f)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_far_keys_are_left_unread(ms: Any, mode: Any, backend: str) -> None:
    """They may be anything; without norms they are read, and with norms that know of them too."""
    case = Case("", 1, 2, 2, 1, 2000, 16, slopes="steep")
    x = make_inputs(case)
    slopes = tuple(x.slopes.tolist())
    run = mode(attend(case, slopes))
    norms = key_norms(tensor(ms, x.k))
    x.k[:, :, :1000] = np.nan
    q, k, v = tensors(ms, x)
    assert np.isfinite(run(q, k, v, None, norms)[0].asnumpy()).all()
    assert np.isnan(run(q, k, v, None, None)[0].asnumpy()).all()
    assert np.isnan(run(q, k, v, None, key_norms(k))[0].asnumpy()).all()


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_huge_far_key_is_seen_through_its_norm_alone(ms: Any, mode: Any, backend: str) -> None:
    case = Case("", 1, 4, 2, 1, 3000, 32, slopes="learned")
    x = make_inputs(case)
    small = key_norms(tensor(ms, x.k))
    x.k[:, :, 5] = 300 * x.q[:, ::2, 0]
    (q, k, v), slopes = tensors(ms, x), tuple(x.slopes.tolist())
    raised = key_norms(tensor(ms, x.k[:, :, 5:6]), start=5, norms=small)
    truth, _ = oracle.attention(x.q, x.k, x.v, x.slopes, **case.options)
    run = mode(attend(case, slopes))
    assert np.abs(run(q, k, v, None, raised)[0].asnumpy() - truth).max() <= 2.0**-20
    # Norms that have not heard of it hide it: the comparison above can fail.
    assert np.abs(run(q, k, v, None, small)[0].asnumpy() - truth).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_cache_that_grows(
    ms: Any, mode: Any, layout: str, dtype: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sequences of different lengths in one cache; one of the tokens has a huge key.

    The positions are a tensor, so one compiled graph serves every step.
    """
    case = Case("", 2, 4, 2, 1, 700, 16, layout=layout, slopes="steep")
    x = make_inputs(case, dtype)
    axis = 2 if layout == "BNSD" else 1
    lengths = np.array([640, 655])
    spans = np.stack([0 * lengths, lengths + 1, lengths], 1).astype(np.int32)
    slopes = tuple((x.slopes / 16).tolist())

    def step(q, k, v, new, spans, norms):  # type: ignore[no-untyped-def]
        norms = key_norms(new, start=spans[:, 2], norms=norms, input_layout=layout)
        out = alibi_attention(
            q, k, v, slopes, spans=spans, key_norms=norms, input_layout=layout, backend=backend
        )
        return out, norms

    def at(n: int) -> list[Any]:
        """Where the keys of step n stand in the cache, one index per sequence."""
        return [np.s_[b, :, m + n] if axis == 2 else np.s_[b, m + n] for b, m in enumerate(lengths)]

    norms = ms.Tensor(np.zeros((2, 2, 44), np.float32))
    for first, start in ((0, [0, 0]), (15, [0, 15])):  # 640 keys at once, the last 15 of the longer
        part = np.take(x.k, range(first, first + 640), axis)
        norms = key_norms(
            tensor(ms, part), start=ms.Tensor(np.int32(start)), norms=norms, input_layout=layout
        )
    seen, run = compilations(ms, monkeypatch), mode(step)
    for i in range(20):
        if i == 3:
            for place in at(i):
                x.k[place] *= 40
        new = np.expand_dims(np.stack([x.k[place] for place in at(i)]), axis)
        now = spans + np.array([0, i, i], np.int32)
        q, k, v = tensors(ms, x)
        out, norms = run(q, k, v, tensor(ms, new), ms.Tensor(now), norms)
        options = {"spans": now, "input_layout": layout}
        arrays = (x.q, x.k, x.v, np.float32(slopes))
        truth, _ = oracle.attention(*arrays, **options)
        dense, _ = native.attention_forward(*arrays, prune=False, **options)
        assert_close_to_truth(out, truth, dense, 1, (2.0**-22 + EPSILON[dtype]) * 5, f"step {i}")
    assert norms.shape == (2, 2, 44)
    assert len(seen) <= 1, "a step was compiled anew"


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_gradients_are_those_without_norms(ms: Any, mode: Any, backend: str) -> None:
    """The norms get none: neither does k through them, not even at 0, where a root has no slope."""
    case = Case("", 1, 4, 2, 3, 1200, 16, spans=((7, 1200, 1197),))
    x = make_inputs(case)
    x.k[:, :, 32:48] = 0
    (q, k, v), spans, slopes = tensors(ms, x), tensor(ms, x.spans), ms.Tensor(x.slopes)
    weight = tensor(ms, x.dout)

    def loss(q, k, v, slopes, norms):  # type: ignore[no-untyped-def]
        out, lse = attend(case, slopes)(q, k, v, spans, norms)
        return (out * weight).sum() + lse.sum()

    def own(q, k, v, slopes):  # type: ignore[no-untyped-def]
        return loss(q, k, v, slopes, key_norms(k))

    def none(q, k, v, slopes):  # type: ignore[no-untyped-def]
        return loss(q, k, v, slopes, None)

    which = (0, 1, 2, 3)
    want = mode(ms.grad(none, which))(q, k, v, slopes)
    *given, of_norms = mode(ms.grad(loss, (*which, 4)))(q, k, v, slopes, key_norms(k))
    assert not of_norms.asnumpy().any()
    truth = oracle.attention_grad(
        x.q, x.k, x.v, x.slopes, x.dout, np.ones(x.dlse.shape), spans=x.spans, **case.options
    )
    for got in (given, mode(ms.grad(own, which))(q, k, v, slopes)):
        for a, b, t in zip(got, want, truth, strict=True):
            assert_close_to_truth(a, t, b, 1, 2.0**-21 * np.abs(t).max())


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_gradients_of_gradients(ms: Any, mode: Any, backend: str) -> None:
    q, k, v = (normal(ms, 1, 2, 5, 4, seed=i) for i in range(3))
    norms = key_norms(k)

    def second(norms):  # type: ignore[no-untyped-def]
        def loss(q, k, v):  # type: ignore[no-untyped-def]
            out = alibi_attention(q, k, v, (0.5, 0.25), key_norms=norms, backend=backend)
            return (out * out).sum()

        first = ms.grad(loss, (0, 1, 2))

        def square(q, k, v):  # type: ignore[no-untyped-def]
            dq, dk, dv = first(q, k, v)
            return (dq * dq).sum() + (dk * dk).sum() + (dv * dv).sum()

        return mode(ms.grad(square, (0, 1, 2)))(q, k, v)

    for i, (a, b) in enumerate(zip(second(norms), second(None), strict=True)):
        assert_close_when_small(a, b, f"operand {i}")


def test_backends_that_have_no_use_for_norms_take_them(ms: Any, mode: Any) -> None:
    case = CASES[2]
    x = make_inputs(case)
    (q, k, v), spans = tensors(ms, x), tensor(ms, x.spans)
    run = mode(attend(case, tuple(x.slopes.tolist()), "reference"))
    useless = key_norms(k) * 0.0  # by these, all but the nearest keys would be left out
    for a, b in zip(run(q, k, v, spans, useless), run(q, k, v, spans, None), strict=True):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_mixed_precision_rounds_no_norm(ms: Any, backend: str) -> None:
    """PyNative mode casts the inputs of every operator inside a float16 cell."""
    slopes = alibi_slopes(2)

    class Net(ms.nn.Cell):
        def construct(self, q, k, v):  # type: ignore[no-untyped-def]
            norms = key_norms(k)
            return alibi_attention(q, k, v, slopes, key_norms=norms, backend=backend), norms

    q, k, v = (normal(ms, 1, 2, n, 8, seed=n).astype(ms.float16) for n in (1, 700, 700))
    out, norms = Net().to_float(ms.float16)(q, k, v)
    assert norms.dtype == ms.float32
    np.testing.assert_array_equal(norms.asnumpy(), native.key_norms(k.asnumpy()))
    truth, _ = oracle.attention(*(x.asnumpy() for x in (q, k, v)), np.array(slopes))
    assert np.abs(to_float64(out) - truth).max() <= 2.0**-10 * np.abs(truth).max()


def test_one_compilation_serves_every_length(ms: Any) -> None:
    """Lengths are dynamic, so nothing about them is known when the graph is compiled."""

    class Net(ms.nn.Cell):
        def construct(self, q, k, v, norms):  # type: ignore[no-untyped-def]
            norms = key_norms(k, norms=norms)
            return alibi_attention(q, k, v, (0.5, 0.25), key_norms=norms), norms

    net = Net()
    dynamic = ms.Tensor(shape=[None, 2, None, 8], dtype=ms.float32)
    net.set_inputs(dynamic, dynamic, dynamic, ms.Tensor(shape=[None, 2, None], dtype=ms.float32))
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        for n in (300, 17, 1000):
            q, k, v = (normal(ms, 1, 2, m, 8, seed=m) for m in (1, n, n))
            out, norms = net(q, k, v, ms.Tensor(np.zeros((1, 2, -(-n // 16)), np.float32)))
            truth, _ = oracle.attention(*(x.asnumpy() for x in (q, k, v)), np.float32([0.5, 0.25]))
            assert_close_when_small(out, truth, f"{n} keys")
            np.testing.assert_array_equal(norms.asnumpy(), native.key_norms(k.asnumpy()))
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def small(ms: Any) -> dict[str, Any]:
    q, k, v = (normal(ms, 1, h, n, 4, seed=n) for h, n in ((4, 1), (2, 40), (2, 40)))
    return {"q": q, "k": k, "v": v, "slopes": alibi_slopes(4), "key_norms": key_norms(k)}


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ([0.0], TypeError, "key_norms must be a mindspore.Tensor, got [0.0] (list)"),
        ((1, 2, 2), ValueError, "must have shape (1, 2, 3), one norm per batch item, key head"),
        ((1, 4, 3), ValueError, "but key_norms.shape = (1, 4, 3)"),
        ((2, 3), ValueError, "but key_norms.shape = (2, 3); key_norms(k) makes them."),
        (np.float16, TypeError, "key_norms has dtype float16; it must be float32, because"),
    ],
)
def test_norms_that_a_call_refuses(ms: Any, wrong: Any, error: type[Exception], text: str) -> None:
    """A tuple is a shape, a type a dtype."""
    arguments = small(ms)
    if isinstance(wrong, tuple):
        wrong = ms.Tensor(np.zeros(wrong, np.float32))
    if wrong is np.float16:
        wrong = arguments["key_norms"].astype(ms.float16)
    arguments["key_norms"] = wrong
    with pytest.raises(error) as caught:
        alibi_attention(**arguments)
    assert str(caught.value).startswith("alibi_attention: key_norms ")
    assert text in str(caught.value)
    if isinstance(wrong, ms.Tensor):
        with pytest.raises(error, match="alibi_attention: key_norms "):
            alibi_kernels.explain(**arguments)


def test_a_graph_refuses_norms_that_a_cell_rounded(
    ms: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """A compiled float16 cell casts its inputs; by rounded norms a key could be left out."""
    monkeypatch.chdir(tmp_path)  # MindSpore leaves a dump of the graph there

    class Net(ms.nn.Cell):
        def construct(self, q, k, v, norms):  # type: ignore[no-untyped-def]
            return alibi_attention(q, k, v, (0.5, 0.25, 0.1, 0.05), key_norms=norms)

    x = small(ms)
    net = Net().to_float(ms.float16)
    with pytest.raises(TypeError, match="key_norms has dtype float16; it must be float32"):
        ms.jit(net)(x["q"], x["k"], x["v"], x["key_norms"])


def test_explain_takes_norms(ms: Any) -> None:
    with_norms = small(ms)
    without = {name: x for name, x in with_norms.items() if name != "key_norms"}
    assert alibi_kernels.explain(**with_norms) == alibi_kernels.explain(**without)


_IN_A_GRAPH = """
import mindspore as ms
import numpy as np
from alibi_kernels import alibi_attention, key_norms
from tests.custom_tools import normal

class Net(ms.nn.Cell):
    def construct(self, q, k, start, norms, kept):
        return alibi_attention(q, k, k, (0.5, 0.25), key_norms=kept), key_norms(
            k, start=start, norms=norms)

ms.set_context(mode=ms.GRAPH_MODE)
net, any_length = Net(), ms.Tensor(shape=[1, 2, None], dtype=ms.float32)
keys = ms.Tensor(shape=[1, 2, None, 4], dtype=ms.float32)
net.set_inputs(keys, keys, ms.Tensor(shape=[1], dtype=ms.int32), any_length, any_length)
k, start = normal(ms, 1, 2, 40, 4), ms.Tensor(np.int32([0]))
norms = ms.Tensor(np.zeros((1, 2, 3), np.float32))
print(net(k, k, start, norms, norms + 9)[1].shape)
try:
    print(net({arguments})[1].asnumpy())
except RuntimeError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            "k, k, start + ms.Tensor(np.int32(9)), norms, norms",
            'key_norms: status "spans": every key must stand at a position of at least 0',
        ),
        (
            "k, k, start, norms, ms.Tensor(np.zeros((1, 2, 2), np.float32))",
            "alibi_attention: key_norms must have shape (1, 2, 3) to fit the other inputs, "
            "got (1, 2, 2)",
        ),
    ],
    ids=["start", "shape"],
)
def test_the_bridge_checks_what_a_graph_hides(
    ms: Any, backend: str, arguments: str, text: str, tmp_path: Any
) -> None:
    """In a process of its own, because MindSpore runs nothing in a graph after a kernel failed."""
    script = tmp_path / "script.py"
    script.write_text(_IN_A_GRAPH.replace("{arguments}", arguments))
    done = run_python(script, tmp_path)
    assert "(1, 2, 3)\nrefused:" in done.stdout, done.stderr
    assert text in done.stdout
