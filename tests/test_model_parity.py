"""Parity with the original PyTorch model: outputs, input gradient, weight gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alibi import ALiBiConfig, load_original
from tests.compare import EPSILON, assert_close, assert_close_to_truth

GOLDEN = ("original_decoder", "original_decoder_6heads", "original_encoder")


class Golden:
    """One golden file, taken apart."""

    def __init__(self, name: str) -> None:
        with np.load(Path(__file__).parent / "data" / f"{name}.npz") as file:
            self.arrays = dict(file)
        fields = {key: value.item() for key, value in self.part("config").items()}
        self.fields = {**fields, "bias": "symmetric" if fields["causal"] else "signed"}

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        start = len(prefix) + 1
        return {k[start:]: v for k, v in self.arrays.items() if k.startswith(f"{prefix}.")}


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_parity(
    ms: Any, mode: Any, golden: Golden, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, same input: the same output and gradients as the original computes.

    Output: the truth is the original in float64, the rival the original in float32, whose rounding
    errors ours may reach twice, plus one rounding of the largest element.
    Gradients: no float32 rival is stored. They pass through the same two layers twice and sum over
    about a hundred rows; sixteen roundings of the largest element cover that random walk, and are
    far below what any wrong term would cost (1e-6 against at least 1e-3).
    """
    monkeypatch.setenv("ALIBI_BACKEND", backend)  # no silent fallback
    config = ALiBiConfig(**golden.fields, fused=backend != "reference")
    model = load_original(golden.part("weight"), config=config)
    x = ms.Tensor(golden.arrays["x"])
    dout = ms.Tensor(golden.arrays["dout"].astype(np.float32))
    weights = model.trainable_params()

    def product(x: Any) -> tuple[Any, Any]:
        y = model(x)
        return (y * dout).sum(), y

    gradient = mode(ms.value_and_grad(product, 0, weights, has_aux=True))
    (_, y), (dx, dweights) = gradient(x)

    truth = golden.arrays["y64"]
    floor = EPSILON["float32"] * np.abs(truth).max()
    assert_close_to_truth(y, truth, golden.arrays["y32"], factor=2, floor=floor, what="y")

    def bound(truth: np.ndarray) -> float:
        return 16 * EPSILON["float32"] * np.abs(truth).max()

    assert_close(dx, golden.arrays["dx64"], bound(golden.arrays["dx64"]), "dx")
    names = {"attn_norm.weight": "attn_norm.gamma", "attn_norm.bias": "attn_norm.beta"}
    found = {weight.name: value for weight, value in zip(weights, dweights, strict=True)}
    expected = golden.part("grad")
    assert len(expected) == 4
    for name, value in expected.items():
        layer, _, rest = name.partition("attn")
        ours = layer + names.get("attn" + rest, "attn" + rest)
        assert_close(found[ours], value, bound(value), name)


def test_encoder_bias_matters() -> None:
    """The default bias of an encoder departs from the original on purpose: the golden test would
    notice a model that ignores `bias`."""
    import mindspore as ms

    golden = Golden("original_encoder")
    x = ms.Tensor(golden.arrays["x"])
    default = ALiBiConfig(**{**golden.fields, "bias": "symmetric"}, fused=False)
    y = load_original(golden.part("weight"), config=default)(x).asnumpy()
    assert np.abs(y - golden.arrays["y64"]).max() > 0.01
