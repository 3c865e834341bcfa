"""ALiBiAttention and ALiBiTransformer: fused against plain, padding, GQA, slopes, length, amp."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alibi import ALiBiAttention, ALiBiConfig, ALiBiTransformer
from tests import oracle
from tests.compare import EPSILON, assert_close, to_float64

CONFIGS = {
    "decoder": {},
    "encoder": {"causal": False},
    "signed": {"causal": False, "bias": "signed"},
    "paper": {"slopes": "paper", "scale": 0.25},
    "grouped": {"num_kv_heads": 2},
    "one_kv_head": {"num_kv_heads": 1, "causal": False},
    "explicit": {"slopes": [0.9, 0.0, 0.1, 0.01, 0.3, 1.5]},
    "learned": {"learned_slopes": True},
}
D_MODEL, HEADS = 48, 6
# A softmax over a few dozen keys and a 48-term projection on each side, all float32: every element
# is off by a few roundings of the largest one.
BOUND = 16 * EPSILON["float32"]


def seeded(ms: Any, cell: Any, seed: int = 0) -> Any:
    """The cell with every parameter drawn anew, so that two cells of one layout are equal."""
    random = np.random.default_rng(seed)
    for parameter in cell.get_parameters():
        if not parameter.name.endswith("slopes"):
            value = random.normal(0, 0.15, parameter.shape).astype(np.float32)
            parameter.set_data(ms.Tensor(value))
    return cell


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def expected(attention: Any, x: np.ndarray, spans: np.ndarray | None = None) -> np.ndarray:
    """The float64 oracle on the attention's own weights."""
    width = attention.num_kv_heads * attention.head_dim
    projected = x.astype(np.float64) @ to_float64(attention.kqv.weight).T
    key, query, value = np.split(projected, [width, width + attention.d_model], axis=-1)
    heads = [part.reshape(*x.shape[:2], -1, attention.head_dim) for part in (query, key, value)]
    out, _ = oracle.attention(
        *heads,
        to_float64(attention.slopes() if attention.learned_slopes else attention.slopes),
        scale=attention.options["scale"],
        causal=attention.options["causal"],
        bias=attention.options["bias"],
        spans=spans,
        input_layout="BSND",
    )
    return out.reshape(x.shape)


