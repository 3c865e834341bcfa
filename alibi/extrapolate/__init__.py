"""Train short, test long: the paper's experiment, small enough for a laptop (arXiv 2108.12409)."""

from alibi.extrapolate.data import load_text, sample_batch, windows
from alibi.extrapolate.perplexity import perplexity
from alibi.extrapolate.sinusoidal import SinusoidalLanguageModel
from alibi.extrapolate.training import TrainingPlan, train

__all__ = [
    "SinusoidalLanguageModel",
    "TrainingPlan",
    "load_text",
    "perplexity",
    "sample_batch",
    "train",
    "windows",
]
