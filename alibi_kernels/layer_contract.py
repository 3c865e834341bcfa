"""The rules of layer_norm and bias_gelu, for tensors and for arrays alike.

Both work on the rows of x, which lie on its last axis; gamma, beta and bias are one number per
element of a row. Unknown sizes, in graphs of dynamic shapes, are None or negative; they break no
rule.
"""

from __future__ import annotations

from typing import Any

from alibi_kernels import contract

Shape = tuple[int | None, ...]


def check_epsilon(epsilon: Any, *, op: str) -> None:
    """ValueError unless epsilon is a finite number of at least 0."""
    if not contract.is_real(epsilon) or not 0 <= epsilon < float("inf"):
        raise contract.error("epsilon.range", op, got=contract.describe(epsilon))


def check_dtype(name: str, dtype: str, names: str, *, op: str) -> None:
    """TypeError unless a tensor has one of the dtypes of all operators."""
    if dtype not in contract.DTYPES:
        raise contract.error("dtype.unsupported", op, name=name, got=dtype, names=names)


def check_x(shape: Shape, *, op: str) -> None:
    """ValueError unless x has rows."""
    if len(shape) == 0 or shape[-1] == 0:
        raise contract.error("rows.rank", op, shape=shape)


def check_vector(name: str, shape: Shape, x: Shape, *, op: str) -> None:
    """ValueError unless a vector has the width of the rows of x."""
    width = x[-1]
    known = isinstance(width, int) and width >= 0
    if len(shape) != 1 or (known and isinstance(shape[0], int) and shape[0] not in (width, -1)):
        wanted = width if known else "width"
        raise contract.error("rows.vector", op, name=name, width=wanted, x_shape=x, shape=shape)
