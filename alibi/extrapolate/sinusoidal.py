"""The baseline that does not extrapolate: the same model with sinusoidal position embeddings."""

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import ops

from alibi.config import ALiBiConfig, check_config
from alibi.language_model import ALiBiLanguageModel


class SinusoidalLanguageModel(ALiBiLanguageModel):
    r"""ALiBiLanguageModel with every slope 0 and positions added to the embedding instead.

    .. math:: E_{p, 2i} = \sin(p\, 10000^{-2i/d}), \quad E_{p, 2i+1} = \cos(p\, 10000^{-2i/d})

    (sines in the first half of the features, cosines in the second: the order does not matter to a
    model that learns from it.)

    Args:
        vocab_size: number of tokens.
        config: as for ALiBiLanguageModel, with an even d_model; its slopes are ignored.

    Inputs, Outputs:
        As ALiBiLanguageModel.

    Raises:
        ValueError: d_model is odd.

    Supported Platforms:
        As ALiBiAttention.

    Source: arXiv 1706.03762; the baseline of arXiv 2108.12409.
    """

    def __init__(self, vocab_size: int, config: ALiBiConfig) -> None:
        check_config(type(self).__name__, config)
        if config.d_model % 2:
            raise ValueError(
                f"SinusoidalLanguageModel: config.d_model must be even, but got {config.d_model}; "
                "half of the features are sines, half cosines."
            )
        super().__init__(vocab_size, replace(config, slopes=(0.0,) * config.num_heads))
        exponents = np.arange(0, config.d_model, 2) / config.d_model
        self.frequencies = ms.Tensor(10000.0**-exponents, ms.float32)

    def embed(self, ids: ms.Tensor) -> ms.Tensor:
        """Returns the scaled embeddings plus their positions, [batch, length, d_model]."""
        position = ops.arange(ids.shape[1]).astype(ms.float32).reshape((-1, 1))
        angles = position * self.frequencies
        positions = ops.concat((ops.sin(angles), ops.cos(angles)), axis=1)
        return super().embed(ids) + positions
