"""The rows of Ascend without an NPU: a fake CANN, and stand-ins for what would run on the device.

What is ours runs unchanged: the choice of the row, the operands and attributes of every call, delta
and the last sums, the pruning reach, the gradients of gradients. MindSpore's own `ops.Custom` reads
the fake CANN and compiles its call-back. What the device would do is computed by tests/fake_cann.py
on the CPU.
"""

# No `from __future__ import annotations`: mixed precision O1 rewrites classes of a module.

import inspect
from dataclasses import replace

import numpy as np
import pytest

import alibi_kernels
from alibi_kernels import ascend
from tests import fake_cann, oracle
from tests.cases import SITUATIONS, SMALL, Case, make_dp, make_inputs
from tests.compare import assert_close
from tests.custom_tools import normal, tensor
from tests.test_custom_gradients import second_order
from tests.test_custom_modes import check

SLOPES = (0.5, 0.125)
CASES = tuple(case for case in SMALL if case not in SITUATIONS and 0 not in (case.Sq, case.Sk))
FAR = Case("far", 1, 2, 1, 140, 400, 16, slopes="steep", magnitude=0.5)


@pytest.fixture
def custom_calls(ms, op_package, monkeypatch):
    """`ops.Custom` on the device: records how it is made, and computes."""
    made = []

    def custom(name, out_shape, out_dtype, func_type):
        made.append((name, func_type))
        return fake_cann.STAND_INS[name](out_shape, out_dtype)

    monkeypatch.setattr(ms.ops, "Custom", custom)
    return made


def test_operands_are_called_in_the_order_of_the_definition():
    """The stand-ins take operands by position, and name them as csrc/ascend/op_host does."""
    for op in fake_cann.STAND_INS:
        parameters = list(inspect.signature(fake_cann.STAND_INS[op].construct).parameters)[1:]
        assert parameters == fake_cann.operand_names(op.removeprefix("aclnn"))
    named = {name for pair in ascend.PAIRS.values() for name in pair}
    assert named <= set(fake_cann.definitions())


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_against_the_oracle(ms, custom_calls, case, graph):
    check(ms, case, "float16", "ascend", ms.jit if graph else (lambda f: f))
    assert sorted(custom_calls) == [
        ("aclnnAlibiAttention", "aot"),
        ("aclnnAlibiAttentionGrad", "aot"),
    ]


def test_key_norms_stay_behind(ms, custom_calls, mode):
    q, k = (normal(ms, 1, 2, n, 16).astype(ms.float16) for n in (1, 300))
    norms = alibi_kernels.key_norms(k) * 0.0

    def op(q, k, norms):
        return alibi_kernels.alibi_attention(q, k, k, SLOPES, key_norms=norms, backend="ascend")

    run = mode(op)
    np.testing.assert_array_equal(run(q, k, norms).asnumpy(), run(q, k, None).asnumpy())


@pytest.fixture
def reaches(monkeypatch):
    """The inputs `reach` of the calls, in PyNative mode."""
    seen = []
    make = ascend._reach

    def recording(rules):
        reach = make(rules)

        def call(*operands):
            seen.append(reach(*operands).asnumpy())
            return reach(*operands)

        return call

    monkeypatch.setattr(ascend, "_reach", recording)
    return seen


def test_pruning_leaves_out_what_cannot_be_seen(ms, custom_calls, reaches):
    """The stand-ins obey the reach to the key, and the results stay within their bounds."""
    for causal in (True, False):
        check(ms, replace(FAR, causal=causal), "float16", "ascend", lambda f: f)
    assert len(reaches) == 4
    for values in reaches:
        assert values.shape == (1, 2, 2)
        assert values.dtype == np.int32
        assert (values[:, 0] < 100).all()  # of 400 keys


def test_pruning_in_a_graph(ms, custom_calls):
    check(ms, FAR, "float16", "ascend", ms.jit)


