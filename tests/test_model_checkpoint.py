"""load_original, and saving and loading our own models."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alibi import ALiBiConfig, ALiBiLanguageModel, ALiBiTransformer, load_original

CONFIG = ALiBiConfig(num_layers=2, d_model=16, num_heads=4, max_len=32, expansion_factor=2)


def original_state(config: ALiBiConfig, buffers: bool = True) -> dict[str, np.ndarray]:
    """A state_dict as the original model saves it, with random weights."""
    random = np.random.default_rng(3)
    d, hidden, heads = config.d_model, config.d_model * config.expansion_factor, config.num_heads
    shapes = {
        "ffn_norm.weight": (d,),
        "ffn_norm.bias": (d,),
        "attn_norm.weight": (d,),
        "attn_norm.bias": (d,),
        "ffn.fc1.weight": (hidden, d),
        "ffn.fc1.bias": (hidden,),
        "ffn.fc2.weight": (d, hidden),
        "ffn.fc2.bias": (d,),
        "attn.kqv.weight": (3 * d, d),
    }
    state = {}
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        for name, shape in shapes.items():
            state[prefix + name] = random.normal(size=shape).astype(np.float32)
        if buffers:
            slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
            state[prefix + "attn.m"] = slopes.astype(np.float32).reshape(heads, 1, 1)
            if config.causal:
                ones = np.ones((1, 1, config.max_len, config.max_len), np.float32)
                state[prefix + "attn.mask"] = np.tril(ones)
    return state


def output(ms: Any, model: Any) -> np.ndarray:
    x = np.random.default_rng(4).normal(size=(2, 9, model.config.d_model)).astype(np.float32)
    return model.set_train(False)(ms.Tensor(x)).asnumpy()


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
def test_config_is_read_from_the_checkpoint(ms: Any, causal: bool) -> None:
    """Sizes, heads and direction follow from weights and buffers; an encoder is the original's."""
    config = ALiBiConfig(2, 16, 4, 32, 0.1, causal, 2, bias="symmetric" if causal else "signed")
    model = load_original(original_state(config))
    if causal:
        assert model.config == config
    else:  # without a mask nothing tells max_len, which limits nothing
        assert model.config == ALiBiConfig(2, 16, 4, 256, 0.1, False, 2, bias="signed")
    given = load_original(original_state(config, buffers=False), config=config)
    np.testing.assert_array_equal(output(ms, model), output(ms, given))


def test_weights_land_where_they_belong(ms: Any) -> None:
    state = original_state(CONFIG)
    model = load_original(state)
    values = {p.name: p.asnumpy() for p in model.get_parameters()}
    assert not any("mask" in name or name.endswith(".m") for name in values)
    assert len(values) == 2 * 9
    np.testing.assert_array_equal(
        values["layers.1.attn_norm.gamma"], state["layers.1.attn_norm.weight"]
    )
    np.testing.assert_array_equal(values["layers.1.ffn_norm.beta"], state["layers.1.ffn_norm.bias"])
    np.testing.assert_array_equal(values["layers.0.ffn.fc1.bias"], state["layers.0.ffn.fc1.bias"])


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_files(ms: Any, tmp_path: Path, ending: str) -> None:
    """The same weights by file as by dictionary."""
    state = original_state(CONFIG)
    path = tmp_path / f"weights{ending}"
    if ending == ".npz":
        np.savez(path, **state)
    else:
        save_file = pytest.importorskip("safetensors.numpy").save_file
        save_file(state, str(path))
    expected = output(ms, load_original(state))
    np.testing.assert_array_equal(output(ms, load_original(path)), expected)
    np.testing.assert_array_equal(output(ms, load_original(str(path))), expected)


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
def test_torch_file(ms: Any, tmp_path: Path) -> None:
    import torch

    state = original_state(CONFIG)
    path = tmp_path / "weights.pt"
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    expected = output(ms, load_original(state))
    np.testing.assert_array_equal(output(ms, load_original(path)), expected)


def test_torch_file_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError) as raised:
        load_original(path)
    assert str(raised.value).startswith(
        f"{path}: reading a .pt file needs PyTorch (pip install torch). Without it, convert"
    )


class FakeTorchTensor:
    """What load_original sees of a PyTorch tensor, so that the path is tested without PyTorch."""

    def __init__(self, value: np.ndarray, dtype: str) -> None:
        self.value, self.dtype = value, dtype

    def detach(self) -> FakeTorchTensor:
        return self

    def cpu(self) -> FakeTorchTensor:
        return self

    def float(self) -> FakeTorchTensor:
        return FakeTorchTensor(self.value.astype(np.float32), "torch.float32")

    def numpy(self) -> np.ndarray:
        if self.dtype == "torch.bfloat16":  # as PyTorch does
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.value


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_torch_tensors(ms: Any, dtype: str) -> None:
    state = original_state(CONFIG)
    wrapped = {name: FakeTorchTensor(value, dtype) for name, value in state.items()}
    expected = output(ms, load_original(state))
    np.testing.assert_array_equal(output(ms, load_original(wrapped)), expected)


