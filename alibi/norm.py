"""LayerNorm whose gradient, in compiled graphs on the CPU, is made of faster operators."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import nn, ops


def _true() -> bool:
    return True


class _InGraph(ms.constexpr(_true, get_instance=False, check=False)):  # type: ignore[misc]
    """A constant of compiled graphs, where the call operator below is not used."""

    def __call__(self) -> bool:
        return False


class _WithGradient(nn.Cell):
    r"""LayerNorm of rows, and its gradient written out.

    With :math:`c = x - mean`, :math:`r = (variance + \epsilon)^{-1/2}` and :math:`n` the width,

    .. math:: dx = r\,\gamma\,dy - \tfrac{1}{n}(r \sum \gamma\,dy - dmean)
        - \tfrac{1}{n} c\,(r^3 \sum \gamma\,c\,dy - 2\,dvariance)

    The gradients of mean and variance are zero but in a gradient of the gradient. Sums over an
    axis, and columns spread over rows, are matrix products: on the CPU they are many times faster
    than a reduction of the last axis or a broadcast.
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.width = width
        self.epsilon = epsilon
        self.norm = ops.LayerNorm(1, 1, epsilon)
        self.product = ops.MatMul()
        self.transposed_product = ops.MatMul(transpose_a=True)
        self.ones = ms.Tensor(np.ones((1, width), np.float32))

    def construct(self, rows: ms.Tensor, gamma: ms.Tensor, beta: ms.Tensor):  # type: ignore[no-untyped-def]
        return self.norm(rows, gamma, beta)

    def bprop(self, rows, gamma, beta, out, dout):
        _, mean, variance = out
        dy, dmean, dvariance = dout
        inverse = 1 / ops.sqrt(variance + self.epsilon)
        centred = rows - self.product(mean, self.ones)
        moment = dy * centred
        weights = gamma.reshape((self.width, 1))
        along_mean = inverse * self.product(dy, weights) - dmean
        along_unit = inverse * inverse * inverse * self.product(moment, weights) - 2 * dvariance
        drows = (
            dy * self.product(inverse, gamma.reshape((1, self.width)))
            - self.product(along_mean / self.width, self.ones)
            - centred * self.product(along_unit / self.width, self.ones)
        )
        dgamma = self.transposed_product(moment, inverse).reshape(gamma.shape)
        return drows, dgamma, dy.sum(0)


class LayerNorm(nn.LayerNorm):
    """mindspore.nn.LayerNorm over the last axis: the same parameters, values and gradients.

    MindSpore's own gradient takes several times as long as the rest of it. What is faster depends
    on the device and on the mode, so everything but float32 in a compiled graph on the CPU is left
    to MindSpore.

    Args:
        width: length of the last axis.
        epsilon: added to the variance.

    Supported Platforms:
        ``CPU`` ``GPU`` ``Ascend``
    """

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__((width,), epsilon=epsilon)
        self.width = width
        self.on_cpu = ms.get_context("device_target") == "CPU"
        self.in_graph = _InGraph()
        self.rows = _WithGradient(width, epsilon)

    def construct(self, input_x: ms.Tensor) -> ms.Tensor:
        if self.on_cpu and self.in_graph() and input_x.dtype == ms.float32:
            rows = input_x.reshape((-1, self.width))
            return self.rows(rows, self.gamma, self.beta)[0].reshape(input_x.shape)
        dtype = input_x.dtype
        return self.layer_norm(input_x, self.gamma.astype(dtype), self.beta.astype(dtype))[0]
