"""Turns one CSV of run.py into docs/performance.md and its plots. Nothing is typed by hand.

python benchmarks/report.py [benchmarks/results/<machine>/<run>.csv]      default: the newest
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import plots
import targets
from layouts import BNSD
from models import FUSED, KERNEL, LAYER, LAYER_UNDER_JIT, PRODUCTS
from overhead import EAGER, GRAPH
from tables import (
    FEW_SAMPLES,
    FLOOR,
    NORMS_KEPT,
    OURS,
    PRUNED,
    Row,
    by_case,
    column,
    grid,
    over_best_peer,
    unique,
)

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGE = REPOSITORY / "docs" / "performance.md"
IMAGES = REPOSITORY / "docs" / "images"
README = REPOSITORY / "README.md"
README_SECTION = re.compile(r"(<!-- benchmarks:begin -->\n).*?(<!-- benchmarks:end -->)", re.DOTALL)

TITLES = {
    "forward": "Forward, causal, float32",
    "forward-full": "Forward, not causal, float32",
    "forward-bfloat16": "Forward, causal, bfloat16",
    "forward-float16": "Forward, causal, float16",
    "training": "Forward and backward, causal, float32",
    "training-bfloat16": "Forward and backward, causal, bfloat16",
    "decode": "Decode: one query against a cache of S keys, 32 heads, head_dim 128",
    "decode-grouped": "Decode, grouped: 32 query heads over 8 key heads, head_dim 128",
    "grouped": "Query heads that share key heads",
    "padded": "Padded batches",
    "threads": "One and two threads",
    "small": "A problem of microseconds",
    "growth": "Growth with the length: forward, causal, float32",
    "growth-decode": "Decode against the cache length: 32 heads, head_dim 128",
}

NOTES = {
    "grouped": "16/1: 16 query heads over one key head.",
    "padded": (
        "Each item is padded behind its tokens; of (8,8,512,64) 56% are real, of (4,16,1024,64) "
        "63%. The floor is the work of the tokens alone, which OpenVINO's PagedAttention is given "
        "without padding; the others compute the rows of padding, too. Our pruned backward does "
        "not, as no gradient reaches them."
    ),
}
README_SUITES = [
    name
    for name in TITLES
    if name.startswith(("forward", "training", "decode", "grouped", "padded"))
]

TARGETS_TEXT = (
    "Computed from the raw data by `benchmarks/targets.py`. Dense kernels read every key, as the "
    "peers do; values that miss are bold."
)


def runs(results: Path) -> list[Path]:
    """Of all machines, the newest last. Other programs' tables lie beside them."""
    return sorted(results.glob("*/????-??-??-*.csv"), key=lambda p: p.stem)


def newest() -> Path:
    if not runs(RESULTS):
        sys.exit("no results yet: run `make bench` first")
    return runs(RESULTS)[-1]


def elsewhere(path: Path) -> list[str]:
    """The targets on every other machine, by its newest run."""
    lines = []
    for run in {run.parent: run for run in runs(path.parent.parent)}.values():
        if run.parent == path.parent:
            continue
        commit = json.loads(run.with_suffix(".json").read_text())["commit"]
        text = f"From `{run.relative_to(REPOSITORY)}`, measured on commit `{commit}`."
        lines += [f"## Targets on {run.parent.name}", "", text, ""]
        lines += [*targets.section(read(run)), ""]
    return lines


def cell(row: Row | None) -> str:
    if row is None or not row["median_ms"]:
        return "-"
    few = "\\*" if int(row["samples"]) < FEW_SAMPLES else ""
    return f"{float(row['median_ms']):.4g}{few} ({100 * float(row['fraction_of_floor']):.0f}%)"


def ratio(rows: list[Row], name: str) -> str:
    times = over_best_peer(rows, name)
    return "-" if times is None else f"**{times:.2f}x**"


def table(rows: list[Row]) -> list[str]:
    """Median milliseconds (fraction of the floor) by provider and case, ours against the best peer
    below.
    """
    cases = list(by_case(rows).values())
    floors = [next((r["floor_ms"] for r in case if r["floor_ms"]), "-") for case in cases]
    lines = {"floor": floors}
    for name in unique(r["provider"] for r in rows if r["provider"] != FLOOR):
        found = [next((r for r in case if r["provider"] == name), None) for case in cases]
        if any(r is not None and r["median_ms"] for r in found):
            lines[name] = [cell(r) for r in found]
    for name, label in ((OURS, "dense"), (PRUNED, "pruned"), (NORMS_KEPT, "norms kept")):
        ratios = [ratio(case, name) for case in cases]
        if any(r != "-" for r in ratios):
            lines[f"best peer / {label}"] = ratios
    return grid("", [column(case[0]) for case in cases], lines)


