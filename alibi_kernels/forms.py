"""What planning a call needs of its tensors, in PyNative mode and while a graph is compiled."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from alibi_kernels import contract


def form(x: Any) -> tuple[Any, ...]:
    """Whether x is a Tensor, and its shape and dtype; (False, x, None) for anything else.

    Not the Tensor itself: a graph would hand out a placeholder with memory of its size.
    """
    if isinstance(x, Tensor):
        return True, x.shape, x.dtype
    return False, x, None


def require_tensor(name: str, x: tuple[Any, ...], *, op: str, optional: bool = False) -> None:
    """TypeError unless x is the form of a Tensor, or of None where that is allowed."""
    if not (x[0] or (optional and x[1] is None)):
        contract.require_type(name, x[1], Tensor, op=op)


def spec(shape: Any, dtype: Any) -> contract.Spec:
    """The Spec of a tensor; a graph may not know its rank."""
    return contract.Spec((-2,) if shape is None else tuple(shape), contract.dtype_name(dtype))
