"""A decode step whose heads take turns (csrc/cpu/decode.inl.h): where the rows of other heads lie
between those of a head (BSND, packed), a unit of work has several of them.

test_decode.py has what holds for every decode step, in both layouts.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest

from tests.cases import DTYPES, Case, make_inputs
from tests.native.plain import ISAS
from tests.native.test_forward import assert_right, forward

pytestmark = pytest.mark.usefixtures("tuning")

TURNS = 32  # kMostHeads

# Key heads, query heads of each, rows, keys, head dim, of three batch items.
TURNING = (
    (1, 1, 1, 3000, 20),
    (3, 1, 1, 1500, 33),
    (5, 1, 1, 900, 128),
    (7, 2, 1, 3000, 20),
    (17, 1, 1, 700, 7),
    (TURNS, 1, 1, 600, 64),
    (TURNS + 1, 1, 1, 1000, 40),
    (2 * TURNS + 3, 1, 1, 1100, 20),
    (5, 3, 1, 2000, 33),
    (3, 1, 5, 2000, 96),
    (4, 2, 4, 1300, 32),
    (33, 1, 2, 500, 1),
)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("sizes", "dtype"), list(zip(TURNING, cycle(DTYPES))), ids=str)
def test_heads_that_take_turns(sizes: tuple[int, ...], dtype: str, isa: str) -> None:
    """Against the oracle, and as many blocks read as by heads that stand by themselves."""
    heads, group, rows, n, dim = sizes
    spans = ((3, n - 10, n - 20), (0, 0, 0), (0, n, n - rows))
    for causal in (True, False):
        blocks = []
        for layout in ("BSND", "BNSD"):
            case = Case(
                "", 3, group * heads, heads, rows, n, dim, causal, layout=layout, spans=spans
            )
            stats: dict[str, int] = {}
            for prune in (True, False):
                assert_right(case, dtype, isa=isa, prune=prune, stats=stats)
            blocks.append((stats["tiles_visited"], stats["tiles_scored"]))
        assert blocks[0] == blocks[1]
        assert blocks[0][0] > 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sizes", TURNING, ids=str)
def test_keys_and_values_in_one_tensor(sizes: tuple[int, ...], isa: str) -> None:
    """[B, S, 3, H, D] with something else in the first place: the same bits as apart."""
    heads, group, rows, n, dim = sizes
    case = Case("", 3, group * heads, heads, rows, n, dim, layout="BSND")
    x = make_inputs(case)
    whole = np.stack([np.full_like(x.k, np.nan), x.k, x.v], axis=2)
    packed = replace(x, k=whole[:, :, 1], v=whole[:, :, 2])
    for prune in (False, True):
        for a, b in zip(
            forward(case, packed, isa=isa, prune=prune),
            forward(case, x, isa=isa, prune=prune),
            strict=True,
        ):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_that_needs_no_values_passes_its_turn(dtype: str, isa: str) -> None:
    """Every other head drops its far values, which may then be anything; the rest read theirs."""
    case = Case("", 1, 9, 9, 1, 3000, 32, layout="BSND")
    slopes = np.where(np.arange(9) % 2 == 0, np.float32(4), np.float32(2.0**-12))
    x = replace(make_inputs(case, dtype), slopes=slopes)
    want = forward(case, x, isa=isa)
    x.v[:, :2000, ::2] = np.nan
    for a, b in zip(forward(case, x, isa=isa), want, strict=True):
        assert a.tobytes() == b.tobytes()
    x.v[:, :2000, 1::2] = np.nan
    out = forward(case, x, isa=isa)[0]
    assert np.isfinite(out[:, :, ::2]).all()
    assert np.isnan(out[:, :, 1::2]).all()
