"""Real English text that every CPython ships, as bytes: the help topics of pydoc."""

from __future__ import annotations

import numpy as np

VOCAB_SIZE = 256

# One topic in so many is held out. Whole topics, so that no sentence lies on both sides.
HELD_OUT_EVERY = 8


def load_text() -> tuple[np.ndarray, np.ndarray]:
    """Returns (training, held-out) text as int32 byte values, about 400,000 and 90,000 of them.

    The topics are taken in alphabetical order, every eighth one is held out. The text, and so every
    number measured on it, differs a little between Python versions.

    Raises:
        ImportError: this Python was installed without its help topics.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError(
            "this Python has no pydoc_data.topics, the text the experiment reads; use a CPython "
            "with its whole standard library."
        ) from error
    texts = [topics[name] for name in sorted(topics)]
    held_out = texts[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    del texts[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    return _to_bytes(texts), _to_bytes(held_out)


def _check_length(owner: str, tokens: np.ndarray, length: int) -> None:
    if not 1 <= length < len(tokens):
        raise ValueError(
            f"{owner}: length must be at least 1 and below the number of tokens, {len(tokens)}, "
            f"but got {length}."
        )


def sample_batch(
    tokens: np.ndarray, length: int, batch_size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (inputs, targets), both [batch_size, length] int32, from random places of the text.

    Args:
        tokens: [n] int32 with n > length.
        length: tokens per window.
        batch_size: windows.
        random: draws the places.

    Raises:
        ValueError: length is below 1, or the text is shorter than one window and its last target.
    """
    _check_length("sample_batch", tokens, length)
    starts = random.integers(0, len(tokens) - length, batch_size)
    places = starts[:, None] + np.arange(length)
    return tokens[places], tokens[places + 1]


def windows(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (inputs, targets), both [n, length] int32: the text cut into pieces without overlap.

    Every target is predicted once, from the tokens of its own piece. The rest at the end that does
    not fill a piece is left out.

    Args:
        tokens: [n] int32.
        length: tokens per window.

    Raises:
        ValueError: length is below 1, or the text is shorter than one window and its last target.
    """
    _check_length("windows", tokens, length)
    count = (len(tokens) - 1) // length
    used = count * length
    return tokens[:used].reshape(count, length), tokens[1 : used + 1].reshape(count, length)


def _to_bytes(texts: list[str]) -> np.ndarray:
    return np.frombuffer("\n\n".join(texts).encode(), np.uint8).astype(np.int32)
