"""The pictures of docs/performance.md: time against length."""

from __future__ import annotations

from pathlib import Path

from tables import NORMS_KEPT, OURS, PRUNED, Row, best_peer

# suite -> the length at which the best peer is chosen, the file, the title, the axis
PLOTS = {
    "growth": (
        "8192",
        "growth.png",
        "Forward, causal, float32, 8 heads, head_dim 64",
        "sequence length",
    ),
    "growth-decode": (
        "32768",
        "decode.png",
        "Decode, float32, 32 heads, head_dim 128",
        "keys in the cache",
    ),
}


def growth_plot(rows: list[Row], names: list[str], path: Path, title: str, axis: str) -> None:
    """Log-log plot of time against length, one line per provider."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name in names:
        points = [r for r in rows if r["provider"] == name and r["median_ms"]]
        if points:
            lengths = [int(r["keys"]) for r in points]
            times = [float(r["median_ms"]) for r in points]
            axes.loglog(lengths, times, marker="o", markersize=4, label=name)
    axes.set(xlabel=axis, ylabel="milliseconds (median)", title=title)
    axes.set_xscale("log", base=2)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(suite: str, rows: list[Row], folder: Path) -> str:
    """Draws ours and the best peer; the name of the file."""
    length, name, title, axis = PLOTS[suite]
    peer = best_peer([r for r in rows if r["keys"] == length])
    ours = [OURS, PRUNED, *([NORMS_KEPT] if suite == "growth-decode" else [])]
    names = [*ours, *([peer["provider"]] if peer else [])]
    growth_plot(rows, names, folder / name, title, axis)
    return name
