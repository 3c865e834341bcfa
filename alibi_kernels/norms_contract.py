"""The rules of key norms, for tensors and for arrays alike.

A cache keeps the largest norm of each NORM_KEYS keys, [B, Hkv, blocks] float32 in either layout, so
that a pruned call need not read the keys in order to know that they do not matter. Unknown sizes,
in graphs of dynamic shapes, break no rule.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

from alibi_kernels import contract
from alibi_kernels.contract import Signature, Spec

NORM_KEYS = 16  # ALIBI_NORM_KEYS of csrc/alibi_attention.h
_UNKNOWN_RANK = (-2,)


def blocks(keys: int) -> int:
    """How many norms the keys at positions 0 to keys - 1 have."""
    return -(-keys // NORM_KEYS)


def check_kept(norms: Spec, call: Signature) -> None:
    """TypeError or ValueError unless an attention call can take these as its key_norms."""
    table = None if call.len_k is None else blocks(call.len_k)
    _check_dtype("key_norms", norms.dtype, call.op)
    sizes = (call.batch, call.heads_kv, table)
    if not _fits(norms.shape, sizes):
        named = zip(sizes, ("batch", "key heads", "blocks"), strict=True)
        want = ", ".join(name if size is None else str(size) for size, name in named)
        raise contract.error("key_norms.shape", call.op, want=want, shape=norms.shape)


def check_keys(k: Spec, layout: str, *, op: str) -> Any:
    """The sizes of keys, batch, heads, length and head_dim, that norms can be made of."""
    sizes = contract.sizes_of(op, "k", k.shape, layout)
    if k.dtype not in contract.DTYPES:
        raise contract.error("dtype.unsupported", op, name="k", got=k.dtype, names="k")
    if sizes.head_dim == 0:
        raise contract.error("head_dim.zero", op, name="k", shape=k.shape)
    return sizes


def check_norms(
    norms: Spec, batch: int | None, heads: int | None, least: int | None, *, op: str
) -> None:
    """TypeError or ValueError unless norms have a place for `least` blocks of such keys."""
    _check_dtype("norms", norms.dtype, op)
    shape = norms.shape
    short = least is not None and len(shape) == 3 and 0 <= (shape[2] or 0) < least
    if short or not _fits(shape, (batch, heads, None)):
        sizes = zip((batch, heads, least), ("batch", "key heads", "enough"), strict=True)
        wanted = [name if size is None else str(size) for size, name in sizes]
        want = f"({wanted[0]}, {wanted[1]}, at least {wanted[2]})"
        raise contract.error("norms.shape", op, want=want, shape=shape)


def check_start(start: Any, *, op: str) -> int:
    """start, or ValueError unless it is a position."""
    if not isinstance(start, Integral) or isinstance(start, bool) or start < 0:
        raise contract.error("start.range", op, got=contract.describe(start))
    return int(start)


def check_starts(start: Spec, batch: int | None, has_norms: bool, *, op: str) -> None:
    """TypeError or ValueError unless a tensor can say where the keys of each batch item start."""
    if not has_norms:
        raise contract.error("start.norms", op)
    if start.dtype != "int32":
        raise contract.error("start.dtype", op, got=start.dtype)
    if not _fits(start.shape, (batch,)):
        wanted = "batch" if batch is None else batch
        raise contract.error("start.shape", op, batch=wanted, shape=start.shape)


def check_positions(starts: list[int], keys: int, blocks: int, *, op: str) -> None:
    """ValueError unless all keys stand where there is a norm for them."""
    for index, start in enumerate(starts):
        if not 0 <= start <= blocks * NORM_KEYS - keys:
            last = blocks * NORM_KEYS - keys
            raise contract.error("start.reach", op, index=index, got=start, last=last, keys=keys)


def _check_dtype(name: str, dtype: str, op: str) -> None:
    if dtype != "float32":
        raise contract.error("norms.dtype", op, name=name, got=dtype)


def _fits(shape: tuple[int | None, ...], sizes: tuple[int | None, ...]) -> bool:
    """Whether every size that is known is the wanted one."""
    if shape == _UNKNOWN_RANK:
        return True
    pairs = zip(shape, sizes, strict=False)
    return len(shape) == len(sizes) and not any(
        got is not None and got >= 0 and want is not None and got != want for got, want in pairs
    )