@pytest.mark.parametrize("name", CONFIGS)
def test_against_oracle(
    ms: Any, mode: Any, backend: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option against float64: one sequence as it is, one padded left, one padded right."""
    monkeypatch.setenv("ALIBI_BACKEND", backend)  # no silent fallback
    options = {"dropout": 0.0, "fused": backend != "reference", **CONFIGS[name]}
    attention = seeded(ms, ALiBiAttention(D_MODEL, HEADS, **options))
    x = draw(3, 21, D_MODEL)
    spans = np.array([[0, 21, 0], [5, 21, 0], [0, 9, 0]], np.int32)
    truth = expected(attention, x, spans)
    got = mode(attention)(ms.Tensor(x), ms.Tensor(spans))
    assert_close(got, truth, BOUND * np.abs(truth).max(), name)
    if name == "decoder":  # without spans, as most users call it
        assert_close(mode(attention)(ms.Tensor(x))[0], truth[0], BOUND * np.abs(truth).max(), name)


def gradients(ms: Any, mode: Any, attention: Any, x: Any, spans: Any) -> dict[str, np.ndarray]:
    """Gradients of a sum of squares, of x and of every parameter by name."""

    def loss(x: Any) -> Any:
        return (attention(x, spans) ** 2).sum()

    weights = attention.trainable_params()
    dx, dweights = mode(ms.grad(loss, 0, weights))(x)
    named = {weight.name: value for weight, value in zip(weights, dweights, strict=True)}
    return {name: value.asnumpy() for name, value in {"x": dx, **named}.items()}


@pytest.mark.parametrize("name", ["decoder", "grouped", "learned"])
def test_gradients_fused_and_plain(ms: Any, mode: Any, name: str) -> None:
    """Input, projection and learned slopes get the same gradient from both paths."""
    x, spans = ms.Tensor(draw(2, 19, D_MODEL)), ms.Tensor([[0, 19, 0], [4, 19, 0]], ms.int32)
    fused, plain = (
        gradients(
            ms,
            mode,
            seeded(ms, ALiBiAttention(D_MODEL, HEADS, dropout=0.0, fused=path, **CONFIGS[name])),
            x,
            spans,
        )
        for path in (True, False)
    )
    assert fused.keys() == plain.keys()
    assert ("slopes.slopes" in fused) == (name == "learned")
    for key, value in plain.items():
        assert np.abs(value).max() > 0
        # Two float32 results, each off by the roundings of BOUND in forward and backward.
        assert_close(fused[key], value, 4 * BOUND * np.abs(value).max(), key)


def test_padding_equals_no_padding(ms: Any) -> None:
    """A padded sequence gives what the sequence gives alone, on either side, in a whole model."""
    model = ALiBiTransformer(ALiBiConfig(2, 32, 4)).set_train(False)
    x = draw(1, 13, 32)
    alone = model(ms.Tensor(x)).asnumpy()
    garbage = 100 * draw(1, 6, 32, seed=5)
    left = ms.Tensor(np.concatenate([garbage, x], axis=1))
    right = ms.Tensor(np.concatenate([x, garbage], axis=1))
    bound = BOUND * np.abs(alone).max()
    padded = model(left, ms.Tensor([[6, 19, 0]], ms.int32))
    assert_close(padded[:, 6:], alone, bound, "left padding")
    padded = model(right, ms.Tensor([[0, 13, 0]], ms.int32))
    assert_close(padded[:, :13], alone, bound, "right padding")


def test_far_beyond_max_len(ms: Any) -> None:
    """16 times max_len: no limit and no buffer. A causal model's first rows do not see the rest,
    so they equal those of a short run."""
    config = ALiBiConfig(num_layers=2, d_model=32, num_heads=4, max_len=128)
    model = ALiBiTransformer(config).set_train(False)
    x = draw(1, 16 * config.max_len, 32)
    y = model(ms.Tensor(x)).asnumpy()
    assert y.shape == x.shape
    short = model(ms.Tensor(x[:, : config.max_len])).asnumpy()
    assert_close(y[:, : config.max_len], short, BOUND * np.abs(short).max(), "first rows")
    assert np.isfinite(y).all()


def test_distance_lowers_attention(ms: Any) -> None:
    """With keys that all score alike, the weights are exp(-slope * distance): newer values win."""
    attention = seeded(ms, ALiBiAttention(2, 2, dropout=0.0, slopes=[1.0, 0.0]))
    weight = np.zeros((6, 2), np.float32)
    weight[4:] = np.eye(2)  # keys and queries 0, values the input
    attention.kqv.weight.set_data(ms.Tensor(weight))
    x = np.zeros((1, 4, 2), np.float32)
    x[0, 0] = 1  # a mark at the oldest position
    out = attention(ms.Tensor(x)).asnumpy()[0, -1]
    weights = np.exp(-np.arange(4.0)[::-1])
    assert out[0] == pytest.approx(weights[0] / weights.sum(), rel=1e-6)
    assert out[1] == pytest.approx(0.25, rel=1e-6)


def test_from_config() -> None:
    """Every field that concerns attention arrives; all of them are set apart from their default."""
    config = ALiBiConfig(
        d_model=24,
        num_heads=6,
        dropout=0.25,
        causal=False,
        scale=0.3,
        slopes="paper",
        bias="signed",
        num_kv_heads=3,
        fused=False,
    )
    attention = ALiBiAttention.from_config(config)
    assert (attention.d_model, attention.num_heads, attention.num_kv_heads) == (24, 6, 3)
    assert attention.options == {
        "causal": False,
        "scale": 0.3,
        "bias": "signed",
        "backend": "reference",
    }
    assert attention.dropout.p == 0.25
    assert (
        attention.slopes != ALiBiAttention.from_config(replace(config, slopes="geometric")).slopes
    )
    learned = ALiBiAttention.from_config(replace(config, learned_slopes=True))
    assert [p.name for p in learned.trainable_params()] == ["slopes.slopes", "kqv.weight"]
    assert ALiBiAttention.from_config(ALiBiConfig()).options["scale"] == 256**-0.5


def test_dropout_is_on_the_output(ms: Any) -> None:
    """In training some elements of the output are 0 and the others scaled; in evaluation none."""
    attention = seeded(ms, ALiBiAttention(32, 4, dropout=0.5))
    x = ms.Tensor(draw(2, 40, 32))
    plain = attention.set_train(False)(x).asnumpy()
    dropped = attention.set_train(True)(x).asnumpy()
    kept = dropped != 0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-5)


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_amp_keeps_slopes_exact(
    ms: Any,
    mode: Any,
    level: str,
    learned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slopes stay float32 at every amp level.

    Rounded to float16, the slope below would be 0.5: at distance 1023 that
    shifts a score by 0.12 and the output by far more than float16 rounds it.
    """
    monkeypatch.chdir(tmp_path)  # O1 writes the rewritten class into the working directory
    slopes, length = [0.50012, 0.0], 1024
    attention = ALiBiAttention(4, 2, dropout=0.0, slopes=slopes, learned_slopes=learned)
    # The key's first feature cancels the penalty at the oldest and the newest key, so the output
    # of the last row tells their exact difference.
    weight = np.zeros((12, 4), np.float32)
    weight[0, 0] = weight[4, 1] = weight[8, 2] = 1.0
    attention.kqv.weight.set_data(ms.Tensor(weight))
    x = np.zeros((1, length, 4), np.float32)
    x[0, :, 0] = -1000.0
    x[0, 0, 0], x[0, -1, 0] = 512.0, 0.0
    x[0, :, 1] = 2.0
    x[0, 0, 2] = 1.0
    truth = expected(attention, x)[0, -1, 0]
    assert 0.2 < truth < 0.8
    model = mode(ms.amp.auto_mixed_precision(attention, level))
    got = model(ms.Tensor(x)).asnumpy()[0, -1, 0]
    assert got == pytest.approx(truth, abs=2 * EPSILON["float16"])


@pytest.mark.parametrize("name", ["decoder", "grouped"])
def test_one_graph_for_every_length(ms: Any, name: str) -> None:
    """A model compiled for unknown batch and length gives what it gives in PyNative mode."""
    config = ALiBiConfig(2, D_MODEL, HEADS, **CONFIGS[name])
    eager = seeded(ms, ALiBiTransformer(config)).set_train(False)
    model = seeded(ms, ALiBiTransformer(config)).set_train(False)
    model.set_inputs(ms.Tensor(shape=[None, None, D_MODEL], dtype=ms.float32))
    compiled = ms.jit(model)
    for batch, length in ((2, 5), (1, 9), (3, 70), (1, 1)):
        x = ms.Tensor(draw(batch, length, D_MODEL))
        y = eager(x).asnumpy()
        assert_close(compiled(x), y, BOUND * np.abs(y).max(), f"length {length}")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["decoder", "grouped", "one_kv_head"])
