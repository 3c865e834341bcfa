"""Turns one CSV of run.py into docs/performance.md and its plots. Nothing is typed by hand.

python benchmarks/report.py [benchmarks/results/<machine>/<run>.csv]      default: the newest
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from layouts import BNSD
from models import FUSED, KERNEL, LAYER, PRODUCTS
from overhead import EAGER, GRAPH

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "performance.md"
IMAGES = REPOSITORY / "docs" / "images"

Row = dict[str, str]
OURS = "alibi-kernels dense"
PRUNED = "alibi-kernels pruned"

TITLES = {
    "forward": "Forward, causal, float32",
    "forward-full": "Forward, not causal, float32",
    "forward-bfloat16": "Forward, causal, bfloat16",
    "forward-float16": "Forward, causal, float16",
    "training": "Forward and backward, causal, float32",
    "training-bfloat16": "Forward and backward, causal, bfloat16",
    "decode": "Decode: one query against a cache of S keys, 32 heads, head_dim 128",
    "threads": "One and two threads",
    "small": "A problem of microseconds",
}


def newest() -> Path:
    runs = sorted(RESULTS.glob("*/*.csv"), key=lambda p: p.stem)
    if not runs:
        sys.exit("no results yet: run `make bench` first")
    return runs[-1]


def column(row: Row) -> str:
    """Head of a table column: the sizes of a case."""
    if row["mode"] == "decode":
        return f"{row['dtype']} S={row['keys']}"
    sizes = f"({row['batch']},{row['heads']},{row['queries']},{row['head_dim']})"
    return f"{row['mode']} {sizes} t={row['threads']}" if row["suite"] == "threads" else sizes


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def cell(row: Row | None) -> str:
    if row is None or not row["median_ms"]:
        return "-"
    return f"{float(row['median_ms']):.4g} ({100 * float(row['fraction_of_floor']):.0f}%)"


def best_peer(rows: list[Row]) -> Row | None:
    timed = [r for r in rows if r["kind"] == "peer" and r["median_ms"]]
    return min(timed, key=lambda r: float(r["median_ms"]), default=None)


def ratio(rows: list[Row], name: str) -> str:
    """How many times faster `name` is than the best peer of the column."""
    ours = next((r for r in rows if r["provider"] == name and r["median_ms"]), None)
    peer = best_peer(rows)
    if ours is None or peer is None:
        return "-"
    return f"**{float(peer['median_ms']) / float(ours['median_ms']):.2f}x**"


def table(rows: list[Row]) -> list[str]:
    """Median milliseconds (fraction of the floor) by provider and case, ours against the best peer
    below.
    """
    columns = unique(r["case"] for r in rows)
    by_case = {c: [r for r in rows if r["case"] == c] for c in columns}
    heads = [column(by_case[c][0]) for c in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    floors = [next((r["floor_ms"] for r in by_case[c] if r["floor_ms"]), "-") for c in columns]
    lines.append("| floor | " + " | ".join(floors) + " |")
    for name in unique(r["provider"] for r in rows):
        found = [next((r for r in by_case[c] if r["provider"] == name), None) for c in columns]
        if any(r is not None and r["median_ms"] for r in found):
            lines.append(f"| {name} | " + " | ".join(cell(r) for r in found) + " |")
    for name, label in ((OURS, "dense"), (PRUNED, "pruned")):
        ratios = [ratio(by_case[c], name) for c in columns]
        if any(r != "-" for r in ratios):
            lines.append(f"| best peer / {label} | " + " | ".join(ratios) + " |")
    return lines


def absences(rows: list[Row]) -> list[str]:
    """One line per provider and reason for every cell that holds no time."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["status"] != "ok":
            key = (row["provider"], row["status"])
            reasons[key] = reasons.get(key, 0) + 1
    return [f"- {name}: {status} ({count} cases)" for (name, status), count in reasons.items()]


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


