"""Publishes the last `make demo`: its tables in README.md, its plot and its raw results."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLES = ROOT / "demo" / "measured.md"
PLOT = ROOT / "demo" / "extrapolation.png"
RESULTS = ROOT / "demo" / "results.json"
PUBLISHED_RESULTS = ROOT / "benchmarks" / "results" / "demo.json"
PUBLISHED_PLOT = ROOT / "docs" / "images" / "extrapolation.png"
SECTION = re.compile(r"(<!-- measured:begin -->\n).*?(<!-- measured:end -->)", re.DOTALL)


def main() -> None:
    if not TABLES.exists() or not PLOT.exists():
        sys.exit(f"{TABLES} or {PLOT} is missing; run `make demo` first.")
    for path in (PUBLISHED_PLOT, PUBLISHED_RESULTS):
        path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(PLOT, PUBLISHED_PLOT)
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    results = {"commit": commit.strip(), **json.loads(RESULTS.read_text())}
    PUBLISHED_RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    image = f"![Perplexity against length]({PUBLISHED_PLOT.relative_to(ROOT)})"
    source = f"Commit `{results['commit']}`; raw data: `{PUBLISHED_RESULTS.relative_to(ROOT)}`."
    section = f"\n{TABLES.read_text()}\n{image}\n\n{source}\n\n"
    text, count = SECTION.subn(lambda match: match[1] + section + match[2], README.read_text())
    if count != 1:
        sys.exit("README.md must have one measured:begin and one measured:end.")
    README.write_text(text)


if __name__ == "__main__":
    main()
