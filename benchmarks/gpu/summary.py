"""What the tables of a run say, in one page.

python -m benchmarks.gpu.summary OUT
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.rows import read


def _states(out: Path) -> Iterator[str]:
    for name, key in (("correctness", "check"), ("sanitizer", "tool")):
        rows = read(out / f"{name}.csv")
        good = [row for row in rows if row["status"] == "ok"]
        yield f"{name}: {len(good)} of {len(rows)} ok"
        for row in rows:
            if row["status"] != "ok":
                what = " ".join([row[key], *(row.get(c, "") for c in ("dtype", "what"))]).strip()
                yield f"  {what}: {row['status']} {row.get('detail', '')}".rstrip()
    for name in ("sm80", "sm90"):
        path = out / f"{name}.json"
        platform = json.loads(path.read_text())["platform"] if path.exists() else "not recorded"
        yield f"instructions, {name}: {platform}"


def found_fault(out: Path) -> bool:
    """Whether a check failed, or a sanitizer that ran; also when there was no check at all."""
    checks = [row["status"] for row in read(out / "correctness.csv")]
    tools = [row["status"] for row in read(out / "sanitizer.csv")]
    return not checks or any(x != "ok" for x in checks) or "failed" in tools


def _timing(rows: list[dict[str, str]]) -> Iterator[str]:
    cases = list(dict.fromkeys(row["case"] for row in rows))
    for case in cases:
        here = {row["provider"]: row for row in rows if row["case"] == case}
        yield case
        for name, row in sorted(here.items(), key=lambda item: float(item[1]["median_ms"] or 1e9)):
            if row["median_ms"]:
                rate = f"{row['gb_per_s']} GB/s" if row["gb_per_s"] else f"{row['tflops']} TFLOP/s"
                spread = f"{row['p20_ms']} to {row['p80_ms']}"
                yield f"  {name:24} {row['median_ms']:>10} ms ({spread})  {rate}"
            else:
                yield f"  {name:24} {row['status']}"
        yield from _ratio(here)


def _ratio(here: dict[str, dict[str, str]]) -> Iterator[str]:
    """Ours against the fastest peer that came out right."""
    times = {name: float(row["median_ms"]) for name, row in here.items() if row["median_ms"]}
    rivals = {name: t for name, t in times.items() if not name.startswith("ours")}
    if not rivals:
        return
    best = min(rivals, key=lambda name: rivals[name])
    for name in ("ours, dense", "ours, pruned"):
        if name in times:
            yield f"  {name}: {rivals[best] / times[name]:.2f} times as fast as {best}"


def of(out: Path) -> str:
    facts = json.loads((out / "machine.json").read_text())
    gpu = facts["gpu"] or "a rehearsal without a GPU"
    head = f"{gpu}, driver {facts['driver'] or '-'}, commit {facts['commit']}, {facts['date']}"
    rows = read(out / "timing.csv")
    absent = Counter(row["status"] for row in rows if not row["median_ms"])
    reasons = [f"  {count} x {status}" for status, count in absent.most_common()]
    lines = [head, *_states(out), "", *_timing(rows), "", "rows without a time:", *reasons]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(of(Path(sys.argv[1])))
