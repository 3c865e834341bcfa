"""Reads weights as NumPy arrays from .npz, .safetensors, or PyTorch's .pt, .pth and .bin files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np


def read_weights(source: Mapping[str, Any] | str | Path) -> dict[str, np.ndarray]:
    """Returns name -> array for a state dict or a file that holds one.

    Args:
        source: a mapping of names to arrays (NumPy, MindSpore or PyTorch), or the path of a file.

    Returns:
        The arrays, in the dtype of the source; bfloat16 becomes float32, which holds it exactly.

    Raises:
        TypeError: source is neither a mapping of arrays nor a path.
        FileNotFoundError: there is no such file.
        ValueError: the file's ending is not one of the above.
        ImportError: a PyTorch file is given and PyTorch is not installed.
    """
    if isinstance(source, str | Path):
        source = _open(Path(source))
    if not isinstance(source, Mapping):
        raise TypeError(
            "weights must come as a mapping of names to arrays or as the path of a file, "
            f"but got {type(source).__name__}."
        )
    return {name: _to_numpy(name, value) for name, value in source.items()}


def _open(path: Path) -> Mapping[str, Any]:
    reader = READERS.get(path.suffix)
    if reader is None:
        raise ValueError(f"{path}: weights are read from {', '.join(READERS)} files.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    return reader(path)


def _read_npz(path: Path) -> Mapping[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    return ms.load_checkpoint(str(path), format="safetensors")


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path}: reading a {path.suffix} file needs PyTorch (pip install torch). Without it, "
            "convert the file where PyTorch is installed: "
            "numpy.savez('weights.npz', **{name: value.float().numpy() for name, value in "
            f"torch.load('{path.name}', map_location='cpu').items()}})"
        ) from None
    return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".bin": _read_torch,
}


def _to_numpy(name: str, value: Any) -> np.ndarray:
    if isinstance(value, ms.Tensor):
        return (value.astype(ms.float32) if value.dtype == ms.bfloat16 else value).asnumpy()
    if hasattr(value, "detach"):  # a PyTorch tensor, recognised without importing PyTorch
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"weight {name!r} must be an array (NumPy, MindSpore or PyTorch), "
            f"but got {type(value).__name__}."
        )
    return value
