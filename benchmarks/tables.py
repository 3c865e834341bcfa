"""Rows of a CSV, looked up and compared: what the report and the targets share."""

from __future__ import annotations

from collections.abc import Iterable

Row = dict[str, str]

OURS = "alibi-kernels dense"
PRUNED = "alibi-kernels pruned"
NORMS_KEPT = "alibi-kernels pruned, norms kept"
ONE_THREAD = "alibi-kernels dense, one thread"
FLOAT32 = "alibi-kernels dense, float32"
AVX2 = "alibi-kernels dense avx2"
PLAIN_READ = "plain read of K and V"
FLOOR = "the floor's multiply-adds alone"
# Below this, a median and its spread say little, and the cell is marked.
FEW_SAMPLES = 5


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def column(row: Row) -> str:
    """Head of a table column: the sizes of a case."""
    if row["mode"] == "decode":
        return f"{row['dtype']} S={row['keys']}"
    heads = row["heads"]
    if row.get("heads_kv"):  # older tables have no such column
        heads += f"/{row['heads_kv']}"
    sizes = f"({row['batch']},{heads},{row['queries']},{row['head_dim']})"
    if row["suite"] == "small":
        return f"{row['mode']} {sizes}"
    if row["suite"] in ("grouped", "padded"):
        return f"{row['mode']} {row['dtype']} {sizes}"
    return f"{row['mode']} {sizes} t={row['threads']}" if row["suite"] == "threads" else sizes


def by_case(rows: list[Row]) -> dict[str, list[Row]]:
    """Case -> its rows, in the order of the CSV."""
    return {
        case: [r for r in rows if r["case"] == case] for case in unique(r["case"] for r in rows)
    }


def milliseconds(rows: list[Row], provider: str) -> float | None:
    """The median of a provider among the rows of one case."""
    times = [float(r["median_ms"]) for r in rows if r["provider"] == provider and r["median_ms"]]
    return times[0] if times else None


def best_peer(rows: list[Row]) -> Row | None:
    timed = [r for r in rows if r["kind"] == "peer" and r["median_ms"]]
    return min(timed, key=lambda r: float(r["median_ms"]), default=None)


def over_best_peer(rows: list[Row], provider: str) -> float | None:
    """How many times faster `provider` is than the best peer of the case."""
    ours, peer = milliseconds(rows, provider), best_peer(rows)
    return None if ours is None or peer is None else float(peer["median_ms"]) / ours


def grid(corner: str, columns: list[str], lines: dict[str, list[str]]) -> list[str]:
    """A table: its lines by their heads."""
    head = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return [*head, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in lines.items())]
