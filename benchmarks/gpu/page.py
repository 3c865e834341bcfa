"""Writes docs/performance-gpu.md from the newest run under benchmarks/results/.

python -m benchmarks.gpu.page
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.aot import ROOT
from benchmarks.gpu.rows import read

PAGE = ROOT / "docs" / "performance-gpu.md"
TITLES = {
    "forward": "Forward, causal",
    "training": "Backward alone, causal",
    "decode": "Decode: one query row per head against a cache",
}
OURS = ("ours, dense", "ours, pruned")
Row = dict[str, str]

# What is wanted, of which row, in which column, at least.
TARGETS = (
    ("Forward, head_dim 128, 16384", "forward-causal-bfloat16-b1h16s16384d128", "tflops", 690),
    ("Forward, head_dim 64, 16384", "forward-causal-bfloat16-b1h32s16384d64", "tflops", 520),
    ("Backward, head_dim 128, 16384", "training-causal-bfloat16-b1h16s16384d128", "tflops", 580),
    ("Decode (8,16,8192,128), GB/s", "decode-causal-bfloat16-b8h16s1x8192d128", "gb_per_s", 3655),
)


def newest() -> Path:
    """Runs are folders <gpu>/<date>-<commit>/."""
    return max((ROOT / "benchmarks" / "results").glob("*/*/timing.csv"), key=str).parent


def shape(row: Row) -> str:
    lengths = row["keys"] if row["mode"] == "decode" else row["queries"]
    return f"({row['batch']},{row['heads']},{lengths},{row['head_dim']})"


def cell(row: Row | None) -> str:
    if row is None or not row["median_ms"]:
        return "-"
    rate = row["gb_per_s"] or row["tflops"]
    return f"{float(row['median_ms']):.4g} ({float(rate):.0f})"


def table(rows: list[Row]) -> Iterator[str]:
    timed = Counter(row["provider"] for row in rows if row["median_ms"])
    names = [*OURS, *(name for name in timed if not name.startswith("ours"))]
    more = ["best peer / dense", "best peer / pruned"]
    yield "| " + " | ".join(["(batch, heads, length, head_dim)", *names, *more]) + " |"
    yield "|---" * (len(names) + 3) + "|"
    for case in dict.fromkeys(row["case"] for row in rows):
        here = {row["provider"]: row for row in rows if row["case"] == case}
        best = min(milliseconds(here).values())
        ratios = [f"{best / float(here[name]['median_ms']):.2f}" for name in OURS]
        cells = [cell(here.get(name)) for name in names]
        yield "| " + " | ".join([shape(here[OURS[0]]), *cells, *ratios]) + " |"


def milliseconds(here: dict[str, Row]) -> dict[str, float]:
    """Of the peers that came out right."""
    return {
        name: float(row["median_ms"])
        for name, row in here.items()
        if row["median_ms"] and not name.startswith("ours")
    }


def targets(rows: list[Row]) -> Iterator[str]:
    yield "| target, dense | needed | measured | |"
    yield "|---|---|---|---|"
    for what, case, column, needed in TARGETS:
        found = [r for r in rows if r["case"] == case and r["provider"] == OURS[0]]
        for row in found:
            value = float(row[column])
            yield f"| {what} | {needed} | {value:.0f} | {verdict(value >= needed)} |"
    lost = []
    for case in dict.fromkeys(row["case"] for row in rows):
        here = {row["provider"]: row for row in rows if row["case"] == case}
        rivals = milliseconds(here)
        name = min(rivals, key=lambda peer: rivals[peer])
        ratio = rivals[name] / float(here[OURS[0]]["median_ms"])
        if ratio < 1:
            lost.append(f"{here[OURS[0]]['mode']} {shape(here[OURS[0]])} {ratio:.2f} ({name})")
    words = "; ".join(lost) or "none is slower"
    yield f"| Faster than every peer, times | 1 | {words} | {verdict(not lost)} |"


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def evidence(run: Path) -> Iterator[str]:
    checks = Counter(row["status"] for row in read(run / "correctness.csv"))
    right = f"{checks['ok']} of {checks.total()} checks right"
    yield f"- Against float64, every dtype and mode: {right}."
    for row in read(run / "sanitizer.csv"):
        told = row["detail"].split("; ")[:2]  # how many checks, and the tool's first summary
        yield f"- compute-sanitizer {row['tool']}: {row['status']}; {'; '.join(told)}."


def absences(rows: list[Row]) -> Iterator[str]:
    """Which rows have no time, and why."""
    # Behind "target:" the compiler of FlexAttention names the arguments of the one call.
    reasons = Counter(
        (row["provider"], row["status"].partition(" target: ")[0])
        for row in rows
        if not row["median_ms"]
    )
    for (provider, status), count in reasons.items():
        yield f"- {provider}: {status} ({count} case{'s' * (count > 1)})"


def page(run: Path) -> str:
    rows, facts = read(run / "timing.csv"), json.loads((run / "machine.json").read_text())
    packages = ("torch", "triton", "jax", "cudnn")
    nvcc = facts["nvcc"].split("/")[0].removeprefix("Build ")
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in packages)
    lines = [
        "# Performance on a GPU",
        "",
        "<!-- written by benchmarks/gpu/page.py; do not edit -->",
        "",
        f"{facts['gpu']}, driver {facts['driver']}, {nvcc}, commit `{facts['commit']}`, "
        f"{facts['date']}; {versions} (the frontend). Raw data: `{run.relative_to(ROOT)}`.",
        "",
        *(f"- Remark: {remark}" for remark in facts.get("remarks", [])),
        "",
        "Cells: median milliseconds (TFLOP/s; for decode GB/s of K and V). bfloat16. The work is",
        "counted as the dense one, half of it when causal; a backward is the backward alone, 2.5",
        "times a forward. Slopes are constants here, since no peer has a gradient for them. Every",
        "result was compared with float64 before it was timed; providers take turns call by call,",
        "with a cold second-level cache ([0023](design/0023-evidence-from-a-gpu.md)). A dash: the",
        "peer cannot, or was not there.",
        "",
        "## Evidence",
        "",
        *evidence(run),
        "",
        "## Targets",
        "",
        *targets(rows),
        "",
    ]
    for mode, title in TITLES.items():
        part = [row for row in rows if row["mode"] == mode and row["status"]]
        lines += [f"## {title}", "", *table(part), ""]
    lines += ["## Not measured, and why", "", *absences(rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(newest()))
    print(PAGE)
