"""A progress bar on a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import time

BAR_WIDTH = 30
LINES_ELSEWHERE = 5


class Progress:
    """Shows how far a run of known length is, with its current loss.

    Args:
        label: what runs.
        total: steps.
    """

    def __init__(self, label: str, total: int) -> None:
        self.label = label
        self.total = total
        self.started = time.perf_counter()
        self.terminal = sys.stdout.isatty()
        self.smooth_loss: float | None = None

    def __call__(self, done: int, loss: float) -> None:
        """Shows the state after `done` steps; the loss shown is a running mean."""
        previous = loss if self.smooth_loss is None else self.smooth_loss
        self.smooth_loss = 0.95 * previous + 0.05 * loss
        last = done == self.total
        if not self.terminal and done % max(1, self.total // LINES_ELSEWHERE) and not last:
            return
        filled = BAR_WIDTH * done // self.total
        line = (
            f"{self.label:<12} [{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done}/{self.total} "
            f"steps, {time.perf_counter() - self.started:3.0f} s, loss {self.smooth_loss:.3f}"
        )
        end = "" if self.terminal and not last else "\n"
        print(f"\r{line}" if self.terminal else line, end=end, flush=True)