def plots(rows: list[Row]) -> list[str]:
    lines = []
    growth = [r for r in rows if r["suite"] == "growth"]
    decode = [r for r in rows if r["suite"] == "growth-decode"]
    if growth:
        peer = best_peer([r for r in growth if r["queries"] == "8192"])
        names = [OURS, PRUNED] + ([peer["provider"]] if peer else [])
        title = "Forward, causal, float32, 8 heads, head_dim 64"
        growth_plot(growth, names, IMAGES / "growth.png", title, "sequence length")
        lines += ["## Growth with the length", "", "![growth](images/growth.png)", ""]
    if decode:
        peer = best_peer([r for r in decode if r["keys"] == "32768"])
        names = [OURS, PRUNED] + ([peer["provider"]] if peer else [])
        title = "Decode, float32, 32 heads, head_dim 128"
        growth_plot(decode, names, IMAGES / "decode.png", title, "keys in the cache")
        lines += ["## Decode against the cache length", "", "![decode](images/decode.png)", ""]
    return lines


def grid(corner: str, columns: list[str], lines: dict[str, list[str]]) -> list[str]:
    """A table: its lines by their heads."""
    head = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return [*head, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines.items())]


def lookup(rows: list[Row]) -> dict[tuple[str, str], Row]:
    """(case, provider) -> the row, if it was timed."""
    return {(r["case"], r["provider"]): r for r in rows if r["median_ms"]}


def model_section(rows: list[Row]) -> list[str]:
    """Tokens per second and memory of whole models, and how far the fused one is from its peers."""
    found, cases = lookup(rows), unique(r["case"] for r in rows)
    lines = {}
    for name in unique(r["provider"] for r in rows):
        timed = [found.get((c, name)) for c in cases]
        lines[name] = [
            f"{float(r['tokens_per_s']):,.0f} ({r['peak_extra_mb'] or '-'} MB)" if r else "-"
            for r in timed
        ]
    by_case = [[r for r in rows if r["case"] == c] for c in cases]
    lines["best peer / fused"] = [ratio(part, FUSED) for part in by_case]
    return [
        "Tokens per second (peak extra memory in a fresh process). A training step is forward,",
        "loss and all gradients, without the optimizer's step; dropout is off, so that outputs and",
        "gradients could be compared with float64. The peers are the same model in PyTorch.",
        "",
        *grid("", [model_name(part[0]) for part in by_case], lines),
    ]


def model_name(row: Row) -> str:
    width = int(row["heads"]) * int(row["head_dim"])
    what = "training" if row["mode"] == "training" else "inference"
    sizes = f"d_model {width}, batch {row['batch']}, length {row['queries']}"
    return f"{what}, {row['layers']} layers, {sizes}"


def layer_section(rows: list[Row]) -> list[str]:
    """One layer against what it cannot do without."""
    found, lines = lookup(rows), {}
    for case in unique(r["case"] for r in rows):
        parts = [found.get((case, name)) for name in (LAYER, PRODUCTS, KERNEL)]
        whole, products, kernel = (float(r["median_ms"]) if r else 0.0 for r in parts)
        share = f"{whole / (products + kernel):.2f}" if all(parts) else "-"
        name = model_name(next(r for r in rows if r["case"] == case))
        lines[name] = [*(f"{t:.4g}" if t else "-" for t in (whole, products, kernel)), share]
    columns = ["layer", "its matrix products", "its attention kernel", "layer / sum of both"]
    text = "Milliseconds; the rest of a layer is norms, GELU and residuals."
    return [text, "", *grid("", columns, lines)]


def layouts_section(rows: list[Row]) -> list[str]:
    """Each layout against BNSD."""
    found, cases = lookup(rows), unique(r["case"] for r in rows)

    def against(case: str, name: str) -> str:
        row, base = found.get((case, name)), found.get((case, BNSD))
        if row is None or base is None:
            return "-"
        relative = float(row["median_ms"]) / float(base["median_ms"])
        return f"{row['median_ms']} ({relative:.2f})"

    lines = {}
    for case in cases:
        row = next(r for r in rows if r["case"] == case)
        lines[f"{row['mode']} {column(row)}"] = [
            against(case, name) for name in unique(r["provider"] for r in rows)
        ]
    columns = unique(r["provider"] for r in rows)
    return ["Milliseconds (relative to BNSD), dense, float32.", "", *grid("", columns, lines)]


