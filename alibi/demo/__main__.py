"""Runs the demo: quickstart, fused against plain operators, train short and test long."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import mindspore as ms

from alibi.demo import machine, quickstart, speed, train_short
from alibi.demo.table import Table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m alibi.demo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: a test")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder of the results (default: demo)"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    ms.set_device("CPU")
    started = time.perf_counter()

    print(f"{machine.describe()}\n", flush=True)
    agreement = quickstart.show()
    speed_table = speed.show(options.quick)
    perplexity_table = train_short.show(options.out, options.quick)

    tables = {"speed": speed_table, "perplexity": perplexity_table}
    write_results(options.out, agreement, tables)
    seconds = time.perf_counter() - started
    print(f"Everything took {seconds:.0f} s. Results are in {options.out}/.")


def write_results(out: Path, agreement: float, tables: dict[str, Table]) -> None:
    """Writes results.json for programs and measured.md for readers."""
    results = {
        "machine": machine.facts(),
        "largest_difference_fused_plain": agreement,
        **{name: table.as_dicts() for name, table in tables.items()},
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    parts = [machine.describe(), *(f"{t.title}\n\n{t.markdown()}" for t in tables.values())]
    (out / "measured.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
