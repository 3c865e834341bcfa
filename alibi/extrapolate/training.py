"""A training loop small enough to read: Adam, warm-up and cosine decay, one compiled step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn

from alibi.extrapolate.data import sample_batch
from alibi.language_model import ALiBiLanguageModel, cross_entropy


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train. A fixed number of steps, so that runs can be repeated.

    Args:
        steps: optimiser steps.
        length: tokens per sequence.
        batch_size: sequences per step.
        learning_rate: the highest one, reached after warmup steps; it then falls along a cosine.
        warmup: steps of linear rise; 0 begins at the highest rate.
        seed: of the order of the text.
    """

    steps: int
    length: int = 64
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup: int = 50
    seed: int = 0

    def learning_rates(self) -> list[float]:
        """Returns the learning rate of every step."""
        rise = [min(1.0, (step + 1) / max(1, self.warmup)) for step in range(self.steps)]
        fall = [(1 + math.cos(math.pi * step / self.steps)) / 2 for step in range(self.steps)]
        return [self.learning_rate * up * down for up, down in zip(rise, fall, strict=True)]


class TrainingStep(nn.Cell):
    """One step of the optimiser, compiled as a whole; returns the loss.

    Args:
        model: what is trained.
        optimizer: of its parameters.
    """

    def __init__(self, model: ALiBiLanguageModel, optimizer: nn.Optimizer) -> None:
        super().__init__(auto_prefix=False)

        def loss_of(inputs: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
            return cross_entropy(model(inputs), targets)

        self.optimizer = optimizer
        self.loss_and_gradients = ms.value_and_grad(loss_of, None, optimizer.parameters)

    def construct(self, inputs: ms.Tensor, targets: ms.Tensor) -> ms.Tensor:
        loss, gradients = self.loss_and_gradients(inputs, targets)
        self.optimizer(gradients)
        return loss


def train(
    model: ALiBiLanguageModel,
    tokens: np.ndarray,
    plan: TrainingPlan,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains the model in place to predict the next token.

    Args:
        model: ends in evaluation mode.
        tokens: [n] int32, the training text.
        plan: see TrainingPlan.
        report: called after every step with the number of steps done and the step's loss.

    Returns:
        The loss of every step, in nats per token.

    Supported Platforms:
        As ALiBiAttention.
    """
    optimizer = nn.Adam(model.trainable_params(), learning_rate=plan.learning_rates())
    step = TrainingStep(model, optimizer)
    random = np.random.default_rng(plan.seed)
    losses = []
    model.set_train(True)
    for done in range(1, plan.steps + 1):
        inputs, targets = sample_batch(tokens, plan.length, plan.batch_size, random)
        # As a call in GRAPH_MODE, without that mode. Under ms.jit the graph would run on another
        # thread while this one waits for it in a loop.
        loss = step.compile_and_run(ms.Tensor(inputs), ms.Tensor(targets))
        losses.append(float(loss.asnumpy()))
        if report is not None:
            report(done, losses[-1])
    model.set_train(False)
    return losses
