"""ALiBi attention in plain MindSpore operators: the fallback of every backend, the rival of tests.

    s_ij  = scale * <q_i, k_j> + bias(p_i, j)   for allowed (i, j), -inf elsewhere
    lse_i = log sum_j exp(s_ij)                 -inf when nothing is allowed
    out_i = sum_j exp(s_ij - lse_i) v_j         0 when nothing is allowed

It writes the whole score matrix, so memory is O(Sq * Sk); in return it runs on every device, in
PyNative and graph mode, with dynamic lengths, and in a graph it is differentiable any number of
times (PyNative of MindSpore 2.10 loses second-order terms behind every reshape, in any network).
All arithmetic is float32, whatever the dtype of q, k, v. Arguments were validated by contract.py.
"""

from __future__ import annotations

from mindspore import Tensor, ops
from mindspore import dtype as mstype

_MINUS_INF = -float("inf")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    spans: Tensor | None,
    *,
    scale: float,
    causal: bool,
    bias: str,
    input_layout: str,
) -> tuple[Tensor, Tensor]:
    r"""Attention with linear biases (arXiv 2108.12409), every score written to memory.

    .. math:: out_i = \sum_j e^{s_{ij} - lse_i} v_j, \quad lse_i = \log \sum_j e^{s_{ij}}

    Args:
        q (Tensor): [B, Hq, Sq, D] ("BNSD") or [B, Sq, Hq, D] ("BSND"); float32, float16, bfloat16.
        k (Tensor): the same layout and dtype with Hkv heads and length Sk; Hkv divides Hq.
        v (Tensor): like k.
        slopes (Tensor): [Hq] float32, bias per position of distance.
        spans (Tensor | None): [B, 3] int32, (kv_start, kv_end, q_start) in positions;
            None = (0, Sk, Sk - Sq).
        scale (float): factor of the dot products.
        causal (bool): whether key j > p_i is hidden from query i.
        bias (str): "symmetric", -slope * abs(p_i - j), or "signed", slope * (j - p_i).
        input_layout (str): "BNSD" or "BSND".

    Returns:
        out, like q, and lse, [B, Hq, Sq] float32, natural logarithm.

    Raises:
        Nothing of its own: arguments must have passed `contract.validate_attention`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``
    """
    q32, k32, v32 = (_to_bnsd(x, input_layout) for x in (q, k, v))
    # Products over an axis of length 0, here or in the gradients, leave memory uninitialised.
    if q32.shape[2] == 0 or k32.shape[2] == 0:
        return ops.zeros_like(q), ops.full_like(q32[..., 0], _MINUS_INF)
    e, total, shift = _exp_scores(q32, k32, slopes, spans, scale, causal, bias)
    empty = total == 0.0
    # Dividing by 1 in empty rows, not by 0, keeps NaN out of the gradients, where 0 * inf arises.
    safe_total = ops.where(empty, 1.0, total)
    out = _group_matmul(e, v32, False) / safe_total.expand_dims(-1)
    lse = ops.where(empty, _MINUS_INF, shift + ops.log(safe_total))
    return _swap_layout(out, input_layout).astype(q.dtype), lse


def attention_weights(
    q: Tensor,
    k: Tensor,
    slopes: Tensor,
    spans: Tensor | None,
    *,
    scale: float,
    causal: bool,
    bias: str,
    input_layout: str,
) -> Tensor:
    r"""The attention weights themselves (arXiv 2108.12409).

    .. math:: p_{ij} = e^{s_{ij}} / \sum_j e^{s_{ij}}

    Args:
        q (Tensor): as in `attention`; so are all other arguments.
        k (Tensor): see `attention`.
        slopes (Tensor): see `attention`.
        spans (Tensor | None): see `attention`.
        scale (float): see `attention`.
        causal (bool): see `attention`.
        bias (str): see `attention`.
        input_layout (str): see `attention`.

    Returns:
        p, [B, Hq, Sq, Sk] in the dtype of q; rows in which nothing is allowed are 0.

    Raises:
        Nothing of its own: arguments must have passed `contract.validate_weights`.

    Supported Platforms:
        ``Ascend`` ``GPU`` ``CPU``
    """
    q32, k32 = _to_bnsd(q, input_layout), _to_bnsd(k, input_layout)
    batch, heads_q, len_q, _ = q32.shape
    if len_q == 0 or k32.shape[2] == 0:
        return ops.zeros((batch, heads_q, len_q, k32.shape[2]), q.dtype)
    e, total, _ = _exp_scores(q32, k32, slopes, spans, scale, causal, bias)
    safe_total = ops.where(total == 0.0, 1.0, total)
    return (e / safe_total.expand_dims(-1)).astype(q.dtype)