def test_mindspore_tensors_and_learned_slopes(ms: Any) -> None:
    """Half-precision tensors are taken; learned slopes start at the original's fixed ones."""
    state = original_state(CONFIG)
    rounded = {name: value.astype(np.float16) for name, value in state.items()}
    tensors = {name: ms.Tensor(value) for name, value in rounded.items()}
    learned = ALiBiTransformer(ALiBiConfig(2, 16, 4, 32, expansion_factor=2, learned_slopes=True))
    model = load_original(tensors, learned)
    assert model is learned
    exact = load_original({name: value.astype(np.float32) for name, value in rounded.items()})
    got, expected = output(ms, model), output(ms, exact)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def changed(**changes: Any) -> dict[str, np.ndarray]:
    state = {**original_state(CONFIG), **{k.replace("__", "."): v for k, v in changes.items()}}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("state", "options", "error", "message"),
    [
        (
            changed(layers__1__ffn__fc2__bias=None, layers__0__attn__out__weight=np.ones(3)),
            {},
            ValueError,
            "load_original: the checkpoint does not fit the model. Weights missing: "
            "layers.1.ffn.fc2.bias; unexpected: layers.0.attn.out.weight.",
        ),
        (
            changed(layers__0__ffn__fc1__bias=np.ones(5)),
            {},
            ValueError,
            "load_original: the checkpoint does not fit the model. Weights of another shape: "
            "layers.0.ffn.fc1.bias has shape (5,), the model (32,).",
        ),
        (
            original_state(CONFIG, buffers=False),
            {},
            ValueError,
            "load_original: the checkpoint has no 'layers.0.attn.m', so its configuration cannot "
            "be told; pass config=ALiBiConfig(...) with the values it was trained with.",
        ),
        (
            {},
            {},
            ValueError,
            "load_original: the checkpoint has no 'layers.0.ffn.fc1.weight', so its configuration "
            "cannot be told; pass config=ALiBiConfig(...) with the values it was trained with.",
        ),
        (
            original_state(CONFIG),
            {"config": ALiBiConfig(2, 16, 8, expansion_factor=2)},
            ValueError,
            "load_original: config.num_heads is 8, but the checkpoint has slopes for 4 heads "
            "('layers.0.attn.m'); set num_heads=4.",
        ),
        (
            original_state(CONFIG),
            {"model": object()},
            TypeError,
            "load_original: model must be an ALiBiTransformer, but got object.",
        ),
        (
            {"layers.0.attn.m": [1.0]},
            {},
            TypeError,
            "weight 'layers.0.attn.m' must be an array (NumPy, MindSpore or PyTorch), but got "
            "list.",
        ),
        (
            7,
            {},
            TypeError,
            "weights must come as a mapping of names to arrays or as the path of a file, but got "
            "int.",
        ),
        (
            "weights.h5",
            {},
            ValueError,
            "weights.h5: weights are read from .npz, .safetensors, .pt, .pth, .bin files.",
        ),
        ("nowhere.npz", {}, FileNotFoundError, "nowhere.npz: no such file."),
    ],
)
def test_errors(state: Any, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        load_original(state, **options)
    assert str(raised.value) == message


def test_model_and_config_together() -> None:
    with pytest.raises(ValueError, match="give model or config, but got both"):
        load_original(original_state(CONFIG), ALiBiTransformer(CONFIG), CONFIG)


def test_nothing_is_copied_on_error(ms: Any) -> None:
    model = ALiBiTransformer(CONFIG)
    before = [p.asnumpy().copy() for p in model.get_parameters()]
    with pytest.raises(ValueError, match="missing"):
        load_original(changed(layers__1__ffn__fc2__bias=None), model)
    for parameter, value in zip(model.get_parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.asnumpy(), value)


@pytest.mark.parametrize("file_format", ["ckpt", "safetensors"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused_to_plain", "plain_to_fused"])
def test_save_and_load(ms: Any, tmp_path: Path, file_format: str, fused: bool) -> None:
    """A model saved with one path loads into the other, with nothing but weights in the file."""
    options = {"num_layers": 2, "d_model": 16, "num_heads": 4, "learned_slopes": True}
    saved = ALiBiTransformer(ALiBiConfig(**options, fused=fused))
    saved.layers[0].attn.slopes.slopes.set_data(ms.Tensor([0.7, 0.2, 0.1, 0.0], ms.float32))
    path = str(tmp_path / f"model.{file_format}")
    ms.save_checkpoint(saved, path, format=file_format)
    contents = ms.load_checkpoint(path, format=file_format)
    assert contents.keys() == {p.name for p in saved.get_parameters()}
    loaded = ALiBiTransformer(ALiBiConfig(**options, fused=not fused))
    missing, unexpected = ms.load_param_into_net(loaded, contents, strict_load=True)
    assert not missing
    assert not unexpected
    got, expected = output(ms, loaded), output(ms, saved)
    # The two paths round differently: a few roundings of the largest element.
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_no_buffers_in_checkpoints(ms: Any, tmp_path: Path) -> None:
    """Fixed slopes and positions are no parameters: a file does not depend on lengths."""
    path = str(tmp_path / "model.ckpt")
    ms.save_checkpoint(ALiBiLanguageModel(32, CONFIG), path)
    names = ms.load_checkpoint(path).keys()
    assert len(names) == 2 * 9 + 3
    assert all(name.split(".")[-1] in LEAVES for name in names)


LEAVES = {"weight", "bias", "gamma", "beta", "embedding_table"}
