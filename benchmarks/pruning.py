"""How much pruning leaves to do, per head, on random inputs and on a trained model.

    python benchmarks/pruning.py

For every head: the share of the causal key tiles that the forward kernel visits, that the backward
visits, and that any rule would have to visit, which knows every score in advance: the tiles before
which the rest of each row's weights adds up to more than 2^-24 of the row. The gap between the
first and the last is the slack of the bound: of most tiles in it the forward computes scores and
reads no values, and the backward computes scores and nothing else. Rows go to
benchmarks/results/<machine>/pruning-<date>-<commit>.csv.

The trained model is the one of `make demo`, trained here at length 64 (about a minute) and read on
held-out text; its queries and keys are taken from the projection of each layer.
"""

from __future__ import annotations

import csv
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import measure
import numpy as np

from alibi_kernels import alibi_slopes, native

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = (2048, 8192)
TILE = 128  # keys, as the kernel counts them
ROWS = 48  # query rows that stop together, with AVX-512
EPSILON = 2.0**-24


def random_heads(length: int) -> Iterator[tuple[str, int, float, np.ndarray, np.ndarray]]:
    """(source, head, slope, q [S, D], k [S, D]): standard normal, 8 heads of 64."""
    rng = np.random.default_rng(0)
    for head, slope in enumerate(alibi_slopes(8)):
        q, k = rng.standard_normal((2, length, 64), dtype=np.float32)
        yield "standard normal", head, slope, q, k


def trained_projections(length: int) -> list[np.ndarray]:
    """Trains the demo's model; what each layer's projection makes of held-out text: [S, 3, H, D]
    in the order key, query, value.
    """
    import mindspore as ms

    from alibi import ALiBiLanguageModel
    from alibi.demo.train_short import FULL, SEED
    from alibi.extrapolate import load_text, train
    from alibi.extrapolate.data import VOCAB_SIZE

    training, held_out = load_text()
    ms.set_seed(SEED)
    model = ALiBiLanguageModel(VOCAB_SIZE, FULL.config)
    train(model, training, FULL.plan)
    shape = (length, 3, FULL.config.num_heads, FULL.config.d_model // FULL.config.num_heads)
    found: list[np.ndarray] = []

    def keep(_: Any, __: Any, projected: Any) -> None:
        found.append(projected.asnumpy().reshape(shape))

    for _, cell in model.cells_and_names():
        if type(cell).__name__ == "ALiBiAttention":
            cell.kqv.register_forward_hook(keep)
    model(ms.Tensor(held_out[None, :length].astype(np.int32)))
    return found


def trained_heads(
    layers: list[np.ndarray], length: int
) -> Iterator[tuple[str, int, float, np.ndarray, np.ndarray]]:
    for layer, projected in enumerate(layers):
        for head, slope in enumerate(alibi_slopes(projected.shape[2])):
            k, q = (np.ascontiguousarray(projected[:length, i, head]) for i in (0, 1))
            yield f"demo model, layer {layer}", head, slope, q, k


def visited(q: np.ndarray, k: np.ndarray, slope: float) -> tuple[float, float]:
    """By the forward and by the backward."""
    stats: dict[str, int] = {}
    x, y = q[None, None], k[None, None]

    def share() -> float:
        return stats["tiles_visited"] / stats["tiles_allowed"]

    out, lse = native.attention_forward(x, y, y, [slope], stats=stats)
    forward = share()
    native.attention_backward(x, y, y, [slope], out, lse, x, stats=stats)
    return forward, share()


def needed(q: np.ndarray, k: np.ndarray, slope: float) -> float:
    """What a rule that knows every score would visit, of the same tiles."""
    length, tiles, allowed = len(q), 0, 0
    for first in range(0, length, ROWS):
        rows = np.arange(first, min(first + ROWS, length))
        keys = np.arange(first)  # left of the diagonal
        scores = q[rows].astype(np.float64) @ k[: rows[-1] + 1].T.astype(np.float64)
        scores *= q.shape[1] ** -0.5
        scores -= slope * (rows[:, None] - np.arange(rows[-1] + 1)[None, :])
        scores[np.arange(rows[-1] + 1)[None, :] > rows[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        tail = np.cumsum(weights, axis=1)  # of all keys up to this one
        matters = (tail[:, keys] > EPSILON * tail[:, -1:]).any(axis=0)
        left = first - int(np.argmax(matters)) if matters.any() else 0
        tiles += 1 - (-left // TILE)
        allowed += 1 - (-first // TILE)
    return tiles / allowed


def main() -> None:
    started = datetime.datetime.now(datetime.timezone.utc)
    layers = trained_projections(max(LENGTHS))
    rows = []
    for length in LENGTHS:
        for source, head, slope, q, k in (*random_heads(length), *trained_heads(layers, length)):
            shares = *visited(q, k, slope), needed(q, k, slope)
            rows.append((source, length, head, f"{slope:.6g}", *(f"{x:.4f}" for x in shares)))
            text = "forward {:6.1%}  backward {:6.1%}  needed {:6.1%}".format(*shares)
            print(f"{source:24s}{length:6d}  slope {slope:9.6f}  {text}", flush=True)
    commit = measure.commit()
    name = f"pruning-{started:%Y-%m-%d-%H%M}-{commit.rstrip('+')}.csv"
    path = RESULTS / measure.machine_slug() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("source", "length", "head", "slope", "forward", "backward", "needed"))
        writer.writerows(rows)
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
