"""Public implementations of ALiBi attention on a GPU, each as its users would call it.

What a user does once (another layout, compilation, a bias in memory) happens in `prepare`; what is
timed is the call that a model makes on every step. In training that is the backward alone: the
forward ran before. A peer that is missing or refuses a case says why; a wrong one is not timed.

    flash-attn 2              alibi_slopes
    FlashAttention 4          score_mod, CuTe DSL; the generic path through FlexAttention besides
    FlexAttention             score_mod, Triton
    torch SDPA                a bias in memory, by cuDNN and by the memory-efficient kernel
    cuDNN frontend            use_alibi_mask
    JAX                       a bias in memory, by cuDNN
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from cases import DECODE, FORWARD, TRAINING, Case
from providers import Arrays, Prepared, Provider

MAX_BIAS_GB = 24
NAMES = ("q", "k", "v", "dout")


@dataclass(frozen=True)
class GpuPrepared(Prepared):
    clock: str = "events"  # or "host": runs on a stream of its own and returns when it is done


def tensors(case: Case, inputs: Arrays, device: str) -> list[Any]:
    """q, k, v and dout [B, H, S, D] in the case's dtype."""
    import torch

    dtype = getattr(torch, case.dtype)
    return [torch.from_numpy(inputs[name]).to(device, dtype) for name in NAMES]


def slopes_of(case: Case, device: str) -> Any:
    import torch

    return torch.from_numpy(case.slopes.astype(np.float32)).to(device)


def bias_gb(case: Case) -> float:
    return case.heads * case.queries * case.keys * 2e-9


def dense_bias(case: Case, device: str) -> Any:
    """[1, H, Sq, Sk] in the case's dtype, -inf above the diagonal; head by head to save memory."""
    import torch

    dtype, slopes = getattr(torch, case.dtype), case.slopes
    rows = torch.arange(case.keys - case.queries, case.keys, device=device)[:, None]
    distance = (torch.arange(case.keys, device=device)[None, :] - rows).float()
    bias = torch.empty(1, case.heads, case.queries, case.keys, dtype=dtype, device=device)
    for head in range(case.heads):
        one = -float(slopes[head]) * distance.abs()
        if case.causal:
            one.masked_fill_(distance > 0, float("-inf"))
        bias[0, head] = one
    return bias


def _arrays(*results: Any) -> Arrays:
    named = zip(("out", "dq", "dk", "dv"), results, strict=False)
    return {name: x.detach().float().cpu().numpy() for name, x in named}


def autograd(
    case: Case, q: Any, k: Any, v: Any, dout: Any, attend: Callable[..., Any], swap: bool = False
) -> Prepared:
    """A peer that PyTorch differentiates. `swap`: it takes [B, S, H, D]."""
    import torch

    if swap:
        q, k, v, dout = (x.transpose(1, 2).contiguous() for x in (q, k, v, dout))
    back = (lambda x: x.transpose(1, 2)) if swap else (lambda x: x)
    if case.mode != TRAINING:

        def forward() -> Any:
            with torch.no_grad():
                return attend(q, k, v)

        return GpuPrepared(forward, lambda: _arrays(back(forward())))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attend(*leaves)

    def backward() -> Any:
        return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return GpuPrepared(backward, lambda: _arrays(*map(back, (out, *backward()))))


def _sdpa(case: Case, inputs: Arrays, device: str, backend: str) -> Prepared:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    bias = dense_bias(case, device)
    if backend == "CUDNN_ATTENTION":
        bias.clamp_(min=-3e4)  # it turns rows with -inf into NaN
    bias = bias.expand(case.batch, -1, -1, -1)

    def attend(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=case.scale)

    return autograd(case, *tensors(case, inputs, device), attend)


