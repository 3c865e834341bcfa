"""The targets that the CPU kernels are held to, as a table, and what a CSV says about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from layouts import BNSD
from models import KERNEL, LAYER, PRODUCTS
from tables import (
    AVX2,
    FLOAT32,
    NORMS_KEPT,
    ONE_THREAD,
    OURS,
    PLAIN_READ,
    PRUNED,
    Row,
    best_peer,
    by_case,
    column,
    grid,
    milliseconds,
    over_best_peer,
)

# The rows of one case -> what is measured; None where something is missing.
Value = Callable[[list[Row]], float | None]


@dataclass(frozen=True)
class Target:
    """A value for every case of a suite that `where` accepts, and the limit that it has to keep."""

    text: str
    suite: str
    value: Value
    limit: float
    where: Callable[[Row], bool] = lambda row: True
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    @property
    def needed(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


def _long(row: Row) -> bool:
    return int(row["queries"]) >= 1024


def _short(row: Row) -> bool:
    return not _long(row)


def _keys(length: int) -> Callable[[Row], bool]:
    return lambda row: int(row["keys"]) == length


def _share(provider: str) -> Value:
    """Of the floor."""

    def value(case: list[Row]) -> float | None:
        shares = [r["fraction_of_floor"] for r in case if r["provider"] == provider]
        return float(shares[0]) if shares and shares[0] else None

    return value


def _over_peers(provider: str) -> Value:
    return lambda case: over_best_peer(case, provider)


def _ratio(over: str, under: str) -> Value:
    """Time of one provider over that of another."""

    def value(case: list[Row]) -> float | None:
        a, b = milliseconds(case, over), milliseconds(case, under)
        return a / b if a and b else None

    return value


def _time(provider: str) -> Value:
    return lambda case: milliseconds(case, provider)


def _layer_over_parts(case: list[Row]) -> float | None:
    whole, *parts = (milliseconds(case, name) for name in (LAYER, PRODUCTS, KERNEL))
    return whole / sum(p or 0 for p in parts) if whole and all(parts) else None


def _left_over_kept(provider: str) -> Value:
    """Time left by pruning over the bytes left by it, both relative to the dense kernel."""

    def value(case: list[Row]) -> float | None:
        left = _ratio(provider, OURS)(case)
        kept = next((r["kept"] for r in case if r["provider"] == provider), "")
        return left / float(kept) if left and kept else None

    return value


def _megabytes(provider: str) -> Value:
    def value(case: list[Row]) -> float | None:
        found = [r["peak_extra_mb"] for r in case if r["provider"] == provider]
        return float(found[0]) if found and found[0] else None

    return value


GGML = "ggml flash_attn_ext"
_FLOOR, _PEER = "dense, share of the floor", "dense, times faster than the best peer"

TARGETS = [
    Target(f"Forward, float32, from 1024 up: {_FLOOR}", "forward", _share(OURS), 0.90, _long),
    Target(f"Forward, float32, short: {_FLOOR}", "forward", _share(OURS), 0.85, _short),
    Target(f"Forward, float32: {_PEER}", "forward", _over_peers(OURS), 1.4),
    Target(f"Not causal, from 1024 up: {_FLOOR}", "forward-full", _share(OURS), 0.92, _long),
    Target(f"Not causal: {_PEER}", "forward-full", _over_peers(OURS), 1.0),
    *(
        Target(f"{name}, bfloat16{rest}", f"{suite}-bfloat16", value, limit, where)
        for name, suite in (("Forward", "forward"), ("Forward and backward", "training"))
        for rest, value, limit, where in (
            (f", from 1024 up: {_FLOOR}", _share(OURS), 0.82, _long),
            (f": {_PEER}", _over_peers(OURS), 1.6, lambda row: True),
        )
    ),
    Target(
        "Forward, float16: dense, times faster than float32",
        "forward-float16",
        _ratio(FLOAT32, OURS),
        1.0,
    ),
    Target(f"Forward and backward, from 1024 up: {_FLOOR}", "training", _share(OURS), 0.88, _long),
    Target(f"Forward and backward: {_PEER}", "training", _over_peers(OURS), 2.0),
    Target("Decode: dense, speed of a plain read", "decode", _ratio(PLAIN_READ, OURS), 1.0),
    Target("Decode: dense, times faster than ggml", "decode", _ratio(GGML, OURS), 1.3),
    *(
        Target(
            f"Decode: time left by pruning{text} over bytes left",
            "decode",
            _left_over_kept(provider),
            1.25,
            at_least=False,
        )
        for text, provider in (("", PRUNED), (" with norms kept", NORMS_KEPT))
    ),
    *(
        Target(
            f"{what}: pruned, times faster than the best peer", suite, _over_peers(PRUNED), x, at
        )
        for what, suite, x, at in (
            ("Forward of 8192", "forward", 4.5, _keys(8192)),
            ("Forward and backward of 8192", "training", 6.0, _keys(8192)),
            ("Forward of 32768", "growth", 12.0, _keys(32768)),
        )
    ),
    *(
        Target(
            f"{name}: time over that of BNSD", "layouts", _ratio(name, BNSD), 1.05, at_least=False
        )
        for name in ("BSND", "packed")
    ),
    Target(
        "A layer: time over that of its products and kernel",
        "layer",
        _layer_over_parts,
        1.05,
        at_least=False,
    ),
    # The result itself is 17 MB; one head's score matrix would be 268 MB.
    Target(
        "Forward of 8192: extra memory with the result, dense, MB",
        "memory",
        _megabytes(OURS),
        20,
        at_least=False,
    ),
    Target(
        "Two threads against one",
        "threads",
        _ratio(ONE_THREAD, OURS),
        1.95,
        lambda row: row["threads"] == "2",
    ),
    Target(
        "(1,1,16,32) forward: milliseconds",
        "small",
        _time(OURS),
        0.010,
        lambda row: row["mode"] == "forward",
        at_least=False,
    ),
    Target("Forward on AVX2: dense, share of its own floor", "forward", _share(AVX2), 0.85),
]


def judge(target: Target, rows: list[Row]) -> dict[str, float | None]:
    """Column -> value, for every case that the target speaks about."""
    cases = by_case([r for r in rows if r["suite"] == target.suite and target.where(r)])
    return {_label(case): target.value(case) for case in cases.values()}


def _label(case: list[Row]) -> str:
    row = case[0]
    return f"{row['mode']} {column(row)}" if row["suite"] in ("layouts", "layer") else column(row)


def verdict(target: Target, values: dict[str, float | None]) -> str:
    known = [v for v in values.values() if v is not None]
    if not known:
        return "not measured"
    met = sum(map(target.met, known))
    if met == len(known):
        return "met" if len(known) == len(values) else f"met in {met} of {len(values)} measured"
    return f"**missed** in {len(known) - met} of {len(known)}"


def shown(target: Target, value: float) -> str:
    """Three digits, or as many more as it takes to look missed or met as it is."""
    texts = (f"{value:.{digits}g}" for digits in range(3, 18))
    return next(text for text in texts if target.met(float(text)) == target.met(value))


def section(rows: list[Row]) -> list[str]:
    """The table of all targets: verdict, and the value of every column, those that miss in bold."""
    lines = {}
    for target in TARGETS:
        values = judge(target, rows)
        cells = []
        for name, value in values.items():
            text = "-" if value is None else shown(target, value)
            missed = value is not None and not target.met(value)
            cells.append(f"{name} **{text}**" if missed else f"{name} {text}")
        lines[target.text] = [target.needed, verdict(target, values), "; ".join(cells) or "-"]
    return grid("target", ["needed", "verdict", "values"], lines)


def losses(rows: list[Row]) -> list[str]:
    """One line for every case in which a peer is faster than our dense kernel, with the errors."""
    lines = []
    for case in by_case(rows).values():
        times, peer = over_best_peer(case, OURS), best_peer(case)
        if times is None or peer is None or times >= 1:
            continue
        pruned = over_best_peer(case, PRUNED)
        ours = next(row for row in case if row["provider"] == OURS)
        errors = f"; errors {peer['error']} and {ours['error']}" if ours["error"] else ""
        lines.append(
            f"- {case[0]['suite']}, {column(case[0])}: {peer['provider']} takes {times:.2f} of the "
            f"time of our dense kernel"
            + (f", {pruned:.2f} of the pruned one" if pruned else "")
            + errors
        )
    return lines or ["None in this run."]