def absences(rows: list[Row]) -> list[str]:
    """One line per provider and reason for every cell that holds no time."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["status"] != "ok":
            key = (row["provider"], row["status"])
            reasons[key] = reasons.get(key, 0) + 1
    return [
        f"- {name}: {status} ({count} case{'s' if count > 1 else ''})"
        for (name, status), count in reasons.items()
    ]


def plot(suite: str, rows: list[Row]) -> list[str]:
    """Draws ours and the best peer, and shows the picture."""
    return [f"![{suite}](images/{plots.draw(suite, rows, IMAGES)})", ""]


def lookup(rows: list[Row]) -> dict[tuple[str, str], Row]:
    """(case, provider) -> the row, if it was timed."""
    return {(r["case"], r["provider"]): r for r in rows if r["median_ms"]}


def model_section(rows: list[Row]) -> list[str]:
    """Tokens per second and memory of whole models, and how far the fused one is from its peers."""
    found, cases = lookup(rows), unique(r["case"] for r in rows)

    def both(row: Row | None) -> str:
        if row is None:
            return "-"
        memory = f"{row['peak_extra_mb']} MB" if row["peak_extra_mb"] else row["status"]
        return f"{float(row['tokens_per_s']):,.0f} ({memory})"

    lines = {}
    for name in unique(r["provider"] for r in rows):
        lines[name] = [both(found.get((c, name))) for c in cases]
    parts = list(by_case(rows).values())
    lines["best peer / fused"] = [ratio(part, FUSED) for part in parts]
    return [
        "Tokens per second (peak extra memory in a fresh process). A training step is forward,",
        "loss and all gradients, without the optimizer's step; dropout is off, so that outputs and",
        "gradients could be compared with float64. The peers are the same model in PyTorch.",
        "",
        *grid("", [model_name(part[0]) for part in parts], lines),
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
        jit = found.get((case, LAYER_UNDER_JIT))
        under_jit = f"{float(jit['median_ms']):.4g}" if jit else "-"
        times = (f"{t:.4g}" if t else "-" for t in (whole, products, kernel))
        lines[name] = [*times, share, under_jit]
    columns = ["layer", "its matrix products", "its attention kernel", "layer / sum of both"]
    columns += ["layer under ms.jit"]
    text = "Milliseconds; the rest of a layer is norms, GELU and residuals. Layer and products are"
    more = "Cells in GRAPH_MODE; under `ms.jit` the caller waits in a loop for another thread. In"
    last = "training all of them start from the gradient of their output: there is no loss."
    return [text, more, last, "", *grid("", columns, lines)]


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
    text = "Milliseconds (relative to BNSD), dense, float32. The spans say that nothing is padding."
    return [text, "", *grid("", columns, lines)]


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
        f"One forward of {column(memory[0])} in a fresh process. What is prepared once, such as a",
        "dense bias, is not counted.",
        "",
    ]
    lines += ["| | MB |", "|---|---|"]
    lines += [f"| {r['provider']} | {r['peak_extra_mb'] or r['status']} |" for r in memory]
    return [*lines, ""]


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def page(path: Path) -> str:
    rows = read(path)
    meta = json.loads(path.with_suffix(".json").read_text())
    versions = ", ".join(f"{k} {v}" for k, v in meta["versions"].items())
    facts = meta["machine"]
    ceilings = meta["ceilings"].values()
    units = ("fma", "bf16", "exp", "bandwidth")
    peak = {k: max((c.get(k, 0) for c in ceilings), default=0) for k in units}
    lines = [
        "# Performance",
        "",
        "<!-- written by benchmarks/report.py; do not edit -->",
        "",
        f"Raw data: `{path.relative_to(REPOSITORY)}`, measured on commit `{meta['commit']}`.",
        f"Machine: {facts['cpu']} (family {facts['family']}), {facts['cores']} cores. {versions}.",
        "What a GPU showed is in [performance-gpu.md](performance-gpu.md).",
        "",
        *(f"- Remark: {remark}" for remark in meta.get("remarks", [])),
        "",
        f"Ceilings in the same run: float32 FMA {peak['fma']:.0f} GFLOP/s, bfloat16 dot products "
        f"{peak['bf16']:.0f} GFLOP/s, 2^x in float32 {peak['exp']:.0f} G/s, memory "
        f"{peak['bandwidth']:.0f} GB/s.",
        "",
        "Cells: median milliseconds (share of the floor). The floor is the multiply-adds of the",
        "dense work alone, 4 B H S S D floating-point operations forward, 14 with the backward,",
        "half of it when causal, done from registers by as many threads (below a millisecond",
        "waking them shows); for decode, a plain read of K and V. It takes turns with the rows;",
        "where it does not, it follows from the ceilings around the case. Pruned rows do less",
        "work than the floor counts, and may pass 100%. Every result was compared with float64",
        "before it was timed. Providers take turns call by call, which keeps ratios steadier than",
        "times, though not fixed: the float32 decode cases that two suites share show how much.",
        "What other machines gave is at the end.",
        f"\\*: fewer than {FEW_SAMPLES} samples fitted into the time of the case.",
        "",
    ]
    lines += ["## Targets", "", TARGETS_TEXT, "", *targets.section(rows), ""]
    lines += ["## Where a peer is faster", "", *targets.losses(rows), ""]
    for suite, title in TITLES.items():
        part = [r for r in rows if r["suite"] == suite]
        if part:
            picture = plot(suite, part) if suite in plots.PLOTS else []
            note = [NOTES[suite], ""] if suite in NOTES else []
            lines += [f"## {title}", "", *note, *picture, *table(part), ""]
    lines += memory_table(rows)
    for suite, (title, section) in SECTIONS.items():
        part = [r for r in rows if r["suite"] == suite]
        if part:
            lines += [f"## {title}", "", *section(part), ""]
    lines += ["## Not measured, and why", "", *absences(rows), "", *elsewhere(path)]
    return "\n".join(lines)


def between(values: list[float], form: str) -> str:
    """The smallest and the largest."""
    if not values:
        return "-"
    low, high = (form.format(f(values)) for f in (min, max))
    return low if low == high else f"{low} to {high}"


def summary(rows: list[Row], source: str) -> list[str]:
    """The README's table: how the columns of each suite spread, losses (below 1) included."""
    lines = {}
    parts = {(r["suite"], r["mode"]): r for r in rows if r["suite"] in README_SUITES}
    for suite, mode in sorted(parts, key=lambda part: README_SUITES.index(part[0])):
        cases = by_case([r for r in rows if (r["suite"], r["mode"]) == (suite, mode)]).values()
        ratios = [[over_best_peer(case, name) for case in cases] for name in (OURS, PRUNED)]
        shares = [
            100 * float(r["fraction_of_floor"])
            for case in cases
            for r in case
            if r["provider"] == OURS and r["median_ms"]
        ]
        if shares:
            known = [[x for x in ratio if x is not None] for ratio in ratios]
            cells = [between(x, "{:.2f}") for x in known]
            several = sum(name == suite for name, _ in parts) > 1
            title = f"{TITLES[suite]}, {mode}" if several else TITLES[suite]
            lines[title] = [*cells, between(shares, "{:.0f}") + "%"]
    models = by_case([r for r in rows if r["suite"] == "models"]).values()
    known = [x for x in (over_best_peer(case, FUSED) for case in models) if x is not None]
    if known:
        lines["Whole models, over PyTorch SDPA, mask"] = ["-", between(known, "{:.2f}"), "-"]
    columns = ["dense", "pruned", "dense, share of the floor"]
    text = "Times faster than the best of the peers, over all columns of"
    floor = "The floor is the multiply-adds alone; for decode, a plain read of K and V."
    return [
        f"{text} [docs/performance.md](docs/performance.md), from `{source}`. {floor}",
        "",
        *grid("", columns, lines),
    ]


def fill_readme(path: Path, lines: list[str]) -> bool:
    """Replaces what stands between the marks; False, and nothing written, where they are not."""
    body = "\n".join(["", *lines, "", ""])
    text, count = README_SECTION.subn(lambda m: m[1] + body + m[2], path.read_text())
    if count == 1:
        path.write_text(text)
    return count == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", nargs="?", type=Path, help="default: the newest run")
    path = (parser.parse_args().csv or newest()).resolve()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(path))
    if not fill_readme(README, summary(read(path), str(path.relative_to(REPOSITORY)))):
        print(f"{README.name} has no benchmarks:begin and benchmarks:end: left as it is")
    print(f"written: {PAGE.relative_to(REPOSITORY)} from {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