def _to_bnsd(x: Tensor, input_layout: str) -> Tensor:
    """As float32 [B, H, S, D]: the CPU has no bfloat16 products, and float16 sums lose digits."""
    return _swap_layout(x.astype(mstype.float32), input_layout)


def _swap_layout(x: Tensor, input_layout: str) -> Tensor:
    """Between input_layout and "BNSD"; the exchange of axes is its own inverse."""
    return x if input_layout == "BNSD" else x.transpose(0, 2, 1, 3)


def _group_matmul(x: Tensor, y: Tensor, transpose_y: bool) -> Tensor:
    """x [B, Hq, S, n] times y [B, Hkv, n, m] -> [B, Hq, S, m]; y is [B, Hkv, m, n] if transposed.

    The query heads that share a key/value head become further rows of one product, so that y is
    never repeated.
    """
    batch, heads_q, rows, inner = x.shape
    heads_kv = y.shape[1]
    x = x.reshape(batch, heads_kv, heads_q // heads_kv * rows, inner)
    product = ops.BatchMatMul(transpose_b=transpose_y)(x, y)
    return product.reshape(batch, heads_q, rows, product.shape[3])


def _positions(length: int) -> Tensor:
    return ops.arange(length).astype(mstype.int32)


def _bias_and_mask(
    len_q: int, len_k: int, spans: Tensor | None, causal: bool, bias: str
) -> tuple[Tensor, Tensor]:
    """(d bias / d slope, allowed), each [B or 1, 1, Sq, Sk]."""
    j = _positions(len_k).reshape(1, 1, 1, len_k)
    i = _positions(len_q).reshape(1, 1, len_q, 1)
    if spans is None:
        ahead = j - (i + (len_k - len_q))
        allowed = j >= 0
    else:
        kv_start, kv_end, q_start = (spans[:, n].reshape(-1, 1, 1, 1) for n in range(3))
        # Subtracted as integers: float32 would round positions beyond 2^24 before the difference.
        ahead = j - (i + q_start)
        allowed = ops.logical_and(j >= kv_start, j < kv_end)
    if causal:
        allowed = ops.logical_and(allowed, ahead <= 0)
    ramp = ahead.astype(mstype.float32)
    return (-ops.abs(ramp) if bias == "symmetric" else ramp), allowed


def _exp_scores(
    q: Tensor,
    k: Tensor,
    slopes: Tensor,
    spans: Tensor | None,
    scale: float,
    causal: bool,
    bias: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """e_ij = exp(s_ij - shift_i) [B, Hq, Sq, Sk], its row sums and the shift [B, Hq, Sq].

    The shift is the largest score of the row (0 when nothing is allowed). No result depends on it,
    so it is a constant for differentiation.
    """
    ramp, allowed = _bias_and_mask(q.shape[2], k.shape[2], spans, causal, bias)
    scores = scale * _group_matmul(q, k, True) + slopes.reshape(1, -1, 1, 1) * ramp
    scores = ops.where(allowed, scores, _MINUS_INF)
    top = ops.stop_gradient(ops.amax(scores, -1))
    shift = ops.where(top == _MINUS_INF, 0.0, top)
    e = ops.exp(scores - shift.expand_dims(-1))
    return e, e.sum(axis=-1), shift
