"""Loading weights that other implementations trained."""

from alibi.checkpoints.original import load_original

__all__ = ["load_original"]
