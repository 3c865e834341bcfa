"""Multi-head self-attention with linear biases, as a Cell."""

# No `from __future__ import annotations`: MindSpore's mixed precision O1 rewrites the class in a
# module without it, where a return annotation that is a name would not be found.

from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindspore import nn, ops

from alibi._checks import check, check_heads, is_empty, resolve_slopes
from alibi.config import ALiBiConfig, check_config
from alibi_kernels import TrainedSlopes, alibi_attention, alibi_attention_packed


class ALiBiAttention(nn.Cell):
    r"""Causal (or bidirectional) self-attention whose scores fall linearly with distance.

    .. math:: k, q, v = x W^T, \quad
        out_i = \sum_j softmax_j(scale\, \langle q_i, k_j \rangle - slope_h |p_i - j|)\, v_j

    One bias-free projection makes key, query and value, in this order. There is no output
    projection; dropout is applied to the result, both as in jaketae/alibi.

    Args:
        d_model: width of input and output, a multiple of num_heads.
        num_heads: attention heads.
        dropout: probability of dropping an element of the output while training, in [0, 1).
        causal: True lets a token see itself and earlier tokens only.
        scale: factor on the query-key products; None means 1/sqrt(d_model), as in the original
            (the paper uses 1/sqrt(d_model / num_heads)).
        slopes: "geometric", "paper", or num_heads floats; see alibi_kernels.alibi_slopes.
        bias: "symmetric" or "signed"; equal when causal.
        num_kv_heads: key/value heads shared by groups of query heads; None means num_heads.
        learned_slopes: True makes the slopes a trained Parameter, float32 at every amp level.
        fused: False runs on plain MindSpore operators; parameters and results are the same.

    Inputs:
        x: [batch, length, d_model], any length.
        spans: [batch, 3] int32 or None. Per sequence (kv_start, kv_end, q_start): keys j with
            kv_start <= j < kv_end exist, and query i stands at position q_start + i. None means
            (0, length, 0). Left padding by n tokens: (n, length, 0). Right padding: (0, n, 0).

    Outputs:
        [batch, length, d_model], in the dtype of the projection; 0 where no key is allowed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or x is not [batch, length, d_model].

    Supported Platforms:
        ``CPU`` fused and not, in float32 and float16: MindSpore has no bfloat16 matrix product
        there. ``GPU`` ``Ascend`` as alibi_kernels.explain() reports. Gradients of gradients need a
        compiled graph; in PyNative mode MindSpore's nn.Dense, the projection, makes them 0.

    Source: arXiv 2108.12409; the projection and its order follow github.com/jaketae/alibi.

    Examples:
        >>> attention = ALiBiAttention(d_model=256, num_heads=8)
        >>> attention(ops.randn(2, 100, 256)).shape
        (2, 100, 256)
    """

    def __init__(
        self,
        d_model: int = 256,
        num_heads: int = 8,
        *,
        dropout: float = 0.1,
        causal: bool = True,
        scale: float | None = None,
        slopes: str | Sequence[float] = "geometric",
        bias: str = "symmetric",
        num_kv_heads: int | None = None,
        learned_slopes: bool = False,
        fused: bool = True,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        d_model, num_heads, dropout, causal = check(
            owner, d_model=d_model, num_heads=num_heads, dropout=dropout, causal=causal
        ).values()
        scale, bias, num_kv_heads, learned_slopes, fused = check(
            owner,
            scale=scale,
            bias=bias,
            num_kv_heads=num_kv_heads,
            learned_slopes=learned_slopes,
            fused=fused,
        ).values()
        check_heads(owner, d_model, num_heads, num_kv_heads)
        self.d_model = d_model
        self.num_heads = num_heads
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_dim = d_model // num_heads
        self.options: dict[str, Any] = {
            "scale": d_model**-0.5 if scale is None else scale,
            "causal": causal,
            "bias": bias,
            "backend": None if fused else "reference",
        }
        # Fixed slopes stay Python numbers: they become part of the operator, so that no amp level
        # can round them and no checkpoint holds them.
        fixed = resolve_slopes(owner, slopes, num_heads)
        self.learned_slopes = learned_slopes
        self.slopes: Any = TrainedSlopes(fixed) if learned_slopes else fixed
        self.kqv = nn.Dense(
            d_model, (num_heads + 2 * self.num_kv_heads) * self.head_dim, has_bias=False
        )
        self.dropout = nn.Dropout(p=dropout)

    @classmethod
    def from_config(cls, config: ALiBiConfig) -> "ALiBiAttention":
        """Returns the attention of one layer of ALiBiTransformer(config)."""
        check_config(cls.__name__, config)
        return cls(
            config.d_model,
            config.num_heads,
            dropout=config.dropout,
            causal=config.causal,
            scale=config.scale,
            slopes=config.slopes,
            bias=config.bias,
            num_kv_heads=config.num_kv_heads,
            learned_slopes=config.learned_slopes,
            fused=config.fused,
        )

    def construct(self, x: ms.Tensor, spans: ms.Tensor | None = None) -> ms.Tensor:
        if len(x.shape) != 3 or x.shape[2] != self.d_model:
            raise ValueError(
                f"ALiBiAttention: x must have shape [batch, length, {self.d_model}], "
                f"but got {x.shape}."
            )
        batch, length, _ = x.shape
        projected = self.kqv(x)
        # Not in a method of its own: in graphs of lower precision a method's arguments are cast.
        slopes = self.slopes() if self.learned_slopes else self.slopes
        if self.num_kv_heads == self.num_heads:
            # The kernel reads the three thirds of the projection where they are.
            packed = projected.reshape((batch, length, 3, self.num_heads, self.head_dim))
            out = alibi_attention_packed(packed, slopes, order="kqv", spans=spans, **self.options)
        else:
            width = self.num_kv_heads * self.head_dim
            if is_empty(x.shape):  # of any width; MindSpore would divide by zero to split it
                key, query, value = projected, projected, projected
            else:
                key, query, value = ops.split(projected, [width, self.d_model, width], axis=2)
            kv_shape = (batch, length, self.num_kv_heads, self.head_dim)
            out = alibi_attention(
                query.reshape((batch, length, self.num_heads, self.head_dim)),
                key.reshape(kv_shape),
                value.reshape(kv_shape),
                slopes,
                spans=spans,
                input_layout="BSND",
                **self.options,
            )
        return self.dropout(out.reshape((batch, length, self.d_model)))
