"""ALiBiLanguageModel, the sinusoidal baseline, and the pieces of the extrapolation experiment."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alibi import ALiBiConfig, ALiBiLanguageModel
from alibi.extrapolate import (
    SinusoidalLanguageModel,
    TrainingPlan,
    load_text,
    perplexity,
    sample_batch,
    train,
    windows,
)
from alibi.language_model import cross_entropy

CONFIG = ALiBiConfig.paper(num_layers=1, d_model=32, num_heads=4, dropout=0.0, expansion_factor=2)
MODELS = (ALiBiLanguageModel, SinusoidalLanguageModel)


def draw_ids(batch: int, length: int, vocab: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (batch, length)).astype(np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("cls", MODELS)
def test_logits_are_causal(ms: Any, mode: Any, cls: Any) -> None:
    """A changed token changes its own logits and later ones, and no earlier one."""
    model = cls(50, CONFIG).set_train(False)
    run = mode(model)
    ids = draw_ids(2, 12)
    before = run(ms.Tensor(ids)).asnumpy()
    assert before.shape == (2, 12, 50)
    ids[:, 7] = (ids[:, 7] + 1) % 50
    moved = np.abs(run(ms.Tensor(ids)).asnumpy() - before).max(axis=(0, 2))
    assert moved[:7].max() <= 1e-5
    assert moved[7:].min() > 1e-3


def test_loss(ms: Any, mode: Any) -> None:
    """Position i is compared with label i + 1; a negative label does not count.

    -1 was once trained as token 0.
    """
    model = ALiBiLanguageModel(50, CONFIG).set_train(False)
    ids = draw_ids(3, 10)
    labels = ids.copy()
    labels[0, :4] = -100
    labels[1, 3:5] = -1
    labels[2, 9] = -7
    logits = model(ms.Tensor(ids)).asnumpy()
    log_p = log_softmax(logits)[:, :-1]
    picked = np.take_along_axis(log_p, ids[:, 1:, None], -1)[..., 0]
    expected = -picked[labels[:, 1:] >= 0].mean()
    got = mode(model)(ms.Tensor(ids), ms.Tensor(labels))
    assert float(got.asnumpy()) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_without_targets(ms: Any) -> None:
    for label in (-100, -1):
        nothing = ms.Tensor(np.full((1, 3), label, np.int32))
        logits = ms.Tensor(np.ones((1, 3, 5), np.float32))
        assert float(cross_entropy(logits, nothing).asnumpy()) == 0


def test_labels_of_another_shape(
    ms: Any, mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They once gave a loss: the mean over the first logits, each beside the wrong label."""
    monkeypatch.chdir(tmp_path)  # MindSpore writes a dump of the graph that failed
    model, ids = ALiBiLanguageModel(50, CONFIG), draw_ids(2, 6)
    for labels in (ids[:, :4], ids[:1], ids.T, ids[None]):
        message = (
            "ALiBiLanguageModel: labels must have the shape of ids, one label per token, but "
            f"ids.shape = (2, 6) and labels.shape = {labels.shape}."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            mode(model)(ms.Tensor(ids), ms.Tensor(labels))
    message = (
        "cross_entropy: targets must have the shape of logits without its last axis, one target "
        "per row, but logits.shape = (2, 6, 5) and targets.shape = (2, 3)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        mode(cross_entropy)(ms.Tensor(np.ones((2, 6, 5), np.float32)), ms.Tensor(ids[:, :3]))


def test_one_graph_of_the_loss_for_every_length(ms: Any) -> None:
    """What is known of the shapes of ids and labels is compared, and only that."""
    model = ALiBiLanguageModel(50, CONFIG).set_train(False)

    def forward(ids, labels):  # type: ignore[no-untyped-def]
        return model(ids, labels)

    loss = ms.jit(forward, dynamic=1)
    for length in (5, 9, 6, 21):
        ids = ms.Tensor(draw_ids(2, length))
        want = float(model(ids, ids).asnumpy())
        assert float(loss(ids, ids).asnumpy()) == pytest.approx(want, rel=1e-5)


def test_head_is_tied(ms: Any) -> None:
    """One table embeds and predicts, and its gradient comes from both uses."""
    model = ALiBiLanguageModel(50, CONFIG)
    names = [parameter.name for parameter in model.get_parameters() if "50" in str(parameter.shape)]
    assert names == ["embedding.embedding_table"]
    ids = ms.Tensor(np.array([[1, 2, 3]], np.int32))
    gradient = ms.grad(model, None, model.trainable_params())(ids, ids)
    table = next(g for g in gradient if g.shape == (50, 32)).asnumpy()
    assert np.abs(table[1]).max() > 0.01  # only ever an input
    assert np.abs(table[40]).max() > 0  # only ever a wrong prediction


def test_left_padding(ms: Any) -> None:
    model = ALiBiLanguageModel(50, CONFIG).set_train(False)
    ids = draw_ids(1, 9)
    padded = np.concatenate([np.zeros((1, 5), np.int32), ids], axis=1)
    got = model(ms.Tensor(padded), spans=ms.Tensor([[5, 14, 0]], ms.int32)).asnumpy()
    alone = model(ms.Tensor(ids)).asnumpy()
    np.testing.assert_allclose(got[:, 5:], alone, atol=1e-5 * np.abs(alone).max())


def test_bad_ids(ms: Any) -> None:
    message = "ALiBiLanguageModel: ids must have shape [batch, length], but got (3,)."
    with pytest.raises(ValueError, match=re.escape(message)):
        ALiBiLanguageModel(50, CONFIG)(ms.Tensor(np.zeros(3, np.int32)))


def test_sinusoidal_positions(ms: Any) -> None:
    """The added positions are the published formula, at positions far beyond training too."""
    model = SinusoidalLanguageModel(50, CONFIG)
    assert set(model.transformer.layers[0].attn.slopes) == {0.0}
    ids = np.zeros((1, 3000), np.int32)
    row = model.embedding.embedding_table.asnumpy()[0] * np.sqrt(32)
    added = model.embed(ms.Tensor(ids)).asnumpy()[0] - row
    angle = np.arange(3000.0)[:, None] * 10000.0 ** (-2 * np.arange(16) / 32)
    # float32 angles up to 3000 are off by up to 2^-13, and so are their sines
    np.testing.assert_allclose(added[:, :16], np.sin(angle), atol=5e-4)
    np.testing.assert_allclose(added[:, 16:], np.cos(angle), atol=5e-4)
    with pytest.raises(ValueError, match=r"config\.d_model must be even, but got 3"):
        SinusoidalLanguageModel(50, ALiBiConfig(1, 3, 1))


def test_text() -> None:
    """Two disjoint parts of English."""
    training, held_out = load_text()
    assert len(training) > 3 * len(held_out) > 150_000
    assert training.dtype == np.int32
    assert 0 <= training.min() <= training.max() < 256
    for text in (training, held_out):
        assert bytes(text.astype(np.uint8)).decode().count(" the ") > 500
    sample = bytes(held_out[5000:5200].astype(np.uint8))
    assert sample not in bytes(training.astype(np.uint8))


def test_windows_and_batches() -> None:
    """Every target is the token after its input; windows do not overlap and leave only the rest."""
    tokens = np.arange(100, dtype=np.int32)
    inputs, targets = windows(tokens, 33)
    assert inputs.shape == (3, 33)
    np.testing.assert_array_equal(inputs.ravel(), np.arange(99))
    np.testing.assert_array_equal(targets, inputs + 1)
    inputs, targets = sample_batch(tokens, 8, 500, np.random.default_rng(0))
    assert inputs.shape == (500, 8)
    np.testing.assert_array_equal(targets, inputs + 1)
    assert (inputs.min(), targets.max()) == (0, 99)  # both ends are reached
    with pytest.raises(ValueError, match="below the number of tokens, 100, but got 100"):
        windows(tokens, 100)
    with pytest.raises(ValueError, match=r"windows: length must be at least 1 and .* but got 0"):
        windows(tokens, 0)
    with pytest.raises(ValueError, match="sample_batch: length must be at least 1 and"):
        sample_batch(tokens, 100, 2, np.random.default_rng(0))


def test_learning_rates() -> None:
    assert TrainingPlan(steps=2, learning_rate=2.0, warmup=0).learning_rates()[0] == 2.0
    rates = TrainingPlan(steps=100, learning_rate=2.0, warmup=10).learning_rates()
    assert len(rates) == 100
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates.index(max(rates)) == 9
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("cls", MODELS)
def test_training_learns(ms: Any, cls: Any) -> None:
    """A text that repeats every 7 tokens is learnt by heart; a second run has the same losses."""
    tokens = np.tile(np.array([3, 1, 4, 1, 5, 9, 2], np.int32), 200)
    plan = TrainingPlan(steps=60, length=14, batch_size=8, learning_rate=1e-2, warmup=5)
    runs = []
    for _ in range(2):
        ms.set_seed(0)
        model = cls(16, CONFIG)
        steps: list[int] = []
        runs.append(train(model, tokens, plan, lambda done, loss, steps=steps: steps.append(done)))
        assert steps == list(range(1, 61))
        assert not model.training
    assert runs[0] == runs[1]
    assert runs[0][-1] < 0.5 * runs[0][0]


def test_perplexity(ms: Any) -> None:
    """exp of the mean over all targets of all windows, the last ragged batch included."""
    model = ALiBiLanguageModel(50, CONFIG)
    tokens = draw_ids(1, 6000)[0]
    inputs, targets = windows(tokens, 1024)
    log_p = log_softmax(model.set_train(False)(ms.Tensor(inputs)).asnumpy())
    expected = math.exp(-np.take_along_axis(log_p, targets[..., None], -1).mean())
    assert perplexity(model, tokens, 1024) == pytest.approx(expected, rel=1e-4)
