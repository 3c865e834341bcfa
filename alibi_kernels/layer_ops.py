"""What a transformer layer does between its products, fused: layer_norm and bias_gelu.

On the CPU, in float32, they are kernels (csrc/alibi_layer.h); any other call is the same formula in
MindSpore's operators, as is every call under ALIBI_BACKEND=reference. As in ops.py, the bodies of
the public functions run as Python or are compiled, and `_planner` is what happens in Python either
way: once per call, or once per compilation.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

from alibi_kernels import custom, layer_contract, registry, rows
from alibi_kernels.forms import form, require_tensor, spec

Run = Callable[..., Tensor]

# public function -> the names of its tensors
_TENSORS = {"layer_norm": ("x", "gamma", "beta"), "bias_gelu": ("x", "bias")}


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5) -> Tensor:
    r"""Layer normalisation over the last axis, fused with its gradient.

    .. math:: y = \frac{x - mean(x)}{\sqrt{variance(x) + \epsilon}} \gamma + \beta

    Args:
        x (Tensor): [..., width], float32, float16 or bfloat16.
        gamma, beta (Tensor): [width]; cast to the dtype of x, or to float32 where bfloat16 is
            computed in it.
        epsilon (float): added to the variance. Default: 1e-5.

    Returns:
        Tensor like x.

    Raises:
        TypeError: a tensor is not a Tensor, or of another dtype.
        ValueError: gamma or beta is not [width], or epsilon is negative or not finite.

    Supported Platforms:
        ``CPU`` fused, in float32; ``GPU`` ``Ascend`` and other dtypes as MindSpore's LayerNorm, on
        the CPU in float32 for bfloat16

    Source: arXiv 1607.06450.
    """
    run = _planner("layer_norm", (form(x), form(gamma), form(beta)), epsilon)
    return run(x, gamma, beta)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    r"""The exact GELU of x + bias, in one pass: what follows the first product of a feed-forward.

    .. math:: y = h\,\Phi(h), \qquad h = x + bias

    Args:
        x (Tensor): [..., width], float32, float16 or bfloat16.
        bias (Tensor): [width]; cast to the dtype of x, or to float32 where bfloat16 is computed in
            it.

    Returns:
        Tensor like x.

    Raises:
        TypeError: a tensor is not a Tensor, or of another dtype.
        ValueError: bias is not [width].

    Supported Platforms:
        ``CPU`` fused, in float32; ``GPU`` ``Ascend`` and other dtypes in MindSpore's operators, on
        the CPU in float32 for bfloat16

    Source: arXiv 1606.08415.
    """
    run = _planner("bias_gelu", (form(x), form(bias)), None)
    return run(x, bias)


def _plan(op: str, forms: tuple[Any, ...], epsilon: Any) -> Run:
    """What runs a call; layer_contract's TypeError or ValueError if it breaks a rule."""
    for name, x in zip(_TENSORS[op], forms, strict=True):
        require_tensor(name, x, op=op)
    if op == "layer_norm":
        layer_contract.check_epsilon(epsilon, op=op)
        epsilon = float(epsilon)
    environment = os.environ.get("ALIBI_BACKEND")
    return _cached_plan(op, forms, epsilon, rows.device_target(), environment)


@lru_cache(maxsize=4096)
def _cached_plan(
    op: str,
    forms: tuple[Any, ...],
    epsilon: float | None,
    device: str,
    environment: str | None,  # part of the key only
) -> Run:
    specs = [spec(*x[1:]) for x in forms]
    for name, x in zip(_TENSORS[op], specs, strict=True):
        layer_contract.check_dtype(name, x.dtype, ", ".join(_TENSORS[op]), op=op)
    shapes = [x.shape for x in specs]
    if shapes[0] != (-2,):  # whose rank a graph does not know yet
        layer_contract.check_x(shapes[0], op=op)
    for name, shape in zip(_TENSORS[op][1:], shapes[1:], strict=True):
        layer_contract.check_vector(name, shape, shapes[0], op=op)
    library = None
    if device == "CPU" and all(dtype == ms.float32 for _, _, dtype in forms):
        library = registry.cpu_kernels(op)
    if library is not None:
        return _gelu(library) if epsilon is None else _norm(library, epsilon)
    if device == "CPU" and forms[0][2] == ms.bfloat16:
        return _float32_gelu if epsilon is None else _float32_norm(epsilon)
    return _plain_gelu if epsilon is None else _plain_norm(epsilon)


