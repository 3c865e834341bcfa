"""Training: optimizers, trained slopes, mixed precision."""

# No `from __future__ import annotations`: mixed precision O1 rewrites classes of this module.

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

import alibi_kernels
from alibi_kernels import TrainedSlopes, alibi_attention_packed
from tests import oracle
from tests.custom_tools import normal

HEADS, HEAD_DIM, LENGTH = 2, 4, 1100
# Not representable in float16: rounding them costs up to 0.03 in logits at distance 1024.
SLOPES = (0.1, 0.013)


class Net(nn.Cell):
    """A projection and attention -> (out, lse); `slopes` is "fixed", "trained" or "parameter"."""

    def __init__(self, slopes: str, backend: str) -> None:
        super().__init__()
        weight = np.random.default_rng(1).standard_normal((24, 8)).astype(np.float32) * 0.3
        self.project = nn.Dense(8, 24, Tensor(weight), has_bias=False)
        self.kind = slopes
        self.thirds = (3, HEADS, HEAD_DIM)
        self.backend = backend
        self.slopes: Any = SLOPES
        if slopes == "trained":
            self.slopes = TrainedSlopes(SLOPES)
        elif slopes == "parameter":
            self.slopes = Parameter(Tensor(np.array(SLOPES, np.float32)), name="slopes")

    def construct(self, x):
        packed = self.project(x).reshape((x.shape[0], x.shape[1], *self.thirds))
        slopes = self.slopes() if self.kind == "trained" else self.slopes
        return alibi_attention_packed(
            packed, slopes, causal=False, return_lse=True, backend=self.backend
        )


def test_train_one_step(mode, backend):
    """The slopes move against their gradient, the rest does too, and the loss falls."""
    net = Net("trained", backend)
    x = normal(ms, 2, 30, 8)

    class Loss(nn.Cell):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def construct(self, x):
            return (self.net(x)[0] ** 2).mean()

    step = nn.TrainOneStepCell(Loss(net), nn.SGD(net.trainable_params(), learning_rate=0.3))
    step.set_train()
    before = {p.name: p.asnumpy().copy() for p in net.trainable_params()}
    run = mode(step)
    losses = [float(run(x)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert len(before) == 2
    for p in net.trainable_params():
        assert p.dtype == ms.float32
        assert np.abs(p.asnumpy() - before[p.name]).max() > 1e-6, p.name


def mixed_precision_cases():
    for level in ("O0", "O1", "O2", "O3", "to_float"):
        for graph in (False, True):
            for kind in ("fixed", "trained", "parameter"):
                # The one case that is refused: test_graph_refuses_a_rounded_parameter.
                if not (graph and kind == "parameter" and level in ("O2", "O3", "to_float")):
                    yield pytest.param("cpu", level, graph, kind)
    for graph in (False, True):
        yield pytest.param("reference", "O3", graph, "fixed")
        yield pytest.param("reference", "O3", graph, "trained")


@pytest.mark.parametrize(
    ("backend", "level", "graph", "kind"), list(mixed_precision_cases()), indirect=["backend"]
)
def test_mixed_precision_keeps_slopes(graph, kind, level, backend, tmp_path, monkeypatch):
    """Inside float16 cells PyNative mode casts every float input of an operator, and a graph every
    Parameter; slopes rounded to float16 are wrong by 0.25 in logits at distance 1024."""
    monkeypatch.chdir(tmp_path)  # O1 writes the source of the rewritten cell there
    check_slopes_keep_their_digits(graph, kind, level, backend)


def check_slopes_keep_their_digits(graph, kind, level, backend):
    net = Net(kind, backend)
    x = normal(ms, 1, LENGTH, 8)
    half = level != "O0"
    weight = net.project.weight.asnumpy()
    if level == "to_float":
        net.to_float(ms.float16)
    else:
        net = ms.amp.auto_mixed_precision(net, level)
    ms.set_context(mode=ms.GRAPH_MODE if graph else ms.PYNATIVE_MODE)
    try:
        out = net(x)[0].astype(ms.float32).asnumpy()
        lse = net(ms.ops.zeros_like(x))[1].asnumpy()
        slopes = [p for p in net.trainable_params() if p.shape == (HEADS,)]

        def loss(x):
            return net(x)[0].astype(ms.float32).sum()

        grads = ms.grad(loss, None, slopes)(x) if slopes else []
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
    dtype = np.float16 if half else np.float32
    packed = (x.asnumpy().astype(dtype) @ weight.T.astype(dtype)).astype(np.float32)
    packed = packed.reshape(1, LENGTH, 3, HEADS, HEAD_DIM)
    q, k, v = packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]
    options = {"causal": False, "input_layout": "BSND"}
    truth, _ = oracle.attention(q, k, v, np.array(SLOPES, np.float32), **options)
    # A few roundings to the working precision of projection and output, which are below 2.
    assert np.abs(out - truth).max() < (2.0**-9 if half else 2.0**-17)
    # Without queries the logits are the bias alone: lse shows every digit of the slopes. The sum of
    # 1100 terms costs a few float32 roundings of a value below 8.
    _, want = oracle.attention(0 * q, k, v, np.array(SLOPES, np.float32), **options)
    _, rounded = oracle.attention(0 * q, k, v, np.array(SLOPES, np.float16), **options)
    assert np.abs(lse - want).max() < 4e-6 < 1e-4 < np.abs(rounded - want).max()
    for grad in grads:
        _, _, _, want = oracle.attention_grad(
            q, k, v, np.array(SLOPES, np.float32), np.ones(q.shape), **options
        )
        assert grad.dtype == ms.float32
        # delta is made of the stored, rounded out: 3e-4 of the gradient at float16.
        np.testing.assert_allclose(grad.asnumpy(), want, rtol=2e-3 if half else 1e-4)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_graph_refuses_a_rounded_parameter(backend, tmp_path, monkeypatch):
    """A graph casts the Parameters of a float16 cell before we see them: better refused."""
    monkeypatch.chdir(tmp_path)  # MindSpore leaves a dump of the graph there
    net = Net("parameter", backend).to_float(ms.float16)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with pytest.raises(TypeError, match="slopes has dtype float16; it must be float32"):
            net(normal(ms, 1, 20, 8))
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_precision_of_the_surrounding_cell_is_restored(backend):
    """Our operator suspends mixed precision; the next operator must find it as it was."""

    class Around(nn.Cell):
        def __init__(self):
            super().__init__()
            self.inner = Net("trained", backend)

        def construct(self, x):
            y = self.inner(x)
            return y, ms.ops.relu(x)

    (y, _), relu = Around().to_float(ms.float16)(normal(ms, 1, 9, 8))
    assert y.dtype == relu.dtype == ms.float16
    net = Around().to_float(ms.float16)
    with pytest.raises(ValueError, match="scale must be a finite"):
        alibi_kernels.alibi_attention(*[normal(ms, 1, 2, 4, 4)] * 3, SLOPES, scale=float("nan"))
    assert net(normal(ms, 1, 9, 8))[1].dtype == ms.float16


def test_trained_slopes_cell():
    cell = TrainedSlopes(alibi_kernels.alibi_slopes(4))
    assert [p.name for p in cell.trainable_params()] == ["slopes"]
    cell.to_float(ms.float16)
    assert cell().dtype == ms.float32
    np.testing.assert_array_equal(cell().asnumpy(), alibi_kernels.alibi_slopes(4))
    with pytest.raises(ValueError, match="TrainedSlopes: slopes\\[1\\] is inf"):
        TrainedSlopes((0.5, float("inf")))
