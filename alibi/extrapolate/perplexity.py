"""Perplexity at any length."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np

from alibi.extrapolate.data import windows
from alibi.language_model import ALiBiLanguageModel, cross_entropy

# Tokens per call. Constant, so that every length does about the same work at a time.
TOKENS_PER_CALL = 4096


def perplexity(model: ALiBiLanguageModel, tokens: np.ndarray, length: int) -> float:
    """Returns exp(mean loss) of the text read in pieces of `length` tokens without overlap.

    Long pieces have an advantage that is no merit of the model: fewer targets stand near the start
    of a piece, where little has been seen yet (appendix B of the paper).

    Args:
        model: is put in evaluation mode.
        tokens: [n] int32 with n > length.
        length: tokens per piece.

    Returns:
        The perplexity per token.

    Raises:
        ValueError: the text is shorter than one piece.

    Supported Platforms:
        As ALiBiAttention.

    Source: arXiv 2108.12409, nonoverlapping evaluation.
    """
    inputs, targets = windows(tokens, length)
    model.set_train(False)

    @ms.jit
    def mean_loss(ids: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
        return cross_entropy(model(ids), labels)

    rows = min(len(inputs), max(1, TOKENS_PER_CALL // length))
    total = 0.0
    for start in range(0, len(inputs), rows):
        ids, labels = inputs[start : start + rows], targets[start : start + rows]
        total += float(mean_loss(ms.Tensor(ids), ms.Tensor(labels)).asnumpy()) * ids.size
    return math.exp(total / inputs.size)