@pytest.mark.parametrize("shape", [(0, 7), (2, 0)], ids=str)
def test_nothing_in_nothing_out(
    ms: Any, mode: Any, shape: tuple[int, int], name: str, fused: bool
) -> None:
    """With fewer key heads a graph split the empty projection, which ended the process: SIGFPE."""
    attention = ALiBiAttention(D_MODEL, HEADS, dropout=0.0, fused=fused, **CONFIGS[name])
    x, spans = ms.Tensor(draw(*shape, D_MODEL)), ms.Tensor(np.zeros((shape[0], 3), np.int32))
    for call in ((x,), (x, spans)):
        assert mode(attention)(*call).shape == x.shape
    # Nothing more can be asked of MindSpore: its product over no rows, the gradient of the weight,
    # is left unwritten, and its segment sums, in the gradient of the plain operators, refuse.
    if fused:
        assert ms.grad(lambda x: (attention(x) ** 2).sum())(x).shape == x.shape


def test_recompute(ms: Any) -> None:
    """Recomputed layers give the gradients that stored ones give."""
    found = []
    for recompute in (False, True):
        model = seeded(ms, ALiBiTransformer(ALiBiConfig(2, D_MODEL, HEADS, dropout=0.0)))
        if recompute:
            for layer in model.layers:
                layer.recompute()
        found.append(gradients(ms, ms.jit, model, ms.Tensor(draw(1, 7, D_MODEL)), None))
    for key, value in found[0].items():
        assert_close(found[1][key], value, BOUND * np.abs(value).max(), key)


@pytest.mark.parametrize("graph", [False, True], ids=["pynative", "graph"])
def test_bad_x(ms: Any, graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MindSpore writes a dump of the graph that failed
    attention = ALiBiAttention(32, 4)
    run = ms.jit(attention) if graph else attention
    for shape in ((8, 32), (2, 8, 16)):
        message = f"ALiBiAttention: x must have shape [batch, length, 32], but got {shape}."
        with pytest.raises(ValueError, match=re.escape(message)):
            run(ms.Tensor(np.zeros(shape, np.float32)))


def test_quickstart(ms: Any) -> None:
    """The README's first lines, eager and compiled."""
    model = ALiBiTransformer(ALiBiConfig())
    x = ms.ops.randn(8, 100, 256)
    assert model(x).shape == (8, 100, 256)
    assert ms.jit(model)(x).shape == (8, 100, 256)
