"""LayerNorm, Dense, and Dense with a GELU after it: MindSpore's cells on the fused kernels."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops

from alibi_kernels import bias_gelu, layer_norm


class _InOwnPrecision(nn.Cell):
    """Knows whether mixed precision has set this cell, or one around it, to a 16-bit type.

    In PyNative mode such a cell casts the inputs of MindSpore's operators, which the fused ones,
    being exempt, would not notice.
    """

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        self.lowered = False

    def _add_mixed_precision_flag(self, **flags: bool) -> None:
        super()._add_mixed_precision_flag(**flags)
        # Called for every flag, such as "training"; only these three are about precision.
        if flags.get("fp16") or flags.get("bf16") or flags.get("fp32"):
            self.lowered = not flags.get("fp32")


class LayerNorm(_InOwnPrecision, nn.LayerNorm):
    """mindspore.nn.LayerNorm over the last axis: the same parameters, values and gradients.

    In float32 on the CPU it is one kernel forward and one backward (alibi_kernels.layer_norm).

    Args:
        width: length of the last axis.
        epsilon: added to the variance.
        fused: False leaves everything to MindSpore's operator.

    Supported Platforms:
        ``CPU`` ``GPU`` ``Ascend``
    """

    def __init__(self, width: int, epsilon: float, fused: bool = True) -> None:
        super().__init__((width,), epsilon=epsilon)
        self.fused = fused

    def construct(self, input_x: ms.Tensor) -> ms.Tensor:
        if self.fused and not self.lowered:
            return layer_norm(input_x, self.gamma, self.beta, self.epsilon)
        dtype = input_x.dtype
        return self.layer_norm(input_x, self.gamma.astype(dtype), self.beta.astype(dtype))[0]


class _BiasAdd(nn.Cell):
    """ops.BiasAdd whose gradient is summed by ReduceSum.

    MindSpore's own, BiasAddGrad, adds the same numbers in the same order and takes the CPU several
    times as long.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias_add = ops.BiasAdd()

    def construct(self, x: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        return self.bias_add(x, bias)

    def bprop(self, x, bias, out, dout):
        return dout.astype(x.dtype), dout.sum(0).astype(bias.dtype)


class Dense(_InOwnPrecision, nn.Dense):
    """mindspore.nn.Dense: the same parameters, values and gradients.

    Args:
        in_channels, out_channels: as in nn.Dense.
        fused: False leaves everything to MindSpore's operators.

    Supported Platforms:
        ``CPU`` ``GPU`` ``Ascend``
    """

    def __init__(self, in_channels: int, out_channels: int, fused: bool = True) -> None:
        super().__init__(in_channels, out_channels)
        self.fused = fused
        self.faster_bias_add = _BiasAdd()

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        product = self.matmul(x.reshape((-1, self.in_channels)), self.weight)
        return self.finish(product).reshape((*x.shape[:-1], self.out_channels))

    def finish(self, product: ms.Tensor) -> ms.Tensor:
        """What comes after the product, on its rows."""
        # In lower precision a graph casts what enters a cell, and not back the gradients that the
        # cell brings.
        if self.fused and not self.lowered:
            return self.faster_bias_add(product, self.bias)
        return self.bias_add(product, self.bias)


class DenseGelu(Dense):
    """mindspore.nn.Dense and an exact GELU: the same parameters and initial values as the Dense.

    In float32 on the CPU, bias and GELU are one kernel, and so are their gradients
    (alibi_kernels.bias_gelu).

    Args:
        in_channels, out_channels: as in nn.Dense.
        fused: False leaves everything to MindSpore's operators.

    Supported Platforms:
        ``CPU`` ``GPU`` ``Ascend``
    """

    def __init__(self, in_channels: int, out_channels: int, fused: bool = True) -> None:
        super().__init__(in_channels, out_channels, fused)
        self.gelu = nn.GELU(approximate=False)

    def finish(self, product: ms.Tensor) -> ms.Tensor:
        if self.fused and not self.lowered:
            return bias_gelu(product, self.bias)
        return self.gelu(self.bias_add(product, self.bias))
