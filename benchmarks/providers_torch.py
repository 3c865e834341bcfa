"""PyTorch: scaled_dot_product_attention, FlexAttention, and attention written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from cases import DECODE, TRAINING, Case
from peers_common import INFERENCE, dense_bias, first_position, forget_compiled, limits
from providers import Arrays, Prepared, Provider

Attend = Callable[[Any, Any, Any], Any]  # q, k, v -> out, in torch tensors


def _torch(case: Case, inputs: Arrays, attend_of: Callable[[Case], Attend]) -> Prepared:
    import torch

    torch.set_num_threads(case.threads)
    dtype = getattr(torch, case.dtype)
    q, k, v, dout = (torch.from_numpy(inputs[n]).to(dtype) for n in ("q", "k", "v", "dout"))
    attend = attend_of(case)

    def forward() -> Any:
        with torch.no_grad():
            return attend(q, k, v)

    def training() -> Any:
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        out = attend(*leaves)
        return out, torch.autograd.grad(out, leaves, dout)

    def outputs() -> Arrays:
        if case.mode != TRAINING:
            return {"out": forward().float().numpy()}
        out, gradients = training()
        arrays = {"out": out.detach().float().numpy()}
        return arrays | {
            n: g.float().numpy() for n, g in zip(("dq", "dk", "dv"), gradients, strict=True)
        }

    return Prepared(training if case.mode == TRAINING else forward, outputs)


def _sdpa_mask(case: Case) -> Attend:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    bias = torch.from_numpy(dense_bias(case)).to(getattr(torch, case.dtype))
    options = {"attn_mask": bias, "scale": case.scale, "enable_gqa": case.group > 1}
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, **options)


def _without_mask(case: Case) -> dict[str, Any]:
    """Options of scaled_dot_product_attention."""
    causal = case.causal and case.queries > 1
    return {"is_causal": causal, "scale": case.scale, "enable_gqa": case.group > 1}


def _sdpa_columns(case: Case) -> Attend:
    """slope * j as one more head dimension: q gains slope / scale, k gains j; the row's constant
    cancels in softmax.
    """
    import torch
    from torch.nn.functional import pad, scaled_dot_product_attention

    dtype = getattr(torch, case.dtype)
    slopes = torch.from_numpy(case.slopes / case.scale).to(dtype)[None, :, None, None]
    q_column = slopes.expand(case.batch, -1, case.queries, 1)
    positions = torch.arange(case.keys, dtype=torch.float32) - (case.keys - 1)
    k_column = positions.to(dtype)[None, None, :, None].expand(case.batch, case.key_heads, -1, 1)

    def widen(k: Any, v: Any) -> tuple[Any, Any]:
        return torch.cat((k, k_column), dim=-1), pad(v, (0, 1))

    if case.mode == DECODE:
        widen = cache(widen)  # a model would keep its cache so

    def attend(q: Any, k: Any, v: Any) -> Any:
        wide_q = torch.cat((q, q_column), dim=-1)
        wide_k, wide_v = widen(k, v)
        out = scaled_dot_product_attention(wide_q, wide_k, wide_v, **_without_mask(case))
        return out[..., : case.head_dim]

    return attend


def _eager(case: Case) -> Attend:
    import torch

    bias = torch.from_numpy(dense_bias(case))

    def by_key_head(x: Any) -> Any:
        return x.unflatten(1, (case.key_heads, case.group)).flatten(2, 3) if case.group > 1 else x

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = torch.matmul(by_key_head(q), k.transpose(-1, -2)).float() * case.scale
        scores = scores.view(*q.shape[:3], -1) + bias
        p = torch.softmax(scores, dim=-1).to(q.dtype)
        return torch.matmul(by_key_head(p), v).view(q.shape)

    return attend


def _eager_compiled(case: Case) -> Attend:
    import torch

    forget_compiled(case)
    return torch.compile(_eager(case), dynamic=False)


def _flex(case: Case) -> Attend:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    forget_compiled(case)
    slopes = torch.from_numpy(case.slopes.astype(np.float32))
    first = first_position(case)

    def score_mod(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        return score - slopes[h] * (i + first - j).abs()

    ends = torch.tensor(case.lengths or [case.keys] * case.batch)

    def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
        return i + first >= j

    def padded(b: Any, h: Any, i: Any, j: Any) -> Any:
        return (j < ends[b]) & (i + first >= j) if case.causal else j < ends[b]

    mask = None
    if case.lengths is not None:
        mask = create_block_mask(padded, case.batch, None, case.queries, case.keys, device="cpu")
    elif case.causal:
        mask = create_block_mask(causal, None, None, case.queries, case.keys, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    options = {"score_mod": score_mod, "block_mask": mask, "scale": case.scale}
    return lambda q, k, v: compiled(q, k, v, **options, enable_gqa=case.group > 1)


def _sdpa_without_bias(case: Case) -> Attend:
    from torch.nn.functional import scaled_dot_product_attention

    return lambda q, k, v: scaled_dot_product_attention(q, k, v, **_without_mask(case))


def _row(name: str, attend: Callable[[Case], Attend], note: str, **limited: Any) -> Provider:
    prepare = partial(_torch, attend_of=attend)
    return Provider(name, "peer", "torch", prepare, partial(limits, **limited), note)


PROVIDERS = [
    _row(
        "torch SDPA, columns", _sdpa_columns, "slope * j as a head column", full=False, padded=False
    ),
    _row("torch SDPA, mask", _sdpa_mask, "dense bias", needs_bias=True),
    _row("torch FlexAttention, compiled", _flex, "score_mod", modes=INFERENCE),
    _row("torch eager", _eager, "dense bias, scores in memory", scores=True),
    _row("torch compiled", _eager_compiled, "dense bias, scores in memory", scores=True),
    # Computes less than asked (no bias at all): neither checked nor counted as a rival.
    Provider(
        "torch SDPA, no bias",
        "yardstick",
        "torch",
        partial(_torch, attend_of=_sdpa_without_bias),
        partial(limits, padded=False),
        "no ALiBi",
    ),
]
