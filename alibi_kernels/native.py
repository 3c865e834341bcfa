"""The CPU kernels on NumPy arrays, without MindSpore: for tests, tools and other frameworks.

The same C entry points that MindSpore calls, with explicit gradients and a choice of instruction
set and thread count. Arrays are float32, float16 or (ml_dtypes) bfloat16, in any layout whose last
axis is contiguous: views are read and written where they are, never copied. The GIL is released
while a kernel runs, and results never depend on the number of threads.

Arguments that all functions share:

    q, k, v       [B, Hq, Sq, D], [B, Hkv, Sk, D], [B, Hkv, Sk, D]  ("BNSD"; "BSND" swaps H and S)
    slopes        [Hq] float32, or a flat sequence of numbers
    scale         factor on the dot products; None = D ** -0.5
    causal        True: row i sees no key beyond its own position
    bias          "symmetric": -slope * |distance|     "signed": slope * (key - query position)
    spans         [B, 3] int32 rows (kv_start, kv_end, q_start); None = (0, Sk, Sk - Sq)
    prune         True: skip keys that provably cannot change the result; False: read all
    threads       None = the OpenMP default; always 1 in a process forked after a call on several
    isa           a name of isas(); None = ALIBI_CPU_ISA, or the best one
    stats         a dict to fill: "tiles_visited" of "tiles_allowed" key tiles entered the result.
                  "decode_rows" query rows took the decode path, which read the keys of
                  "tiles_scored" tiles
    out, grads    arrays to write the results to (not overlapping the inputs); None allocates

They raise TypeError or ValueError before anything is computed, when an argument breaks a rule
(alibi_kernels.rules), RuntimeError when ALIBI_CPU_ISA names an instruction set that cannot run
here, and MemoryError when there is no memory for scratch (the results are then undefined).
Supported Platforms: ``CPU``. Source: arXiv 2108.12409.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alibi_kernels import contract, layer_contract, norms_contract
from alibi_kernels._call import Array, Call, RowsCall, Stats, _native, raise_norms
from alibi_kernels._call import isas as isas


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    slopes: Array | Sequence[float],
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    threads: int | None = None,
    isa: str | None = None,
    key_norms: Array | None = None,
    out: Array | tuple[Array | None, Array | None] | None = None,
    stats: Stats | None = None,
) -> tuple[Array, Array]:
    r"""Attention with linear biases; the module's docstring explains the shared arguments.

    s_ij = scale * <q_i, k_j> + bias      lse_i = log sum_j exp(s_ij)
    out_i = sum_j exp(s_ij - lse_i) v_j

    Args:
        key_norms: what key_norms() returned for k, so that a pruned call need not read keys that
            do not matter: worth keeping beside a cache.
        out: an array like q, or a tuple (out, lse).

    Returns:
        (out like q, lse [B, Hq, Sq] float32); 0 and -inf for a row that may see no key.
    """
    options = (scale, causal, bias, input_layout, prune, threads, isa)
    call = Call("attention_forward", q, k, v, slopes, spans, *options)
    call.take("key_norms", key_norms, "key_norms", optional=True)
    given = out if isinstance(out, tuple) else (out, None)
    results = call.make_all("out", {"out": "q", "lse": "lse"}, given)
    call.run(_native.attention_fwd, stats)
    return results


def attention_backward(
    q: Array,
    k: Array,
    v: Array,
    slopes: Array | Sequence[float],
    out: Array,
    lse: Array,
    dout: Array,
    *,
    dlse: Array | None = None,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    threads: int | None = None,
    isa: str | None = None,
    grads: tuple[Array | None, ...] | None = None,
    stats: Stats | None = None,
) -> tuple[Array, Array, Array, Array]:
    r"""The gradients of attention_forward.

    ds = P * (dP - delta),   dP = dout v^T,   delta_i = <dout_i, out_i> - dlse_i

    Args:
        out, lse: what attention_forward returned.
        dout, dlse: gradients that arrive at out and lse; None = 0 for dlse.
        grads: (dq, dk, dv, dslopes), each an array or None.

    Returns:
        (dq like q, dk like k, dv like v, dslopes [Hq] float32).
    """
    options = (scale, causal, bias, input_layout, prune, threads, isa)
    call = Call("attention_backward", q, k, v, slopes, spans, *options)
    call.take("out", out, "q")
    call.take("lse", lse, "lse")
    call.take("dout", dout, "q")
    call.take("dlse", dlse, "lse", optional=True)
    results = call.make_all("grads", {"dq": "q", "dk": "k", "dv": "k", "dslopes": "slopes"}, grads)
    call.run(_native.attention_bwd, stats)
    return results


def attention_weights(
    q: Array,
    k: Array,
    slopes: Array | Sequence[float],
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    threads: int | None = None,
    isa: str | None = None,
    out: Array | None = None,
    stats: Stats | None = None,
) -> Array:
    r"""The attention weights themselves; the module's docstring explains the shared arguments.

    s_ij = scale * <q_i, k_j> + bias      P_ij = exp(s_ij - log sum_j exp(s_ij))

    Args:
        prune: True may write weights below 2^-24 of their row's sum as 0.
        out: an array [B, Hq, Sq, Sk], dtype of q.

    Returns:
        P [B, Hq, Sq, Sk], dtype of q, in every layout; 0 in a row that may see no key.

    Raises:
        TypeError, ValueError, RuntimeError, MemoryError: as the module's docstring says.
    """
    options = (scale, causal, bias, input_layout, prune, threads, isa)
    call = Call("attention_weights", q, k, None, slopes, spans, *options, weights=True)
    (result,) = call.make_all("out", {"out": "p"}, (out,))
    call.run(_native.weights_fwd, stats)
    return result


def attention_weights_backward(
    q: Array,
    k: Array,
    slopes: Array | Sequence[float],
    p: Array,
    dp: Array,
    *,
    scale: float | None = None,
    causal: bool = True,
    bias: str = "symmetric",
    spans: Array | None = None,
    input_layout: str = "BNSD",
    prune: bool = True,
    threads: int | None = None,
    isa: str | None = None,
    grads: tuple[Array | None, ...] | None = None,
    stats: Stats | None = None,
) -> tuple[Array, Array, Array]:
    r"""The gradients of attention_weights: ds = P * (dP - sum_j P_ij dP_ij).

    Args:
        p: what attention_weights returned.
        dp: the gradient that arrives at it, [B, Hq, Sq, Sk], dtype of q.
        grads: (dq, dk, dslopes), each an array or None.

    Returns:
        (dq like q, dk like k, dslopes [Hq] float32).
    """
    options = (scale, causal, bias, input_layout, prune, threads, isa)
    call = Call("attention_weights_backward", q, k, None, slopes, spans, *options, weights=True)
    call.take("p", p, "p")
    call.take("dp", dp, "p")
    results = call.make_all("grads", {"dq": "q", "dk": "k", "dslopes": "slopes"}, grads)
    call.run(_native.weights_bwd, stats)
    return results


def key_norms(
    k: Array,
    *,
    start: int = 0,
    norms: Array | None = None,
    input_layout: str = "BNSD",
    threads: int | None = None,
    isa: str | None = None,
) -> Array:
    """The largest norm of each 16 keys, for attention_forward(key_norms=...).

    norms[b, h, t] = max |k_j| over the keys j of [16 t, 16 t + 16)

    Args:
        k: keys that stand at the positions from `start` on.
        start: position of the first of them.
        norms: [B, Hkv, blocks] float32, contiguous, at least as many blocks as the keys reach,
            raised in place: append to a cache, or overwrite parts of it, and the entries stay upper
            bounds. None = new, and as short as the keys allow.

    Returns:
        [B, Hkv, ceil((start + Sk) / 16)] float32, or `norms`. inf where a key holds a NaN.

    Raises:
        TypeError, ValueError: an argument breaks a rule; nothing was changed.
    """
    op = "key_norms"
    contract.require_type("k", k, np.ndarray, op=op)
    contract.check_choice("input_layout", input_layout, contract.LAYOUTS, op=op)
    sizes = norms_contract.check_keys(contract.spec(k), input_layout, op=op)
    start = norms_contract.check_start(start, op=op)
    least = norms_contract.blocks(start + sizes.length)
    if norms is None:
        norms = np.zeros((sizes.batch, sizes.heads, least), np.float32)
    contract.require_type("norms", norms, np.ndarray, op=op)
    norms_contract.check_norms(contract.spec(norms), sizes.batch, sizes.heads, least, op=op)
    raise_norms(op, k, start, norms, input_layout, threads, isa)
    return norms


def layer_norm_forward(
    x: Array,
    gamma: Array,
    beta: Array,
    *,
    epsilon: float = 1e-5,
    threads: int | None = None,
    isa: str | None = None,
    out: tuple[Array | None, ...] | None = None,
) -> tuple[Array, Array, Array]:
    r"""Layer normalisation over the last axis of x. Every array is contiguous float32.

    y = (x - mean) * rstd * gamma + beta      rstd = (variance + epsilon) ** -0.5

    Args:
        x: [..., width]; gamma, beta: [width].
        out: a tuple (y, mean, rstd) of arrays to write to, or None.

    Returns:
        (y like x, mean [...], rstd [...]).
    """
    op = "layer_norm_forward"
    layer_contract.check_epsilon(epsilon, op=op)
    call = RowsCall(op, x, threads, isa)
    call.take("gamma", gamma, "vector")
    call.take("beta", beta, "vector")
    results = call.make_all("out", {"y": "x", "mean": "row", "rstd": "row"}, out)
    call.run(_native.layer_norm_fwd, float(epsilon))
    return results


def layer_norm_backward(
    x: Array,
    gamma: Array,
    mean: Array,
    rstd: Array,
    dy: Array,
    *,
    threads: int | None = None,
    isa: str | None = None,
    grads: tuple[Array | None, ...] | None = None,
) -> tuple[Array, Array, Array]:
    r"""The gradients of layer_norm_forward. Every array is contiguous float32.

    xhat = (x - mean) * rstd      g = dy * gamma      avg = mean over the last axis
    dx = rstd * (g - avg(g) - xhat * avg(g * xhat))
    dgamma = sum dy * xhat        dbeta = sum dy      over all rows

    Args:
        x: [..., width]; gamma: [width].
        mean, rstd: [...], what layer_norm_forward returned for x.
        dy: the gradient that arrives at y, like x.
        grads: a tuple (dx, dgamma, dbeta) of arrays to write to, or None.

    Returns:
        (dx like x, dgamma [width], dbeta [width]).

    Raises:
        TypeError, ValueError, RuntimeError, MemoryError: as the module's docstring says.
    """
    call = RowsCall("layer_norm_backward", x, threads, isa)
    call.take("gamma", gamma, "vector")
    call.take("mean", mean, "row")
    call.take("rstd", rstd, "row")
    call.take("dy", dy, "x")
    results = call.make_all("grads", {"dx": "x", "dgamma": "vector", "dbeta": "vector"}, grads)
    call.run(_native.layer_norm_bwd)
    return results


def bias_gelu_forward(
    x: Array,
    bias: Array,
    *,
    threads: int | None = None,
    isa: str | None = None,
    out: Array | None = None,
) -> Array:
    r"""Bias and exact GELU. Every array is contiguous float32.

    y = h * Phi(h)      h = x + bias      Phi(h) = (1 + erf(h / sqrt(2))) / 2

    Args:
        x: [..., width]; bias: [width].
        out: an array like x to write to, or None.

    Returns:
        y like x.

    Raises:
        TypeError, ValueError, RuntimeError, MemoryError: as the module's docstring says.
    """
    call = RowsCall("bias_gelu_forward", x, threads, isa)
    call.take("bias", bias, "vector")
    (y,) = call.make_all("out", {"y": "x"}, (out,))
    call.run(_native.bias_gelu_fwd)
    return y


def bias_gelu_backward(
    x: Array,
    bias: Array,
    dy: Array,
    *,
    threads: int | None = None,
    isa: str | None = None,
    grads: tuple[Array | None, ...] | None = None,
) -> tuple[Array, Array]:
    r"""The gradients of bias_gelu_forward. Every array is contiguous float32.

    dx = dy * (Phi(h) + h * phi(h))      h = x + bias      phi(h) = exp(-h^2 / 2) / sqrt(2 pi)
    dbias = sum dx                       over all rows

    Args:
        x: [..., width]; bias: [width].
        dy: the gradient that arrives at y, like x.
        grads: a tuple (dx, dbias) of arrays to write to, or None.

    Returns:
        (dx like x, dbias [width]).

    Raises:
        TypeError, ValueError, RuntimeError, MemoryError: as the module's docstring says.
    """
    call = RowsCall("bias_gelu_backward", x, threads, isa)
    call.take("bias", bias, "vector")
    call.take("dy", dy, "x")
    results = call.make_all("grads", {"dx": "x", "dbias": "vector"}, grads)
    call.run(_native.bias_gelu_bwd)
    return results
