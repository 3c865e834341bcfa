"""The configuration of the drop-in model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from alibi._checks import check, check_heads, resolve_slopes


@dataclass(frozen=True)
class ALiBiConfig:
    """Sizes and choices of an ALiBiTransformer; the first seven fields are those of jaketae/alibi.

    Args:
        num_layers: transformer layers.
        d_model: width of the residual stream, a multiple of num_heads.
        num_heads: attention heads.
        max_len: the length the model is trained at, in tokens. Not a limit: it runs at any length.
        dropout: probability of dropping, in [0, 1).
        causal: True for a decoder, False for an encoder.
        expansion_factor: hidden width of the feed-forward block in units of d_model.
        scale: factor on the query-key products; None means 1/sqrt(d_model), as in the original.
        slopes: "geometric" (2^(-8i/n) for every n), "paper" (the authors' rule for head counts
            that are not powers of two), or num_heads floats.
        bias: "symmetric", -slope * |p_i - j|, or "signed", slope * (j - p_i). They differ only in
            an encoder; "signed" is what jaketae/alibi computes there.
        num_kv_heads: key/value heads, a divisor of num_heads; None means num_heads.
        learned_slopes: True makes the slopes trained float32 parameters.
        fused: False runs on plain MindSpore operators, with the same parameters.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field is out of range, or two of them do not fit together.

    Source: arXiv 2108.12409.
    """

    num_layers: int = 6
    d_model: int = 256
    num_heads: int = 8
    max_len: int = 256
    dropout: float = 0.1
    causal: bool = True
    expansion_factor: int = 1
    _: KW_ONLY
    scale: float | None = None
    slopes: str | Sequence[float] = "geometric"
    bias: str = "symmetric"
    num_kv_heads: int | None = None
    learned_slopes: bool = False
    fused: bool = True

    def __post_init__(self) -> None:
        owner = type(self).__name__
        values = dict(self.__dict__)
        slopes = values.pop("slopes")
        for name, value in check(owner, **values).items():
            object.__setattr__(self, name, value)
        check_heads(owner, self.d_model, self.num_heads, self.num_kv_heads)
        numbers = resolve_slopes(owner, slopes, self.num_heads)
        if not isinstance(slopes, str):  # a tuple keeps the frozen config hashable
            object.__setattr__(self, "slopes", numbers)

    @classmethod
    def paper(cls, **fields: Any) -> ALiBiConfig:
        """Returns the paper's model: scale 1/sqrt(head_dim), slopes "paper", expansion_factor 4.

        Args:
            fields: any field of ALiBiConfig; these win over the paper's values.
        """
        config = cls(**{"slopes": "paper", "expansion_factor": 4, **fields})
        if config.scale is not None:
            return config
        return replace(config, scale=config.head_dim**-0.5)

    @property
    def head_dim(self) -> int:
        """Width of one attention head, d_model / num_heads."""
        return self.d_model // self.num_heads


def check_config(owner: str, config: Any) -> None:
    """TypeError unless config is an ALiBiConfig."""
    if not isinstance(config, ALiBiConfig):
        raise TypeError(f"{owner}: config must be an ALiBiConfig, but got {type(config).__name__}.")
