"""ALiBi attention in NumPy float64, straight from the formulas: the truth of every test.

Shares no code with the package, so that a mistake in one of them cannot hide in the other.
Per batch item and head:

    p_i = q_start + i      s_ij = scale * <q_i, k_j> + bias(p_i, j)   where allowed, else -inf
    P   = exp(s - lse)     out  = P v
    ds  = P * (dP - delta)      dP = dout v^T      delta_i = <dout_i, out_i> - dlse_i

Inputs may have any float dtype (also ml_dtypes.bfloat16); results are always float64. The scale is
rounded to float32 first, because that is how the kernels receive it. Rows are taken in blocks only
to bound the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Array = Any
ROW_BLOCK = 512


class _Rows(NamedTuple):
    """A block of query rows of one head: where it is, and its score matrix."""

    b: int
    h: int  # query head
    g: int  # key/value head
    rows: slice
    ramp: Array  # [rows, Sk], d bias / d slope
    scores: Array  # [rows, Sk], -inf where not allowed


def _float64(x: Array, input_layout: str) -> Array:
    """As float64 [B, H, S, D]."""
    x = np.asarray(x).astype(np.float64)
    return x if input_layout == "BNSD" else x.transpose(0, 2, 1, 3)


def _restore(x: Array, input_layout: str) -> Array:
    return x if input_layout == "BNSD" else x.transpose(0, 2, 1, 3)


def _scale(scale: float | None, head_dim: int) -> float:
    return float(np.float32(head_dim**-0.5 if scale is None else scale))


def _row_blocks(
    q: Array, k: Array, slopes: Array, scale: float, causal: bool, bias: str, spans: Array | None
) -> Iterator[_Rows]:
    batch, heads_q, len_q, _ = q.shape
    heads_kv, len_k = k.shape[1:3]
    slopes = np.asarray(slopes).astype(np.float64)
    assert slopes.shape == (heads_q,)
    assert heads_q % heads_kv == 0
    assert bias in ("symmetric", "signed")
    j = np.arange(len_k, dtype=np.float64)[None, :]
    for b in range(batch):
        kv_start, kv_end, q_start = (
            (0, len_k, len_k - len_q) if spans is None else map(int, spans[b])
        )
        for first in range(0, len_q, ROW_BLOCK):
            rows = slice(first, min(first + ROW_BLOCK, len_q))
            p = q_start + np.arange(rows.start, rows.stop, dtype=np.float64)[:, None]
            allowed = np.broadcast_to((kv_start <= j) & (j < kv_end), (p.size, len_k))
            if causal:
                allowed = allowed & (j <= p)
            ramp = -np.abs(p - j) if bias == "symmetric" else j - p
            for h in range(heads_q):
                g = h // (heads_q // heads_kv)
                scores = scale * (q[b, h, rows] @ k[b, g].T) + slopes[h] * ramp
                yield _Rows(b, h, g, rows, ramp, np.where(allowed, scores, -np.inf))


def _softmax(scores: Array) -> tuple[Array, Array]:
    """(P, lse); a row in which nothing is allowed has P = 0 and lse = -inf."""
    if scores.shape[1] == 0:
        return np.zeros_like(scores), np.full(scores.shape[0], -np.inf)
    top = scores.max(axis=1)
    shift = np.where(np.isneginf(top), 0.0, top)
    e = np.exp(scores - shift[:, None])
    total = e.sum(axis=1)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + shift
    return e / np.where(total == 0, 1.0, total)[:, None], lse


def attention(
    q: Array,
    k: Array,
    v: Array,
    slopes: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
) -> tuple[Array, Array]:
    """(out like q, lse [B, Hq, Sq])."""
    q, k, v = (_float64(x, input_layout) for x in (q, k, v))
    out = np.zeros(q.shape)
    lse = np.zeros(q.shape[:3])
    for r in _row_blocks(q, k, slopes, _scale(scale, q.shape[3]), causal, bias, spans):
        p, lse[r.b, r.h, r.rows] = _softmax(r.scores)
        out[r.b, r.h, r.rows] = p @ v[r.b, r.g]
    return _restore(out, input_layout), lse


def attention_grad(
    q: Array,
    k: Array,
    v: Array,
    slopes: Array,
    dout: Array,
    dlse: Array | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
) -> tuple[Array, Array, Array, Array]:
    """(dq, dk, dv, dslopes) of sum(out * dout) + sum(lse * dlse, rows with a finite lse)."""
    q, k, v, dout = (_float64(x, input_layout) for x in (q, k, v, dout))
    dlse = np.zeros(q.shape[:3]) if dlse is None else np.asarray(dlse).astype(np.float64)
    c = _scale(scale, q.shape[3])
    dq, dk, dv, dslopes = (
        np.zeros(q.shape),
        np.zeros(k.shape),
        np.zeros(v.shape),
        np.zeros(q.shape[1]),
    )
    for r in _row_blocks(q, k, slopes, c, causal, bias, spans):
        p, _ = _softmax(r.scores)
        do = dout[r.b, r.h, r.rows]
        delta = (do * (p @ v[r.b, r.g])).sum(axis=1) - dlse[r.b, r.h, r.rows]
        ds = p * (do @ v[r.b, r.g].T - delta[:, None])
        dq[r.b, r.h, r.rows] = c * (ds @ k[r.b, r.g])
        dk[r.b, r.g] += c * (ds.T @ q[r.b, r.h, r.rows])
        dv[r.b, r.g] += p.T @ do
        dslopes[r.h] += (ds * r.ramp).sum()
    return (*(_restore(x, input_layout) for x in (dq, dk, dv)), dslopes)


def weights(
    q: Array,
    k: Array,
    slopes: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
) -> Array:
    """P [B, Hq, Sq, Sk]."""
    q, k = _float64(q, input_layout), _float64(k, input_layout)
    p = np.zeros((*q.shape[:3], k.shape[2]))
    for r in _row_blocks(q, k, slopes, _scale(scale, q.shape[3]), causal, bias, spans):
        p[r.b, r.h, r.rows], _ = _softmax(r.scores)
    return p


def weights_grad(
    q: Array,
    k: Array,
    slopes: Array,
    dp: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
) -> tuple[Array, Array, Array]:
    """(dq, dk, dslopes) of sum(P * dp)."""
    q, k = _float64(q, input_layout), _float64(k, input_layout)
    dp = np.asarray(dp).astype(np.float64)
    c = _scale(scale, q.shape[3])
    dq, dk, dslopes = np.zeros(q.shape), np.zeros(k.shape), np.zeros(q.shape[1])
    for r in _row_blocks(q, k, slopes, c, causal, bias, spans):
        p, _ = _softmax(r.scores)
        dp_rows = dp[r.b, r.h, r.rows]
        ds = p * (dp_rows - (p * dp_rows).sum(axis=1, keepdims=True))
        dq[r.b, r.h, r.rows] = c * (ds @ k[r.b, r.g])
        dk[r.b, r.g] += c * (ds.T @ q[r.b, r.h, r.rows])
        dslopes[r.h] += (ds * r.ramp).sum()
    return _restore(dq, input_layout), _restore(dk, input_layout), dslopes
