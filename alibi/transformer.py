"""The stack of layers."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn

from alibi.config import ALiBiConfig, check_config
from alibi.layers import ALiBiTransformerLayer


class ALiBiTransformer(nn.Cell):
    """A transformer without position embeddings: ALiBi's distance penalty is all it knows of order.

    With default settings and the same weights its output equals that of jaketae/alibi
    (alibi.load_original loads them). It runs at any length: max_len is no limit, and no buffer of
    positions is stored in the model or its checkpoints.

    Args:
        config: see ALiBiConfig.

    Inputs:
        x: [batch, length, d_model], float32; lower precision through mindspore.amp.
        spans: [batch, 3] int32 or None; see ALiBiAttention.

    Outputs:
        [batch, length, d_model].

    Raises:
        TypeError: config is not an ALiBiConfig.
        ValueError: x is not [batch, length, d_model].

    Supported Platforms:
        As ALiBiAttention.

    Source: arXiv 2108.12409; the structure follows github.com/jaketae/alibi.

    Examples:
        >>> model = ALiBiTransformer(ALiBiConfig())
        >>> model(ops.randn(8, 100, 256)).shape
        (8, 100, 256)
    """

    def __init__(self, config: ALiBiConfig) -> None:
        super().__init__()
        check_config(type(self).__name__, config)
        self.config = config
        self.layers = nn.CellList([ALiBiTransformerLayer(config) for _ in range(config.num_layers)])

    def construct(self, x: ms.Tensor, spans: ms.Tensor | None = None) -> ms.Tensor:
        for layer in self.layers:
            x = layer(x, spans)
        return x