def explain_dtype(dtype: str) -> str:
    """What would run layer_norm and bias_gelu on tensors of a dtype; lines as of explain()."""
    wanted = registry.environment_choice("layer_norm")
    reasons = [*rows.cpu_library()[1], *rows.wrong_device("CPU")]
    if dtype != "float32":
        reasons.append(f"the tensors are {dtype}, and it takes float32")
    if wanted not in (None, "cpu"):
        state = f"not asked for (backend {wanted} is)"
    elif reasons:
        state = "cannot run it: " + "; ".join(reasons)
    else:
        return f"cpu: runs it, as {rows.describe_cpu()}\nMindSpore's operators: could run it too"
    return f"cpu: {state}\nMindSpore's operators: run it"


class _Planner(ms.constexpr(_plan, get_instance=False, check=False)):  # type: ignore[misc]
    """A compile-time constant in graphs, where the call operator below is not used."""

    def __call__(self, op: str, forms: tuple[Any, ...], epsilon: Any) -> Run:
        return _plan(op, forms, epsilon)


_planner = _Planner()


@lru_cache(maxsize=64)
def _norm(library: str, epsilon: float) -> Run:
    forward = custom.Operator(library, "AlibiLayerNormFwd", {"epsilon": epsilon})
    backward = custom.Operator(library, "AlibiLayerNormBwd", {})

    def run(x, gamma, beta):
        return forward(x, gamma, beta)[0]

    def bprop(x, gamma, beta, out, dout):
        return backward(x, gamma, out[1], out[2], dout[0])

    def reference(tensors, slopes, spans, key_norms):
        x, gamma, beta = tensors
        centred = x - x.mean(-1, keep_dims=True)
        variance = (centred * centred).mean(-1, keep_dims=True)
        return centred / ops.sqrt(variance + epsilon) * gamma + beta

    second = custom.bprop_of_backward(custom.Form(3, 1, False, False, False), reference)

    def bprop_again(x, gamma, mean, rstd, dy, out, dout):
        # mean and rstd follow from x; no gradient depends on the values of beta.
        dx, dgamma, _, _, ddy = second((x, gamma, gamma, dy, dy, out, dout))
        return dx, dgamma, ops.zeros_like(mean), ops.zeros_like(rstd), ddy

    forward.bprop, backward.bprop = bprop, bprop_again
    return run


@lru_cache(maxsize=64)
def _gelu(library: str) -> Run:
    forward = custom.Operator(library, "AlibiBiasGeluFwd", {})
    backward = custom.Operator(library, "AlibiBiasGeluBwd", {})

    def run(x, bias):
        return forward(x, bias)[0]

    def bprop(x, bias, out, dout):
        return backward(x, bias, dout[0])

    def reference(tensors, slopes, spans, key_norms):
        return _plain_gelu(tensors[0], tensors[1])

    second = custom.bprop_of_backward(custom.Form(2, 1, False, False, False), reference)

    def bprop_again(x, bias, dy, out, dout):
        dx, dbias, _, ddy = second((x, bias, dy, dy, out, dout))
        return dx, dbias, ddy

    forward.bprop, backward.bprop = bprop, bprop_again
    return run


@lru_cache(maxsize=64)
def _plain_norm(epsilon: float) -> Run:
    norm = ops.LayerNorm(-1, -1, epsilon)

    def run(x, gamma, beta):
        return norm(x, gamma.astype(x.dtype), beta.astype(x.dtype))[0]

    return run


def _plain_gelu(x, bias):
    h = x + bias.astype(x.dtype)
    return 0.5 * h * (1 + ops.erf(h * 0.5**0.5))


# For bfloat16 on the CPU, where MindSpore has neither LayerNorm nor erf of it.
@lru_cache(maxsize=64)
def _float32_norm(epsilon: float) -> Run:
    plain = _plain_norm(epsilon)

    def run(x, gamma, beta):
        return plain(x.astype(ms.float32), gamma, beta).astype(x.dtype)

    return run


def _float32_gelu(x, bias):
    return _plain_gelu(x.astype(ms.float32), bias).astype(x.dtype)
