"""Checks of the model's arguments: one table of rules, one place for the texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import mindspore as ms
import numpy as np

from alibi_kernels import alibi_slopes

SLOPE_KINDS = ("geometric", "paper")
BIASES = ("symmetric", "signed")
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# What passes for a plain type, NumPy's scalars included.
_KINDS: dict[type, Any] = {int: Integral, float: Real, bool: (bool, np.bool_), str: str}


@dataclass(frozen=True)
class Rule:
    """What one argument must be. bool is an int in Python, so it only passes where it is named."""

    plain: type  # what the value is stored as, a key of _KINDS
    accepts: Callable[[Any], bool]
    expected: str
    optional: bool = False  # None passes


def _positive(meaning: str) -> Rule:
    return Rule(int, lambda value: value >= 1, f"an int of at least 1 ({meaning})")


def _flag(meaning: str) -> Rule:
    return Rule(bool, lambda value: True, f"True or False ({meaning})")


def _is_float32(value: Any) -> bool:
    return abs(value) <= _FLOAT32_MAX


RULES = {
    "num_layers": _positive("transformer layers"),
    "d_model": _positive("width of the residual stream"),
    "num_heads": _positive("attention heads"),
    "num_kv_heads": Rule(
        int,
        lambda value: value >= 1,
        "None (as many as num_heads) or an int of at least 1 (key/value heads)",
        optional=True,
    ),
    "max_len": _positive("length the model is trained at"),
    "expansion_factor": _positive("hidden width of the feed-forward block, in units of d_model"),
    "vocab_size": _positive("number of tokens"),
    "dropout": Rule(
        float, lambda value: 0 <= value < 1, "a float in [0, 1) (probability of dropping)"
    ),
    "scale": Rule(
        float,
        _is_float32,
        "None (1/sqrt(d_model)) or a finite float32 number",
        optional=True,
    ),
    "bias": Rule(str, lambda value: value in BIASES, " or ".join(f'"{name}"' for name in BIASES)),
    "causal": _flag("True for a decoder, False for an encoder"),
    "fused": _flag("False runs on plain MindSpore operators"),
    "learned_slopes": _flag("True trains the slopes"),
}


def check(owner: str, **values: Any) -> dict[str, Any]:
    """Returns the values as plain Python numbers, flags and strings.

    TypeError or ValueError for the first that breaks its rule in RULES.
    """
    return {name: _plain(owner, name, value) for name, value in values.items()}


def _plain(owner: str, name: str, value: Any) -> Any:
    rule = RULES[name]
    if value is None and rule.optional:
        return None
    text = f"{owner}: {name} must be {rule.expected}, but got {value!r}"
    misplaced_bool = isinstance(value, bool) and rule.plain is not bool
    if misplaced_bool or not isinstance(value, _KINDS[rule.plain]):
        raise TypeError(f"{text} of type {type(value).__name__}.")
    if not rule.accepts(value):
        raise ValueError(f"{text}.")
    return rule.plain(value)


def check_heads(owner: str, d_model: int, num_heads: int, num_kv_heads: int | None) -> None:
    """Raises ValueError unless d_model splits into num_heads, and num_heads into num_kv_heads."""
    if d_model % num_heads:
        raise ValueError(
            f"{owner}: d_model must be a multiple of num_heads, but got d_model={d_model} and "
            f"num_heads={num_heads}; for this d_model num_heads can be {_divisors(d_model)}."
        )
    if num_kv_heads is not None and num_heads % num_kv_heads:
        raise ValueError(
            f"{owner}: num_heads must be a multiple of num_kv_heads, but got num_heads={num_heads} "
            f"and num_kv_heads={num_kv_heads}; for these heads num_kv_heads can be "
            f"{_divisors(num_heads)}."
        )


def resolve_slopes(owner: str, slopes: str | Sequence[float], num_heads: int) -> tuple[float, ...]:
    """Returns one slope per head for a kind of alibi_slopes or for explicit numbers."""
    kinds = " or ".join(f'"{kind}"' for kind in SLOPE_KINDS)
    text = (
        f"{owner}: slopes must be {kinds}, or a sequence of num_heads={num_heads} finite float32 "
        "numbers"
    )
    if isinstance(slopes, str):
        if slopes not in SLOPE_KINDS:
            raise ValueError(f'{text}, but got "{slopes}".')
        return tuple(float(slope) for slope in alibi_slopes(num_heads, slopes))
    if isinstance(slopes, ms.Parameter):
        raise TypeError(
            f"{text}, but got a Parameter, which would not train here; pass its values, "
            "slopes=parameter.asnumpy(), and learned_slopes=True to have the layer train them."
        )
    try:
        values = tuple(float(slope) for slope in slopes)
    except (TypeError, ValueError):
        raise TypeError(f"{text}, but got {slopes!r}.") from None
    if len(values) != num_heads:
        raise ValueError(f"{text}, but got {len(values)} numbers.")
    if not all(map(_is_float32, values)):
        raise ValueError(f"{text}, but got {values}.")
    return values


@ms.constexpr(check=False)
def differ(shape: Any, other: Any) -> bool:
    """Whether two shapes differ; a constant in graphs, where sizes that are unknown do not."""
    if None in (shape, other):
        return False
    pairs = zip(shape, other, strict=False)
    known = ((a, b) for a, b in pairs if None not in (a, b) and min(a, b) >= 0)
    return len(shape) != len(other) or any(a != b for a, b in known)


@ms.constexpr(check=False)
def is_empty(shape: Any) -> bool:
    """Whether a size is 0; a constant in graphs, where a size that is unknown is not."""
    return shape is not None and 0 in shape


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