@pytest.mark.parametrize("sequence_first", [False, True])
@pytest.mark.parametrize("sides", [1, 2])
def test_reach_keeps_the_promise_of_the_rules(ms, sides, sequence_first):
    """T(d) (1 + m d) <= 2^-24 / sides of the row's sum, for every row, from the reach on."""
    rng = np.random.default_rng(sides)
    slopes = np.array([2.0, 0.3, 0.01, 1e-4, 0.0, -0.5], np.float32)
    q = rng.standard_normal((2, 6, 130, 8)).astype(np.float32)
    k = rng.standard_normal((2, 2, 40, 8)).astype(np.float32)
    spans = np.array([[0, 40, -60], [3, 29, 500]], np.int32)
    scale = 0.35
    layout = (0, 2, 1, 3) if sequence_first else (0, 1, 2, 3)
    reach = ascend._reach(ascend._Rules(scale, sides == 1, True, sequence_first, sides))
    got = reach(
        *(ms.Tensor(np.ascontiguousarray(x.transpose(layout))) for x in (q, k)),
        *(ms.Tensor(slopes), ms.Tensor(spans)),
    ).asnumpy()
    assert got.shape == (2, 6, 2)
    assert (got[:, 4:] == ascend.NO_REACH).all()
    for b, h in np.ndindex(2, 4):
        m, r = float(slopes[h]), int(got[b, h, 0])
        start, end, first = (int(x) for x in spans[b])
        p = first + np.arange(130)
        u = scale * np.linalg.norm(q[b, h], axis=1) * np.linalg.norm(k[b, h // 3], axis=1).max()
        nearest = np.maximum(0, np.maximum(start - p, p - (end - 1)))
        d = nearest + r
        tail = u - m * d - np.log(-np.expm1(-m)) + np.log1p(m * d)
        lse = -u - m * nearest  # at least the nearest key
        skips = d <= np.maximum(abs(p - start), abs(p - (end - 1)))  # any key at all
        assert (tail - lse <= -np.log(sides * 2.0**24))[skips].all()
        assert r < ascend.NO_REACH
    # And it is not much longer than it need be: 16.6 + log terms, over the slope.
    assert got[0, 0, 0] < 40


@pytest.mark.parametrize(
    ("options", "length"),
    [({"prune": False}, 300), ({"causal": False, "bias": "signed"}, 300), ({}, 127)],
)
def test_nothing_is_pruned(ms, custom_calls, reaches, options, length):
    """Not asked for, no bias that falls on both sides, or too few queries to be worth the norms."""
    q = normal(ms, 1, 2, length, 16).astype(ms.float16)
    alibi_kernels.alibi_attention(q, q, q, (8.0, 8.0), backend="ascend", **options)
    assert (reaches[0] == ascend.NO_REACH).all()
    assert reaches[0].shape == (1, 2, -(-length // 128))


def test_infinite_and_nan_inputs_prune_nothing(ms):
    q = np.ones((1, 2, 130, 8), np.float32)
    q[0, 0, 5, 1], q[0, 1, 7, 2] = np.inf, np.nan
    spans = ms.Tensor(np.array([[0, 130, 0]], np.int32))
    slopes = ms.Tensor(np.array(SLOPES, np.float32))
    reach = ascend._reach(ascend._Rules(1.0, True, True, False, 1))
    assert (reach(ms.Tensor(q), ms.Tensor(q), slopes, spans).asnumpy() == ascend.NO_REACH).all()


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("case", CASES[1::6], ids=str)
def test_weights(ms, custom_calls, case, graph):
    x, dp = make_inputs(case, "float16"), make_dp(case, "float16")
    options = {**case.options, "spans": tensor(ms, x.spans), "backend": "ascend"}
    cotangent = ms.Tensor(dp.astype(np.float32))

    def loss(q, k, slopes):
        p = alibi_kernels.alibi_attention_weights(q, k, slopes, **options)
        return (p.astype(ms.float32) * cotangent).sum(), p

    gradient = ms.value_and_grad(loss, (0, 1, 2), has_aux=True)
    run = ms.jit(gradient) if graph else gradient
    (_, p), grads = run(tensor(ms, x.q), tensor(ms, x.k), ms.Tensor(x.slopes))
    arrays = (x.q, x.k, x.slopes)
    assert_close(p, oracle.weights(*arrays, spans=x.spans, **case.options), 2.0**-11)
    truth = oracle.weights_grad(*arrays, dp, spans=x.spans, **case.options)
    for got, want in zip(grads, truth, strict=True):
        # p and dp reach the gradient rounded to float16, as on the device.
        assert_close(got, want, 2.0**-8 * np.abs(want).max() + 2.0**-9)
    assert sorted(custom_calls) == [
        ("aclnnAlibiAttentionWeights", "aot"),
        ("aclnnAlibiAttentionWeightsGrad", "aot"),
    ]


def test_fixed_slopes_get_no_gradient(ms, custom_calls, mode):
    q, k, v = (normal(ms, 1, 2, 11, 16, seed=i).astype(ms.float16) for i in range(3))

    def loss(q, k, v):
        out = alibi_kernels.alibi_attention(q, k, v, SLOPES, backend="ascend")
        return out.astype(ms.float32).sum()

    grads = mode(ms.grad(loss, (0, 1, 2)))(q, k, v)
    arrays = [x.asnumpy() for x in (q, k, v)]
    want = oracle.attention_grad(*arrays, np.array(SLOPES), np.ones(q.shape))
    assert len(grads) == 3
    for got, expected in zip(grads, want[:3], strict=True):
        assert got.dtype == ms.float16
        assert_close(got, expected, 2.0**-8 * np.abs(expected).max())


def test_packed(ms, custom_calls, mode):
    """The thirds of a packed projection, whose gradient is one tensor again."""
    packed = normal(ms, 2, 9, 3, 2, 16).astype(ms.float16)

    def loss(packed):
        out, lse = alibi_kernels.alibi_attention_packed(
            packed, SLOPES, order="kqv", return_lse=True, backend="ascend"
        )
        return out.astype(ms.float32).sum() + lse.sum(), out

    (_, out), grad = mode(ms.value_and_grad(loss, 0, has_aux=True))(packed)
    x = packed.asnumpy()
    q, k, v = x[:, :, 1], x[:, :, 0], x[:, :, 2]
    options = {"input_layout": "BSND"}
    truth, lse = oracle.attention(q, k, v, np.array(SLOPES), **options)
    assert_close(out, truth, 2.0**-9)
    dq, dk, dv, _ = oracle.attention_grad(
        *(q, k, v, np.array(SLOPES), np.ones(q.shape), np.ones(lse.shape)), **options
    )
    want = np.stack([dk, dq, dv], 2)
    assert_close(grad, want, 2.0**-8 * np.abs(want).max())


def test_mixed_precision_keeps_slopes(ms, custom_calls, mode):
    """lse of zero queries shows every digit of the slopes; float16 would lose 1e-3 of it."""

    class Net(ms.nn.Cell):
        def construct(self, x):
            out, lse = alibi_kernels.alibi_attention(
                x, x, x, (0.1, 0.013), causal=False, return_lse=True, backend="ascend"
            )
            return out.astype(ms.float32).sum() + 0.0 * lse.sum(), lse

    net = Net().to_float(ms.float16)
    x = ms.ops.zeros((1, 2, 1100, 16), ms.float16)
    slopes = np.array((0.1, 0.013), np.float32)
    options = {"causal": False}
    zeros = np.zeros(x.shape)
    _, want = oracle.attention(zeros, zeros, zeros, slopes, **options)
    _, lse = mode(net)(x)
    assert lse.dtype == ms.float32
    assert_close(lse, want, 4e-6)
    grads = mode(ms.grad(net, 0, has_aux=True))(x)[0]
    # Zero queries and keys: all of it is dv, rounded to float16.
    want = oracle.attention_grad(zeros, zeros, zeros, slopes, np.ones(x.shape), **options)[2]
    assert_close(grads, want, 2.0**-9 * want.max())


def test_a_gradient_taken_inside_a_float16_cell(ms, custom_calls):
    """There the backward, too, runs under mixed precision: the stand-ins check what they get."""

    def loss(q, slopes):
        out, lse = alibi_kernels.alibi_attention(q, q, q, slopes, return_lse=True, backend="ascend")
        return out.astype(ms.float32).sum() + lse.sum()

    gradient = ms.grad(loss, (0, 1))

    class Net(ms.nn.Cell):
        def construct(self, q, slopes):
            return gradient(q, slopes)

    q = normal(ms, 1, 2, 9, 16).astype(ms.float16)
    slopes = ms.Tensor(np.array((0.1, 0.013), np.float32))
    _, got = Net().to_float(ms.float16)(q, slopes)
    x = q.asnumpy()
    want = oracle.attention_grad(
        *(x, x, x, slopes.asnumpy(), np.ones(x.shape), np.ones(x.shape[:3]))
    )[3]
    assert_close(got, want, 2.0**-9 * np.abs(want).max())


def test_gradients_of_gradients(ms, custom_calls, mode):
    arguments = [normal(ms, 1, 2, 5, 16, seed=i).astype(ms.float16) for i in range(3)]
    arguments.append(ms.Tensor(np.array(SLOPES, np.float32)))
    weight = normal(ms, 1, 2, 5, 16, seed=3).astype(ms.float16)
    got = mode(second_order(ms, "ascend", None, weight)[1])(*arguments)
    # In a graph: PyNative mode loses second-order terms of the reference.
    want = ms.jit(second_order(ms, "reference", None, weight)[1])(*arguments)
    for x, y in zip(got, want, strict=True):
        x, y = (t.astype(ms.float32).asnumpy() for t in (x, y))
        np.testing.assert_allclose(x, y, rtol=0, atol=2.0**-7 * np.abs(y).max())
