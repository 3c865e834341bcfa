"""What the peers share: the dense bias that some of them need, and what each cannot do."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from cases import DECODE, FORWARD, TRAINING, Case

INFERENCE = (FORWARD, DECODE)
# Gigabytes of scores that an operator by operator peer is given: 1, but torch has no fast float16.
_MOST_SCORES = {"float16": 0.3}


def first_position(case: Case) -> int:
    """Position of query row 0: queries are aligned to the end of the keys."""
    return case.keys - case.queries


@lru_cache(maxsize=1)
def dense_bias(case: Case) -> np.ndarray:
    """[1, H, Sq, Sk] float32: the ALiBi bias, -inf where the mask forbids; [B, H, Sq, Sk] where
    padding makes the batch items differ.

    One array for all peers that want it, because at long lengths it is gigabytes; none writes it.
    """
    rows = np.arange(case.queries, dtype=np.float32)[:, None] + first_position(case)
    distance = np.arange(case.keys, dtype=np.float32)[None, :] - rows
    bias = -case.slopes[:, None, None].astype(np.float32) * np.abs(distance)
    if case.causal:
        bias = np.where(distance > 0, np.float32(-np.inf), bias)
    if case.lengths is None:
        return bias[None].astype(np.float32, copy=False)
    bias = np.repeat(bias[None], case.batch, axis=0)
    for item, length in enumerate(case.lengths):
        bias[item, :, :, length:] = -np.inf
    return bias


@lru_cache(maxsize=1)
def forget_compiled(case: Case) -> None:
    """Lets torch forget what it has compiled, once per case: once per provider, those prepared
    before would have to compile again, while they are timed.
    """
    import torch

    torch._dynamo.reset()


def bias_gigabytes(case: Case) -> float:
    return case.heads * case.queries * case.keys * 4e-9


def limits(
    case: Case,
    modes: tuple[str, ...] = (FORWARD, TRAINING, DECODE),
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16"),
    full: bool = True,
    needs_bias: bool = False,
    scores: bool = False,
    grouped: bool = True,
    padded: bool = True,
) -> list[str]:
    reasons = []
    if case.lengths is not None and not padded:
        reasons.append("padding would need a mask besides")
    if case.group > 1 and not grouped:
        reasons.append("each query head needs key heads of its own")
    if case.mode not in modes:
        reasons.append(f"no {case.mode}")
    if case.dtype not in dtypes:
        reasons.append(f"no {case.dtype}")
    if not case.causal and not full:
        reasons.append("the symmetric bias is no product of a row and a column")
    if needs_bias and bias_gigabytes(case) > 5:
        reasons.append(f"the bias alone would need {math.ceil(bias_gigabytes(case))} GB")
    score_gigabytes = case.batch * bias_gigabytes(case)
    if scores and score_gigabytes > _MOST_SCORES.get(case.dtype, 1.0):
        reasons.append(
            f"the scores in memory ({score_gigabytes:.1f} GB a copy) take seconds a call"
        )
    return reasons
