"""The slopes of ALiBi: how fast each head forgets."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alibi_kernels import contract

_OP = "alibi_slopes"


def alibi_slopes(num_heads: int, kind: str = "paper", max_bias: float = 8.0) -> NDArray[np.float32]:
    r"""The slope of every head, as alibi_attention takes it.

    .. math:: geometric_n(i) = 2^{-max\_bias \cdot i / n}, \quad i = 1 \ldots n

    "geometric" is this for n = num_heads: the formula in the paper's text. "paper" is what the
    authors' code, BLOOM and MPT use: the same if num_heads is a power of two; otherwise, with p
    the largest power of two below num_heads, the p slopes of geometric_p, followed by the first,
    third, fifth, ... slope of geometric_2p until there are num_heads.

    Args:
        num_heads (int): number of query heads, at least 1. In a compiled graph, where the slopes
            are constants, it must be one too: an attribute, or the size of a static axis.
        kind (str): "paper" or "geometric".
        max_bias (float): the exponent of the flattest head, above 0. Default: 8, so that for
            powers of two the last slope is 2^-8 per position of distance.

    Returns:
        numpy.ndarray, [num_heads] float32, each the float32 nearest to its formula; pass it as it
        is (fixed slopes), or wrap it in a Parameter to train it.

    Raises:
        TypeError: num_heads is not an integer, or max_bias is not a number.
        ValueError: num_heads is below 1, kind is unknown, or max_bias is not finite and above 0.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``

    Source: Train Short, Test Long (arXiv 2108.12409), section 3 and its released code.
    """
    return compute(num_heads, kind, max_bias)


def _compute(num_heads: Any, kind: Any, max_bias: Any) -> NDArray[np.float32]:
    heads = _head_count(num_heads)
    contract.check_choice("kind", kind, contract.SLOPE_KINDS, op=_OP)
    if not contract.is_real(max_bias):
        raise contract.error("max_bias.type", _OP, got=contract.describe(max_bias))
    if not (math.isfinite(max_bias) and max_bias > 0):
        raise contract.error("max_bias.range", _OP, got=max_bias)
    if kind == "geometric":
        return _geometric(heads, max_bias).astype(np.float32)
    power = 1 << (heads.bit_length() - 1)
    rest = _geometric(2 * power, max_bias)[::2][: heads - power]
    return np.concatenate([_geometric(power, max_bias), rest]).astype(np.float32)


# Graphs cannot compile it; alibi_kernels.ops, which knows MindSpore, makes it a constant of theirs.
compute: Callable[[Any, Any, Any], NDArray[np.float32]] = _compute


def _geometric(count: int, max_bias: float) -> NDArray[np.float64]:
    return np.exp2(-float(max_bias) * np.arange(1, count + 1, dtype=np.float64) / count)


def _head_count(num_heads: Any) -> int:
    try:
        count = operator.index(num_heads)
    except TypeError:
        count = None
    if count is None or isinstance(num_heads, bool):
        raise contract.error("num_heads.type", _OP, got=contract.describe(num_heads))
    if count < 1:
        raise contract.error("num_heads.range", _OP, got=count)
    return count
