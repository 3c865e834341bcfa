"""The feed-forward block and the pre-norm layer."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn

from alibi.attention import ALiBiAttention
from alibi.config import ALiBiConfig, check_config
from alibi.norm import Dense, DenseGelu, LayerNorm

# PyTorch's default, which the original's weights were trained with; MindSpore's own is 1e-7.
NORM_EPSILON = 1e-5


class FeedForward(nn.Cell):
    r"""Two dense layers with an exact GELU between them: dropout(W_2 gelu(W_1 x + b_1) + b_2).

    Args:
        config: d_model, expansion_factor, dropout and fused are used.

    Inputs:
        x: [..., d_model].

    Outputs:
        [..., d_model].

    Raises:
        TypeError: config is no ALiBiConfig.

    Supported Platforms:
        ``CPU`` ``GPU`` ``Ascend``

    Source: arXiv 1706.03762, with the GELU of arXiv 1606.08415, as in github.com/jaketae/alibi.
    """

    def __init__(self, config: ALiBiConfig) -> None:
        super().__init__()
        check_config(type(self).__name__, config)
        hidden = config.d_model * config.expansion_factor
        self.fc1 = DenseGelu(config.d_model, hidden, config.fused)
        self.fc2 = Dense(hidden, config.d_model, config.fused)
        self.dropout = nn.Dropout(p=config.dropout)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.dropout(self.fc2(self.fc1(x)))


class ALiBiTransformerLayer(nn.Cell):
    r"""One pre-norm layer: h = x + attn(attn_norm(x)), then h + ffn(ffn_norm(h)).

    Args:
        config: see ALiBiConfig.

    Inputs:
        x: [batch, length, d_model], any length.
        spans: [batch, 3] int32 or None; see ALiBiAttention.

    Outputs:
        [batch, length, d_model].

    Raises:
        TypeError: config is no ALiBiConfig.

    Supported Platforms:
        As ALiBiAttention.

    Source: arXiv 2108.12409; the order of norms and sums follows github.com/jaketae/alibi.
    """

    def __init__(self, config: ALiBiConfig) -> None:
        super().__init__()
        check_config(type(self).__name__, config)
        self.attn_norm = LayerNorm(config.d_model, NORM_EPSILON, config.fused)
        self.attn = ALiBiAttention.from_config(config)
        self.ffn_norm = LayerNorm(config.d_model, NORM_EPSILON, config.fused)
        self.ffn = FeedForward(config)

    def construct(self, x: ms.Tensor, spans: ms.Tensor | None = None) -> ms.Tensor:
        x = x + self.attn(self.attn_norm(x), spans)
        return x + self.ffn(self.ffn_norm(x))
