"""The two fused ways to run on Ascend: our AscendC ops, and the attention that CANN has built in.

Our ops are called as csrc/ascend/op_host/alibi_attention_def.cpp defines them: inputs, then
attributes, all by position, which is how MindSpore hands them to an op of an installed package. The
two optional inputs are always given: spans, which default to every key, and reach, where 2^30
prunes nothing.

Gradients are tied by `Cell.bprop`, not by the `bprop` of `ops.Custom`: in PyNative mode MindSpore
runs an Ascend Custom through an inner operator that has its own copy of everything, and attributes
are among the inputs that a gradient would have to be returned for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from alibi_kernels import contract
from alibi_kernels.contract import Signature
from alibi_kernels.custom import (
    NOT_DISTINGUISHING,
    Build,
    Form,
    FullPrecision,
    Run,
    Slopes,
    bprop_of_backward,
)

TILE = 128  # query rows that share a reach: kTileQ of csrc/ascend/tiling.h
NO_REACH = 1 << 30  # kNoReach


class Pair(NamedTuple):
    """The two ops behind a public function, as they are named in csrc/ascend/op_host/."""

    forward: str
    backward: str


# public function -> its ops
PAIRS = {
    "alibi_attention": Pair("AlibiAttention", "AlibiAttentionGrad"),
    "alibi_attention_packed": Pair("AlibiAttention", "AlibiAttentionGrad"),
    "alibi_attention_weights": Pair("AlibiAttentionWeights", "AlibiAttentionWeightsGrad"),
}


class _Rules(NamedTuple):
    """What an operator is made for: the attributes of the ops, and how to prune."""

    scale: float
    causal: bool
    symmetric: bool
    sequence_first: bool
    # How many sides of a query have keys whose bias falls, so that far ones vanish; 0: no pruning.
    sides: int


@cache
def _op(name: str, sequence_first: bool) -> ops.Custom:
    """An op of the package. Made when it is needed: it is made for the device target of then."""
    heads, rows = (2, 1) if sequence_first else (1, 2)
    shapes: dict[str, Callable[..., Any]] = {
        "AlibiAttention": lambda q, *_: (q, (q[0], q[heads], q[rows])),
        "AlibiAttentionGrad": lambda q, k, v, slopes, lse, *_: (q, k, v, lse),
        "AlibiAttentionWeights": lambda q, k, *_: (q[0], q[heads], q[rows], k[rows]),
        "AlibiAttentionWeightsGrad": lambda q, k, p, *_: (q, k, tuple(p[:3])),
    }
    types: dict[str, Callable[..., Any]] = {
        "AlibiAttention": lambda q, *_: (q, ms.float32),
        "AlibiAttentionGrad": lambda q, k, v, *_: (q, k, v, ms.float32),
        "AlibiAttentionWeights": lambda q, *_: q,
        "AlibiAttentionWeightsGrad": lambda q, k, *_: (q, k, ms.float32),
    }
    return ops.Custom(f"aclnn{name}", shapes[name], types[name], "aot")


class _Operator(nn.Cell):
    """A differentiable operator that no mixed precision touches."""

    def __call__(self, *operands: Tensor) -> Any:
        # Reached in PyNative mode only. The backward runs outside `in_full_precision`.
        with FullPrecision():
            return super().__call__(*operands)


# The cells have no branches: the compiler of MindSpore 2.10 loses those of a function that it
# meets both in a forward and in a `bprop`. What depends on the rules is chosen when they are made.


class _Backward(_Operator):
    """(operands of the forward, its results, their gradients) -> gradients of q, k, v, slopes."""

    def __init__(self, pair: Pair, rules: _Rules, trained: bool, reference: Run) -> None:
        super().__init__()
        self.op = _op(pair.backward, rules.sequence_first)
        self.attributes = rules[:4]
        self.reach = _reach(rules)
        self.rows_last = (0, 2, 1) if rules.sequence_first else (0, 1, 2)
        self.total = _sum_of_rows if trained else _nothing
        self.gradients = 3 + trained
        self.second_order = bprop_of_backward(Form(3, 2, True, trained, True), reference)

    def construct(self, q, k, v, slopes, spans, out, lse, dout, dlse):
        products = dout.astype(ms.float32) * out.astype(ms.float32)
        delta = products.sum(-1).transpose(self.rows_last) - dlse
        reach = self.reach(q, k, slopes, spans)
        dq, dk, dv, rows = self.op(
            *(q, k, v, slopes, lse, delta, dout, spans, reach), *self.attributes
        )
        return dq, dk, dv, self.total(rows, slopes)

    def bprop(self, q, k, v, slopes, spans, out, lse, dout, dlse, grads, again):
        operands = (q, k, v, slopes, spans, out, lse, dout, dlse)
        return self.second_order((*operands, grads, again[: self.gradients]))


class _Forward(_Operator):
    """(q, k, v, slopes, spans) -> (out, lse)."""

    def __init__(self, pair: Pair, rules: _Rules, trained: bool, reference: Run) -> None:
        super().__init__()
        self.op = _op(pair.forward, rules.sequence_first)
        self.attributes = rules[:4]
        self.reach = _reach(rules)
        self.gradient = _Backward(pair, rules, trained, reference)

    def construct(self, q, k, v, slopes, spans):
        reach = self.reach(q, k, slopes, spans)
        out, lse = self.op(*(q, k, v, slopes, spans, reach), *self.attributes)
        return out, lse

    def bprop(self, q, k, v, slopes, spans, results, grads):
        dq, dk, dv, dslopes = self.gradient(q, k, v, slopes, spans, *results, *grads)
        return dq, dk, dv, dslopes, ops.ZerosLike()(spans)


class _WeightsBackward(_Operator):
    """(operands of the forward, p, its gradient) -> gradients of q, k, slopes."""

    def __init__(self, pair: Pair, rules: _Rules, trained: bool, reference: Run) -> None:
        super().__init__()
        self.op = _op(pair.backward, rules.sequence_first)
        self.attributes = rules[:4]
        self.total = _sum_of_rows if trained else _nothing
        self.gradients = 2 + trained
        self.second_order = bprop_of_backward(Form(2, 1, True, trained, True), reference)

    def construct(self, q, k, slopes, spans, p, dp):
        dq, dk, rows = self.op(*(q, k, p, dp, spans), *self.attributes)
        return dq, dk, self.total(rows, slopes)

    def bprop(self, q, k, slopes, spans, p, dp, grads, again):
        operands = (q, k, slopes, spans, p, dp)
        return self.second_order((*operands, grads, again[: self.gradients]))


class _WeightsForward(_Operator):
    """(q, k, slopes, spans) -> p."""

    def __init__(self, pair: Pair, rules: _Rules, trained: bool, reference: Run) -> None:
        super().__init__()
        self.op = _op(pair.forward, rules.sequence_first)
        self.attributes = rules[:4]
        self.gradient = _WeightsBackward(pair, rules, trained, reference)

    def construct(self, q, k, slopes, spans):
        return self.op(*(q, k, slopes, spans), *self.attributes)

    def bprop(self, q, k, slopes, spans, p, dp):
        dq, dk, dslopes = self.gradient(q, k, slopes, spans, p, dp)
        return dq, dk, dslopes, ops.ZerosLike()(spans)


# forward op -> the cell around it
_CELLS = {"AlibiAttention": _Forward, "AlibiAttentionWeights": _WeightsForward}


def _sum_of_rows(rows: Tensor, slopes: Tensor) -> Tensor:
    return rows.sum((0, 2))


def _nothing(rows: Tensor, slopes: Tensor) -> Tensor:
    """The gradient of slopes that are a constant."""
    return ops.ZerosLike()(slopes)


def _reach(rules: _Rules) -> Callable[..., Tensor]:
    """(q, k, slopes, spans) -> the input `reach`, [B, Hq, ceil(Sq / 128)] int32: how many keys
    beyond the nearest allowed one can matter, forward or backward, to any query of a tile.

    With u = |scale| max|q| max|k| the nearest allowed key, at distance d, weighs at least
    e^(-u - m d), and all keys from distance d + r on together at most e^(u - m (d + r)) (1 + 1/m)
    (docs/maths.md, Lemma 1). Rules F and B therefore hold when

        m r >= 2 u + log(sides 2^24) + log(1 + 1/m) + log(1 + m N),   N >= any distance.

    The norms are those of a whole head, not of a tile.
    """
    heads, rows = (2, 1) if rules.sequence_first else (1, 2)
    # 2^-10 covers the rounding of both norms and of the scores.
    scale = abs(rules.scale) * (1.0 + 2.0**-10)
    margin = math.log(max(rules.sides, 1) * 2.0**24) + 0.01

    def everything(q, k, slopes, spans):
        tiles = (q.shape[rows] + TILE - 1) // TILE
        return ops.FillV2()((q.shape[0], q.shape[heads], tiles), Tensor(NO_REACH, ms.int32))

    def pruned(q, k, slopes, spans):
        batch, heads_q, heads_kv = q.shape[0], q.shape[heads], k.shape[heads]
        len_q, tiles = q.shape[rows], (q.shape[rows] + TILE - 1) // TILE
        q_norm = _largest_norm(q, rows).reshape(batch, heads_kv, heads_q // heads_kv)
        k_norm = _largest_norm(k, rows).reshape(batch, heads_kv, 1)
        u = scale * (q_norm * k_norm).reshape(batch, heads_q)
        start, end, first = spans[:, 0], spans[:, 1], spans[:, 2]
        farthest = ops.maximum(ops.abs(end - first), ops.abs(first + len_q - start))
        falling = (slopes > 0.0).reshape(1, heads_q)
        m = ops.select(falling, slopes.reshape(1, heads_q), 1.0)
        need = 2.0 * u + margin + ops.log(1.0 + 1.0 / m)
        need = need + ops.log(1.0 + m * farthest.astype(ms.float32).reshape(batch, 1))
        reach = ops.ceil(need / m)
        # Not finite, or not falling: false, so nothing is pruned.
        known = ops.logical_and(falling, reach < float(NO_REACH))
        reach = ops.select(known, reach, float(NO_REACH)).astype(ms.int32)
        return reach.reshape(batch, heads_q, 1).broadcast_to((batch, heads_q, tiles))

    return pruned if rules.sides else everything


def _largest_norm(x: Tensor, rows: int) -> Tensor:
    """[B, heads], the largest length of a vector of each head; infinite if there is a NaN."""
    x = x.astype(ms.float32)
    norms = ops.sqrt((x * x).sum(-1))
    norms = ops.select(norms == norms, norms, float("inf"))
    return ops.ReduceMax()(norms, rows)


def build(signature: Signature, slopes: Slopes, reference: Build) -> Run:
    """The operator for a call with the sizes of `signature`; the parameters are custom.build's."""
    thirds, plain = _thirds(signature), _unpacked(signature)
    rules = _Rules(
        float(signature.scale or 0.0),
        signature.causal,
        signature.bias == "symmetric",
        signature.input_layout == "BSND",
        _sides(signature),
    )
    forward = _forward(PAIRS[signature.op], rules, plain, slopes, reference)
    constant = None if slopes is None else Tensor(slopes, ms.float32)
    every_key = None
    if not signature.spans:
        row = (0, signature.len_k, (signature.len_k or 0) - (signature.len_q or 0))
        every_key = Tensor(np.array([row] * (signature.batch or 0), np.int32))

    def run(tensors, slopes, spans, key_norms):
        operands = tensors if thirds is None else thirds(tensors[0])
        s = slopes if constant is None else constant
        return forward(*operands, s, spans if every_key is None else every_key)

    return run


