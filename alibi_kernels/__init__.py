"""Attention with linear biases (ALiBi, arXiv 2108.12409) for MindSpore: fused, exact kernels.

Public names are loaded when first used, so that `alibi_kernels.native`, the kernels on NumPy
arrays, and `alibi_slopes` work where MindSpore is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alibi_kernels import native as native
    from alibi_kernels.layer_ops import bias_gelu, layer_norm
    from alibi_kernels.norms import key_norms
    from alibi_kernels.ops import (
        TrainedSlopes,
        alibi_attention,
        alibi_attention_packed,
        alibi_attention_weights,
    )
    from alibi_kernels.registry import explain
    from alibi_kernels.slopes import alibi_slopes

__version__ = "0.1.0"

__all__ = [
    "TrainedSlopes",
    "__version__",
    "alibi_attention",
    "alibi_attention_packed",
    "alibi_attention_weights",
    "alibi_slopes",
    "bias_gelu",
    "explain",
    "key_norms",
    "layer_norm",
]

# public name -> the module that defines it
_HOME = {
    "TrainedSlopes": "ops",
    "alibi_attention": "ops",
    "alibi_attention_packed": "ops",
    "alibi_attention_weights": "ops",
    "alibi_slopes": "slopes",
    "bias_gelu": "layer_ops",
    "explain": "registry",
    "key_norms": "norms",
    "layer_norm": "layer_ops",
}


def __getattr__(name: str) -> Any:
    if name == "native":
        return import_module(f"{__name__}.native")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "native"})