def overhead_section(rows: list[Row]) -> list[str]:
    """Microseconds per call, by what is called and from where."""
    times = {r["provider"]: f"{1e3 * float(r['median_ms']):,.1f}" for r in rows if r["median_ms"]}
    names = [r["provider"].removesuffix(f", {EAGER}").removesuffix(f", {GRAPH}") for r in rows]
    lines = {
        step: [
            times.get(f"{step}, {EAGER}") or times.get(step, "-"),
            times.get(f"{step}, {GRAPH}", "-"),
        ]
        for step in unique(names)
    }
    text = (
        f"Microseconds per call at {column(rows[0])}, calls in a row; the work itself takes a few."
    )
    return [text, "", *grid("", ["called from Python", "as a node of a graph"], lines)]


SECTIONS: dict[str, tuple[str, Callable[[list[Row]], list[str]]]] = {
    "models": ("Whole models", model_section),
    "layer": ("One transformer layer", layer_section),
    "layouts": ("Memory layouts", layouts_section),
    "overhead": ("Cost of a call", overhead_section),
}


def memory_table(rows: list[Row]) -> list[str]:
    memory = [r for r in rows if r["suite"] == "memory"]
    if not memory:
        return []
    lines = [
        "## Peak extra memory",
        "",
        f"One forward of {column(memory[0])} in a fresh process.",
        "",
    ]
    lines += ["| | MB |", "|---|---|"]
    lines += [f"| {r['provider']} | {r['peak_extra_mb'] or r['status']} |" for r in memory]
    return [*lines, ""]


def page(path: Path) -> str:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    meta = json.loads(path.with_suffix(".json").read_text())
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
    facts = meta["machine"]
    ceilings = meta["ceilings"].values()
    peak = {k: max((c[k] for c in ceilings), default=0) for k in ("fma", "bf16", "bandwidth")}
    lines = [
        "# Performance",
        "",
        "<!-- written by benchmarks/report.py; do not edit -->",
        "",
        f"Raw data: `{path.relative_to(REPOSITORY)}`, measured on commit `{meta['commit']}`.",
        f"Machine: {facts['cpu']} (family {facts['family']}), {facts['cores']} cores. {versions}.",
        "",
        f"Ceilings in the same run: float32 FMA {peak['fma']:.0f} GFLOP/s, bfloat16 dot products "
        f"{peak['bf16']:.0f} GFLOP/s, memory {peak['bandwidth']:.0f} GB/s.",
        "",
        "Cells: median milliseconds (share of the floor). The floor is the dense work at the",
        "ceiling of its unit: 4 B H S S D floating-point operations forward, 14 with the backward,",
        "half of it when causal; for decode the bytes of K and V. Pruned rows do less work than",
        "the floor counts, so they may pass 100%. Every result was compared with float64 before it",
        "was timed; providers take turns call by call, so the ratios in a column carry over to",
        "other machines.",
        "",
    ]
    for suite, title in TITLES.items():
        part = [r for r in rows if r["suite"] == suite]
        if part:
            lines += [f"## {title}", "", *table(part), ""]
    lines += plots(rows) + memory_table(rows)
    for suite, (title, section) in SECTIONS.items():
        part = [r for r in rows if r["suite"] == suite]
        if part:
            lines += [f"## {title}", "", *section(part), ""]
    lines += ["## Not measured, and why", "", *absences(rows), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", nargs="?", type=Path, help="default: the newest run")
    path = (parser.parse_args().csv or newest()).resolve()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(path))
    print(f"written: {PAGE.relative_to(REPOSITORY)} from {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