def _sides(signature: Signature) -> int:
    """_Rules.sides. Below one tile of queries nothing is pruned: the norms would cost another pass
    over the keys, of which the attention itself makes one."""
    falls = signature.causal or signature.bias == "symmetric"
    if not signature.prune or not falls or (signature.len_q or 0) < TILE:
        return 0
    return 1 if signature.causal else 2


@lru_cache(maxsize=1024)
def _forward(
    pair: Pair, rules: _Rules, signature: Signature, slopes: Slopes, reference: Build
) -> nn.Cell:
    return _CELLS[pair.forward](pair, rules, slopes is None, reference(signature, slopes))


def _unpacked(signature: Signature) -> Signature:
    """`signature` as a call on tensors of their own, without what one operator serves all of."""
    op = signature.op if signature.order is None else "alibi_attention"
    return replace(signature, **{**NOT_DISTINGUISHING, "op": op, "order": None})


def _thirds(signature: Signature) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
    """What takes a packed projection apart; None when the call is not packed."""
    if signature.order is None:
        return None
    places = [signature.order.index(name) for name in "qkv"]

    def split(packed):
        parts = ops.split(packed, 1, axis=2)
        return tuple([parts[i].squeeze(2) for i in places])

    return split


class _NoGradient(nn.Cell):
    """lse of the built-in attention, whose backward ignores it: better refused than wrong."""

    def construct(self, lse):
        return lse * 1.0

    def bprop(self, lse, out, dout):
        raise contract.error("backend.lse_gradient", "alibi_attention")


@cache
def _causal_mask() -> Tensor:
    """The mask that sparse mode 2 (causal, aligned at the first query and key) always takes."""
    return Tensor(np.triu(np.ones((2048, 2048), np.bool_), 1))


def build_builtin(signature: Signature, slopes: tuple[float, ...]) -> Run:
    """`ops.speed_fusion_attention`, whose pse type 2 is -slope |i - j|, aligned at the first query
    and key. It returns the maximum and the sum of every row, of which lse is made."""
    thirds = _thirds(signature)
    constant = Tensor(slopes, ms.float32)
    refuse = _NoGradient()
    heads, layout = signature.heads_q, signature.input_layout
    options: dict[str, Any] = {"scale": signature.scale, "pse": constant, "pse_type": 2}
    if signature.causal:
        options |= {"atten_mask": _causal_mask(), "sparse_mode": 2}

    def run(tensors, slopes, spans, key_norms):
        q, k, v = tensors if thirds is None else thirds(tensors[0])
        results = ops.speed_fusion_attention(q, k, v, heads, layout, **options)
        out, top, total = results[:3]
        return out, refuse(top[..., 0] + ops.log(total[..., 0]))

    return run
