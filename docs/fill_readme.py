"""Puts the results of the last `make demo` into README.md, between its measured:begin and :end."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLES = ROOT / "demo" / "measured.md"
PLOT = ROOT / "demo" / "extrapolation.png"
PUBLISHED_PLOT = ROOT / "docs" / "images" / "extrapolation.png"
SECTION = re.compile(r"(<!-- measured:begin -->\n).*?(<!-- measured:end -->)", re.DOTALL)


def main() -> None:
    if not TABLES.exists() or not PLOT.exists():
        sys.exit(f"{TABLES} or {PLOT} is missing; run `make demo` first.")
    PUBLISHED_PLOT.parent.mkdir(exist_ok=True)
    shutil.copy(PLOT, PUBLISHED_PLOT)
    image = f"![Perplexity against length]({PUBLISHED_PLOT.relative_to(ROOT)})"
    section = f"\n{TABLES.read_text()}\n{image}\n\n"
    text, count = SECTION.subn(lambda match: match[1] + section + match[2], README.read_text())
    if count != 1:
        sys.exit("README.md must have one measured:begin and one measured:end.")
    README.write_text(text)


if __name__ == "__main__":
    main()
