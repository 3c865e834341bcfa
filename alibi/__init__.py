"""ALiBi transformers for MindSpore on fused attention kernels (arXiv 2108.12409)."""

from alibi.attention import ALiBiAttention
from alibi.checkpoints import load_original
from alibi.config import ALiBiConfig
from alibi.language_model import ALiBiLanguageModel
from alibi.layers import ALiBiTransformerLayer, FeedForward
from alibi.transformer import ALiBiTransformer

__all__ = [
    "ALiBiAttention",
    "ALiBiConfig",
    "ALiBiLanguageModel",
    "ALiBiTransformer",
    "ALiBiTransformerLayer",
    "FeedForward",
    "load_original",
]
