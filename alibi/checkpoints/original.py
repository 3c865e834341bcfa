"""Loads a checkpoint of the original PyTorch model, github.com/jaketae/alibi.

Its state_dict holds, per layer, the weights of two norms, two dense layers and the fused
projection, and two buffers that depend on nothing but the configuration: the slopes (attn.m,
[heads, 1, 1]) and, in a decoder, a lower triangle (attn.mask, [1, 1, max_len, max_len]). The
weights are loaded, the buffers only tell the configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from alibi.checkpoints.files import read_weights
from alibi.config import ALiBiConfig, check_config
from alibi.transformer import ALiBiTransformer

BUFFER = re.compile(r"layers\.\d+\.attn\.(m|mask)")

# What the two frameworks call the parameters of a norm.
RENAMED = {
    "attn_norm.weight": "attn_norm.gamma",
    "attn_norm.bias": "attn_norm.beta",
    "ffn_norm.weight": "ffn_norm.gamma",
    "ffn_norm.bias": "ffn_norm.beta",
}


def load_original(
    source: Mapping[str, Any] | str | Path,
    model: ALiBiTransformer | None = None,
    config: ALiBiConfig | None = None,
) -> ALiBiTransformer:
    """Loads the weights of a jaketae/alibi model and returns the model that holds them.

    Args:
        source: the state_dict (name -> array of NumPy, MindSpore or PyTorch), or the path of an
            .npz, .safetensors, .pt, .pth or .bin file that holds it.
        model: the model to fill. None builds one.
        config: of the model to build. None reads it from the checkpoint: sizes from the weights,
            num_heads, causal and max_len from the buffers, bias="signed" for an encoder because
            that is what the original computes; dropout gets its default.

    Returns:
        model, or the new one, with float32 weights. Every position buffer is dropped.

    Raises:
        TypeError: source, model or config is of another type.
        ValueError: both model and config are given; weights are missing, unexpected or of another
            shape; num_heads disagrees with the checkpoint's slopes, or cannot be told.
        FileNotFoundError, ImportError: the file is not there, or needs PyTorch to be read.

    Supported Platforms:
        ``CPU`` ``GPU`` ``Ascend``

    Examples:
        >>> model = load_original("checkpoint.pt")
    """
    if model is not None and config is not None:
        raise ValueError(
            "load_original: give model or config, but got both; a model has its own config."
        )
    if model is not None and not isinstance(model, ALiBiTransformer):
        raise TypeError(
            f"load_original: model must be an ALiBiTransformer, but got {type(model).__name__}."
        )
    if config is not None:
        check_config("load_original", config)
    state = read_weights(source)
    buffers = {name: value for name, value in state.items() if BUFFER.fullmatch(name)}
    weights = {_rename(name): value for name, value in state.items() if name not in buffers}
    if model is None:
        model = ALiBiTransformer(config or _infer_config(weights, buffers))
    _check_heads(model.config, buffers)
    _fill(model, weights)
    return model


def _rename(name: str) -> str:
    for theirs, ours in RENAMED.items():
        if name.endswith(theirs):
            return name.removesuffix(theirs) + ours
    return name


def _infer_config(weights: Mapping[str, np.ndarray], buffers: Mapping[str, np.ndarray]) -> Any:
    hidden, d_model = weights.get("layers.0.ffn.fc1.weight", np.empty((0, 0))).shape
    slopes = buffers.get("layers.0.attn.m")
    if not d_model or slopes is None:
        missing = "layers.0.ffn.fc1.weight" if not d_model else "layers.0.attn.m"
        raise ValueError(
            f"load_original: the checkpoint has no {missing!r}, so its configuration cannot be "
            "told; pass config=ALiBiConfig(...) with the values it was trained with."
        )
    layers = {int(found[1]) for name in weights if (found := re.match(r"layers\.(\d+)\.", name))}
    mask = buffers.get("layers.0.attn.mask")
    encoder = {"causal": False, "bias": "signed"}
    return ALiBiConfig(
        num_layers=max(layers) + 1,
        d_model=d_model,
        num_heads=slopes.size,
        expansion_factor=hidden // d_model,
        **(encoder if mask is None else {"max_len": mask.shape[-1]}),
    )


def _check_heads(config: ALiBiConfig, buffers: Mapping[str, np.ndarray]) -> None:
    for name, slopes in buffers.items():
        if name.endswith(".m") and slopes.size != config.num_heads:
            raise ValueError(
                f"load_original: config.num_heads is {config.num_heads}, but the checkpoint has "
                f"slopes for {slopes.size} heads ({name!r}); set num_heads={slopes.size}."
            )


def _fill(model: ALiBiTransformer, weights: Mapping[str, np.ndarray]) -> None:
    """Copies every weight, or raises and copies none."""
    # Learned slopes are this project's addition: the original has none to give, so they keep the
    # start values, which are the original's fixed slopes.
    parameters = {
        name: parameter
        for name, parameter in model.parameters_and_names()
        if ".attn.slopes." not in name
    }
    wrong = [
        f"{name} has shape {weights[name].shape}, the model {parameter.shape}"
        for name, parameter in parameters.items()
        if name in weights and weights[name].shape != parameter.shape
    ]
    problems = {
        "missing": sorted(parameters.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - parameters.keys()),
        "of another shape": wrong,
    }
    if any(problems.values()):
        found = "; ".join(f"{kind}: {', '.join(them)}" for kind, them in problems.items() if them)
        raise ValueError(f"load_original: the checkpoint does not fit the model. Weights {found}.")
    for name, parameter in parameters.items():
        parameter.set_data(ms.Tensor(weights[name].astype(np.float32)))
