"""The mutants of the forward pass that concern keys no row may see, as mutants.py explains them."""

from __future__ import annotations

from tests.ascend.mutants import CUBE, FWD, TASKS, Mutant

SPANS = (
    Mutant(
        "rows before the span not cleared",
        CUBE,
        "clear(l1, 0, seen.first, rows, cols);",
        "",
    ),
    Mutant(
        "rows behind the span not cleared",
        CUBE,
        "clear(l1, seen.end, rows, rows, cols);",
        "",
    ),
    Mutant(
        "cleared rows counted twice between column groups",
        CUBE,
        "params.dstGap = round_up(height, kFractal) - (to - from);",
        "params.dstGap = round_up(height, kFractal);",
    ),
    Mutant(
        "values outside the span loaded",
        FWD,
        "seen_keys(at.task().span, at.tile() * kTileK), keys_of(at)",
        "{0, keys_of(at)}, keys_of(at)",
    ),
    Mutant(
        "values behind the last row's position loaded",
        TASKS,
        "min_of(span.kv_end, last + 1);",
        "max_of(span.kv_end, 0 * last);",
    ),
)
