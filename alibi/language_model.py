"""A decoder language model around ALiBiTransformer."""

from __future__ import annotations

import mindspore as ms
from mindspore import nn, ops
from mindspore.common.initializer import Normal

from alibi._checks import check, differ
from alibi.config import ALiBiConfig, check_config
from alibi.layers import NORM_EPSILON
from alibi.norm import LayerNorm
from alibi.transformer import ALiBiTransformer


def cross_entropy(logits: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
    r"""Mean of -log softmax(logits)[target] in float32, over the targets that are not negative.

    Args:
        logits: [..., vocab_size].
        targets: the leading shape of logits, int32. Negative ones, such as -100, do not count.

    Returns:
        A float32 scalar, in nats per token; 0 when no target counts.

    Raises:
        ValueError: targets has another shape.

    Supported Platforms:
        ``CPU`` ``GPU`` ``Ascend``
    """
    if differ(targets.shape, logits.shape[:-1]):
        raise ValueError(
            "cross_entropy: targets must have the shape of logits without its last axis, one "
            f"target per row, but logits.shape = {logits.shape} and targets.shape = "
            f"{targets.shape}."
        )
    log_p = ops.log_softmax(logits.reshape((-1, logits.shape[-1])).astype(ms.float32), -1)
    targets = targets.reshape((-1, 1))
    counts = (targets >= 0).astype(ms.float32)
    picked = ops.gather_d(log_p, 1, ops.maximum(targets, 0))
    return -(picked * counts).sum() / ops.maximum(counts.sum(), 1.0)


class ALiBiLanguageModel(nn.Cell):
    r"""Predicts the next token: embedding, ALiBiTransformer, final norm, tied head.

    .. math:: logits = norm(transformer(\sqrt{d}\, E[ids])) E^T

    The embedding E has standard deviation 1/sqrt(d_model), so that the scaled rows that enter the
    transformer have unit variance and the logits start near unit variance as well.

    Args:
        vocab_size: number of tokens.
        config: a causal ALiBiConfig.

    Inputs:
        ids: [batch, length] int32 token ids.
        labels: [batch, length] int32 or None, usually ids again: the logits at position i are
            compared with labels[i + 1]; negative ones, such as -100, do not count.
        spans: [batch, 3] int32 or None; see ALiBiAttention.

    Outputs:
        The logits, [batch, length, vocab_size]; with labels the mean loss, a float32 scalar.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: vocab_size < 1, config.causal is False, ids is not [batch, length], or labels
            has another shape.

    Supported Platforms:
        As ALiBiAttention.

    Source: arXiv 2108.12409.

    Examples:
        >>> model = ALiBiLanguageModel(256, ALiBiConfig.paper(d_model=64, num_layers=2))
        >>> ids = ops.randint(0, 256, (4, 65)).astype(ms.int32)
        >>> model(ids).shape
        (4, 65, 256)
        >>> loss = model(ids, labels=ids)
    """

    def __init__(self, vocab_size: int, config: ALiBiConfig) -> None:
        super().__init__()
        owner = type(self).__name__
        vocab_size = check(owner, vocab_size=vocab_size)["vocab_size"]
        check_config(owner, config)
        self.transformer = ALiBiTransformer(config)
        if not config.causal:
            raise ValueError(
                f"{owner}: config.causal must be True, but got False; a model that sees the next "
                "token cannot learn to predict it."
            )
        self.config = config
        self.vocab_size = vocab_size
        self.embed_scale = config.d_model**0.5
        self.embedding = nn.Embedding(
            vocab_size, config.d_model, embedding_table=Normal(config.d_model**-0.5)
        )
        self.norm = LayerNorm(config.d_model, NORM_EPSILON, config.fused)

    def construct(
        self,
        ids: ms.Tensor,
        labels: ms.Tensor | None = None,
        spans: ms.Tensor | None = None,
    ) -> ms.Tensor:
        if len(ids.shape) != 2:
            raise ValueError(
                f"ALiBiLanguageModel: ids must have shape [batch, length], but got {ids.shape}."
            )
        if labels is not None and differ(labels.shape, ids.shape):
            raise ValueError(
                "ALiBiLanguageModel: labels must have the shape of ids, one label per token, but "
                f"ids.shape = {ids.shape} and labels.shape = {labels.shape}."
            )
        hidden = self.norm(self.transformer(self.embed(ids), spans))
        logits = ops.dense(hidden, self.embedding.embedding_table.astype(hidden.dtype))
        if labels is None:
            return logits
        return cross_entropy(logits[:, :-1], labels[:, 1:])

    def embed(self, ids: ms.Tensor) -> ms.Tensor:
        """Returns what enters the transformer, [batch, length, d_model]. No positions: ALiBi."""
        return self.embedding(ids) * self.embed_scale
