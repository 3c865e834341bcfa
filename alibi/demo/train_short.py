"""Train short, test long, on real text: ALiBi against sinusoidal positions (arXiv 2108.12409)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mindspore as ms

from alibi import ALiBiConfig, ALiBiLanguageModel
from alibi.demo.progress import Progress
from alibi.demo.table import Table
from alibi.extrapolate import (
    SinusoidalLanguageModel,
    TrainingPlan,
    load_text,
    perplexity,
    train,
)
from alibi.extrapolate.data import VOCAB_SIZE

MODELS = {"ALiBi": ALiBiLanguageModel, "sinusoidal": SinusoidalLanguageModel}
SEED = 1


@dataclass(frozen=True)
class Experiment:
    """Everything that the numbers depend on, besides the text.

    Args:
        config: of both models.
        plan: of both trainings; steps are a number, not a time, so that runs can be repeated.
        multiples: tested lengths in units of the training length.
        held_out: how many bytes of held-out text are read at every length.
    """

    config: ALiBiConfig
    plan: TrainingPlan
    multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    held_out: int = 32768


# Small enough for about a minute of training on two cores, hence also the narrow feed-forward
# block and, as nothing is seen more than a few times, no dropout.
FULL = Experiment(
    ALiBiConfig.paper(
        num_layers=3, d_model=64, num_heads=4, max_len=64, dropout=0.0, expansion_factor=2
    ),
    TrainingPlan(steps=700, length=64, batch_size=32, learning_rate=5e-3, seed=SEED),
)
QUICK = Experiment(
    replace(FULL.config, num_layers=1, d_model=16, expansion_factor=1),
    replace(FULL.plan, steps=8, batch_size=4, warmup=2),
    multiples=(1, 2),
    held_out=1024,
)


def show(out: Path, quick: bool) -> Table:
    """Trains both models, prints and returns the perplexities, draws out/extrapolation.png."""
    experiment = QUICK if quick else FULL
    length = experiment.plan.length
    lengths = [length * multiple for multiple in experiment.multiples]
    print(
        "Train short, test long\n\n"
        f"Two byte-level models learn from Python's help pages in pieces of {length} bytes and are "
        f"tested on held-out pages\nin pieces of up to {lengths[-1]} bytes.",
        flush=True,
    )
    curves = {name: _run(name, experiment, lengths) for name in MODELS}
    table = Table(
        f"Perplexity per byte of held-out text, in pieces without overlap, trained at length "
        f"{length}.",
        ("tested at", *MODELS),
    )
    for i, tested in enumerate(lengths):
        cells = (f"{curve[i]:.2f}" for curve in curves.values())
        table.add(f"{tested} ({experiment.multiples[i]}x)", *cells)
    print(f"\n{table.text()}\n", flush=True)
    draw(out / "extrapolation.png", lengths, curves)
    return table


def _run(name: str, experiment: Experiment, lengths: list[int]) -> list[float]:
    """The perplexity of one freshly trained model at every length."""
    training, held_out = load_text()
    ms.set_seed(SEED)
    model = MODELS[name](VOCAB_SIZE, experiment.config)
    train(model, training, experiment.plan, Progress(name, experiment.plan.steps))
    text = held_out[: experiment.held_out + 1]
    return [perplexity(model, text, length) for length in lengths]


def draw(path: Path, lengths: list[int], curves: dict[str, list[float]]) -> None:
    """Draws perplexity against tested length; without matplotlib it says so and draws nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No plot: matplotlib is not installed (pip install matplotlib).")
        return
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    styles = {"ALiBi": ("#0b6e4f", "o"), "sinusoidal": ("#c1440e", "s")}
    for name, values in curves.items():
        color, marker = styles[name]
        axes.plot(lengths, values, color=color, marker=marker, linewidth=2)
        last_point = (lengths[-1], values[-1])
        beside: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(name, last_point, color=color, **beside)
    axes.axvline(lengths[0], color="0.6", linestyle=":", linewidth=1)
    axes.annotate(
        "training length",
        (lengths[0], 1),
        xycoords=("data", "axes fraction"),
        xytext=(5, -12),
        textcoords="offset points",
        color="0.4",
        fontsize=9,
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.set_xlim(right=lengths[-1] * 1.9)
    axes.set_xlabel("tested length (bytes)")
    axes.set_ylabel("perplexity per byte (lower is better)")
    axes.set_title(f"Trained at length {lengths[0]}, tested on held-out text")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    figure.savefig(path)