def _flex(case: Case, inputs: Arrays, device: str, backend: str) -> Prepared:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    slopes, first = slopes_of(case, device), case.keys - case.queries

    def score_mod(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        if case.causal:
            return score + slopes[h] * (j - (i + first))
        return score - slopes[h] * (i + first - j).abs()

    def mask_mod(b: Any, h: Any, i: Any, j: Any) -> Any:
        return i + first >= j

    mask = None
    if case.causal and case.queries > 1:
        mask = create_block_mask(mask_mod, None, None, case.queries, case.keys, device=device)
    options = {"BACKEND": backend} if backend else None
    compiled = torch.compile(flex_attention, dynamic=False)
    settings = {"score_mod": score_mod, "block_mask": mask, "scale": case.scale}
    attend = partial(compiled, kernel_options=options, **settings)
    return autograd(case, *tensors(case, inputs, device), attend)


def _flash2(case: Case, inputs: Arrays, device: str) -> Prepared:
    from flash_attn import flash_attn_func

    slopes = slopes_of(case, device)
    options = {"softmax_scale": case.scale, "causal": case.causal, "alibi_slopes": slopes}
    attend = partial(flash_attn_func, **options)
    return autograd(case, *tensors(case, inputs, device), attend, swap=True)


def _flash4_mods(heads: int) -> dict[str, Any]:
    """score + slope * (j - i) with the slopes of a power-of-two count of heads computed in place:
    slopes in memory cost that path a division per element. The library passes arguments by name."""
    import cutlass
    from cutlass import cute

    step = -8.0 / heads

    @cute.jit
    def score_mod(score, batch_idx, head_idx, q_idx, kv_idx, seqlen_info, aux_tensors):
        x = score.to(cutlass.Float32)
        number = (head_idx + cute.full_like(head_idx, 1)).to(cutlass.Float32)
        slope = cute.math.exp2(number * cute.full_like(x, step))
        return x + slope * (kv_idx - q_idx).to(cutlass.Float32)

    @cute.jit
    def score_mod_bwd(grad, score, batch_idx, head_idx, q_idx, kv_idx, seqlen_info, aux_tensors):
        return grad

    return {"score_mod": score_mod, "score_mod_bwd": score_mod_bwd}


def _flash4(case: Case, inputs: Arrays, device: str) -> Prepared:
    from flash_attn.cute import flash_attn_func

    options = {"softmax_scale": case.scale, "causal": True, **_flash4_mods(case.heads)}

    def attend(q: Any, k: Any, v: Any) -> Any:
        result = flash_attn_func(q, k, v, **options)
        return result[0] if isinstance(result, tuple) else result  # with lse in some versions

    return autograd(case, *tensors(case, inputs, device), attend, swap=True)


def _cudnn_graph(cudnn: Any, case: Case, handle: Any) -> Any:
    kind = cudnn.data_type.BFLOAT16 if case.dtype == "bfloat16" else cudnn.data_type.HALF
    single = cudnn.data_type.FLOAT
    return cudnn.pygraph(
        io_data_type=kind, intermediate_data_type=single, compute_data_type=single, handle=handle
    )


def _cudnn_plan(cudnn: Any, graph: Any, device: str) -> Any:
    """Builds the graph; its workspace."""
    import torch

    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    return torch.empty(max(graph.get_workspace_size(), 1), device=device, dtype=torch.uint8)


def _cudnn(case: Case, inputs: Arrays, device: str) -> Prepared:
    import cudnn
    import torch

    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    q, k, v, dout = tensors(case, inputs, device)
    options = {"attn_scale": case.scale, "use_alibi_mask": True, "use_causal_mask": True}
    shape, strides = list(q.shape), list(q.stride())
    lse = torch.empty(*shape[:3], 1, device=device, dtype=torch.float32)
    out = torch.empty_like(q)

    graph = _cudnn_graph(cudnn, case, handle)
    ends = [graph.tensor_like(x) for x in (q, k, v)]
    o, stats = graph.sdpa(
        name="forward", q=ends[0], k=ends[1], v=ends[2], generate_stats=True, **options
    )
    o.set_output(True).set_dim(shape).set_stride(strides)
    stats.set_output(True).set_dim(list(lse.shape)).set_stride(list(lse.stride()))
    stats.set_data_type(cudnn.data_type.FLOAT)
    space = _cudnn_plan(cudnn, graph, device)
    pack = dict(zip([*ends, o, stats], [q, k, v, out, lse], strict=True))

    def forward() -> Any:
        graph.execute(pack, space, handle=handle)
        return out

    if case.mode == FORWARD:
        return GpuPrepared(forward, lambda: _arrays(forward()))
    forward()
    given = [q, k, v, out, dout, lse]
    reverse = _cudnn_graph(cudnn, case, handle)
    names = ("q", "k", "v", "o", "dO", "stats")
    ends = [reverse.tensor_like(x) for x in given]
    found = reverse.sdpa_backward(name="backward", **dict(zip(names, ends, strict=True)), **options)
    for x in found:
        x.set_output(True).set_dim(shape).set_stride(strides)
    gradients = [torch.empty_like(q) for _ in range(3)]
    room = _cudnn_plan(cudnn, reverse, device)
    both = dict(zip([*ends, *found], [*given, *gradients], strict=True))

    def backward() -> Any:
        reverse.execute(both, room, handle=handle)
        return gradients

    return GpuPrepared(backward, lambda: _arrays(out, *backward()))


def _jax(case: Case, inputs: Arrays, device: str, implementation: str = "cudnn") -> Prepared:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is there too
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    import jax
    import jax.numpy as jnp

    q, k, v, dout = (
        jnp.from_dlpack(x.transpose(1, 2).contiguous()) for x in tensors(case, inputs, device)
    )
    bias = jnp.from_dlpack(dense_bias(case, device).clamp_(min=-3e4))

    @jax.jit
    def attend(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            bias=bias,
            scale=case.scale,
            is_causal=case.causal and case.queries > 1,
            implementation=implementation,
        )

    pull_back = jax.jit(lambda pull, gradient: pull(gradient))
    out, pull = None, None
    if case.mode == TRAINING:
        out, pull = jax.vjp(lambda *qkv: attend(*qkv, bias), q, k, v)

    def run() -> Any:
        return jax.block_until_ready(
            attend(q, k, v, bias) if pull is None else pull_back(pull, dout)
        )

    def outputs() -> Arrays:
        found = (run(),) if pull is None else (out, *run())
        named = zip(("out", "dq", "dk", "dv"), found, strict=False)
        return {n: np.asarray(x.astype(jnp.float32)).swapaxes(1, 2) for n, x in named}

    return GpuPrepared(run, outputs, clock="host")


def _limits(
    case: Case,
    modes: tuple[str, ...] = (FORWARD, TRAINING),
    dtypes: tuple[str, ...] = ("float16", "bfloat16"),
    full: bool = False,
    bias: bool = False,
) -> list[str]:
    found = []
    if case.mode not in modes:
        found.append(f"no {case.mode}")
    if case.dtype not in dtypes:
        found.append(f"no {case.dtype}")
    if not case.causal and not full:
        found.append("no symmetric bias")
    if bias and bias_gb(case) > MAX_BIAS_GB:
        found.append(f"the bias alone would need {bias_gb(case):.0f} GB")
    return found


COMPILED = ("FlexAttention", "JAX")  # how the names of those begin that compile what they run
ALL_MODES, ALL_DTYPES = (FORWARD, TRAINING, DECODE), ("float16", "bfloat16", "float32")
_WITH_BIAS: dict[str, Any] = {"modes": ALL_MODES, "full": True, "bias": True}

# name, package, prepare, what it can do, note
_TABLE: tuple[tuple[str, str, Callable[..., Prepared], dict[str, Any], str], ...] = (
    ("cuDNN frontend", "cudnn", _cudnn, {}, "use_alibi_mask"),
    (
        "flash-attn 2",
        "flash_attn.flash_attn_interface",
        _flash2,
        {"modes": ALL_MODES, "full": True},
        "alibi_slopes",
    ),
    ("FlashAttention 4", "flash_attn.cute.interface", _flash4, {}, "score_mod"),
    (
        "torch SDPA, cuDNN",
        "torch",
        partial(_sdpa, backend="CUDNN_ATTENTION"),
        _WITH_BIAS,
        "bias in memory",
    ),
    (
        "torch SDPA, efficient",
        "torch",
        partial(_sdpa, backend="EFFICIENT_ATTENTION"),
        {**_WITH_BIAS, "dtypes": ALL_DTYPES},
        "bias in memory",
    ),
    (
        "FlexAttention",
        "torch",
        partial(_flex, backend=""),
        {"modes": ALL_MODES, "dtypes": ALL_DTYPES, "full": True},
        "score_mod, Triton",
    ),
    (
        "FlexAttention, flash",
        "torch",
        partial(_flex, backend="FLASH"),
        {"full": True},
        "score_mod, FlashAttention 4",
    ),
    ("JAX", "jax", _jax, _WITH_BIAS, "bias in memory, cuDNN; host clock"),
)


def providers(device: str) -> list[Provider]:
    return [
        Provider(
            name, "peer", package, partial(prepare, device=device), partial(_limits, **limits), note
        )
        for name, package, prepare, limits, note in _TABLE
    ]


def forget() -> None:
    """Between cases: gives back what the peers held, and forgets what was compiled for a shape."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch._dynamo.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
