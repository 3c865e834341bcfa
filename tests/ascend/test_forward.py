"""alibi_attention on the emulator against the float64 oracle.

Every run draws another order of the pipes; a missing synchronisation stops it (emulator/machine.h).
Device memory that is not an input starts as NaN, and the emulator insists that each output element
is written exactly once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import oracle
from tests.ascend.bounds import lse_bound, out_bound
from tests.ascend.device import NO_REACH, TILE, Device, Fault, make_call
from tests.ascend.unseen import CASES, poisoned
from tests.cases import SHAPES, SMALL, Case, Inputs, make_inputs
from tests.compare import assert_close

DTYPES = ("float16", "bfloat16")


def check(device: Device, case: Case, dtype: str, seeds: range, **options: Any) -> None:
    x = make_inputs(case, dtype)
    out, lse = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    unlucky = poisoned(case, x)
    for seed in seeds:
        got = forward(device, case, unlucky, seed=seed, **options)
        assert_close(got.out, out, out_bound(case, x, dtype, out), f"out, seed {seed}")
        assert_close(got.lse, lse, lse_bound(case, x, lse), f"lse, seed {seed}")


def forward(device: Device, case: Case, x: Inputs, **options: Any) -> Any:
    return device.forward(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES, ids=str)
def test_forward(device: Device, case: Case, dtype: str) -> None:
    check(device, case, dtype, range(2))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL + SHAPES, ids=str)
def test_forward_under_many_schedules(device: Device, case: Case, dtype: str) -> None:
    check(device, case, dtype, range(100, 130))


def test_schedules_do_not_change_a_bit(device: Device) -> None:
    """Different orders of the pipes and different numbers of cores, the same bits."""
    case = Case("", 1, 2, 1, 200, 333, 72, causal=False)
    x = make_inputs(case, "float16")
    first = forward(device, case, x)
    for seed in range(1, 8):
        again = forward(device, case, x, seed=seed, cores=seed)
        assert again.out.tobytes() == first.out.tobytes()
        assert again.lse.tobytes() == first.lse.tobytes()


def test_positions_far_from_the_keys(device: Device) -> None:
    """Queries a million tokens after the last key: the weights depend on distances among the keys
    alone, and must not lose them to the rounding of slope * 1e6."""
    case = Case("", 1, 2, 2, 5, 200, 16, spans=((0, 200, 1_000_000),), slopes="learned")
    check(device, case, "float16", range(3))


def brute_reach(case: Case, x: Inputs) -> Any:
    """[B, Hq, tiles] int32: keys further than this beyond the nearest allowed one weigh, together,
    less than 2^-24 of that one key (contract: tail <= exp(u - slope d) / (1 - exp(-slope)))."""
    q, k = (np.asarray(t).astype(np.float64) for t in (x.q, x.k))
    tiles = -(-case.Sq // TILE)
    reach = np.full((case.B, case.Hq, tiles), NO_REACH, np.int32)
    for b, h, t in np.ndindex(reach.shape):
        rows = q[b, h, t * TILE : (t + 1) * TILE]
        keys = k[b, h // (case.Hq // case.Hkv)]
        u = abs(case.options["scale"]) * np.linalg.norm(rows, axis=-1).max()
        u *= np.linalg.norm(keys, axis=-1).max()
        slope = float(x.slopes[h])
        sides = 1 if case.causal else 2
        need = 2 * u + 24 * np.log(2) + np.log(sides) - np.log(-np.expm1(-slope))
        reach[b, h, t] = min(NO_REACH, int(np.ceil(need / slope)))
    return reach


DECODE = (
    Case("grouped", 2, 12, 3, 1, 300, 64, slopes="learned"),
    Case("grouped-BSND", 2, 4, 2, 1, 300, 40, layout="BSND", slopes="mixed"),
    Case("mid-cache", 2, 8, 2, 1, 400, 64, spans=((0, 150, 149), (5, 400, 399)), slopes="steep"),
    Case("full", 1, 4, 1, 1, 400, 16, causal=False, spans=((0, 400, 200),), slopes="learned"),
    Case("full-far", 1, 4, 1, 1, 400, 16, causal=False, spans=((300, 400, 10),), slopes="learned"),
    Case("signed", 1, 6, 1, 1, 200, 8, causal=False, bias="signed", slopes="mixed"),
    Case("before-the-keys", 1, 4, 2, 1, 200, 8, spans=((100, 200, 50),)),
    Case("many-heads", 1, 150, 1, 1, 130, 16, slopes="learned"),
)


@pytest.mark.parametrize("case", DECODE, ids=str)
def test_decode_with_grouped_heads(device: Device, case: Case) -> None:
    """One query row: the heads of a group become the rows of one tile."""
    check(device, case, "float16", range(5))


SPLIT = (
    Case("one-head", 1, 1, 1, 1, 2000, 64, slopes="learned"),
    Case("grouped", 1, 8, 2, 1, 1500, 40, spans=((100, 1400, 1399),), layout="BSND"),
    Case("short-cache", 2, 4, 1, 1, 1280, 32, spans=((0, 100, 99), (0, 1280, 1279))),
    Case("nothing-allowed", 1, 4, 1, 1, 1200, 16, spans=((7, 7, 50),)),
    Case("before-the-keys", 1, 2, 1, 3, 1200, 16, spans=((901, 1200, 900),)),
    Case("many-rows", 1, 1, 1, 100, 1500, 144, causal=False, bias="signed"),
    Case("two-query-tiles", 1, 1, 1, 200, 1300, 16),
    Case("far", 1, 1, 1, 1, 2000, 8, spans=((0, 2000, 1_000_000),), slopes="learned"),
)


@pytest.mark.parametrize("cores", [4, 7])
@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_split_keys(device: Device, case: Case, cores: int) -> None:
    """More AI Cores than query tiles: each takes a part of the keys, the parts are combined."""
    x = make_inputs(case, "float16")
    assert device.tiling(make_call(x.q, x.k, *case.options.values(), cores, 0), True).parts > 1
    check(device, case, "float16", range(3), cores=cores)


def test_split_keys_with_pruning(device: Device) -> None:
    """The parts cut what the reach leaves; schedules do not change a bit of it."""
    case = Case("", 1, 4, 2, 1, 3000, 32, slopes="learned", magnitude=0.3)
    x = make_inputs(case, "float16")
    x.slopes[:] = [4.0, 0.5, 0.25, 2.0]
    reach = brute_reach(case, x)
    out, lse = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    results = [forward(device, case, x, reach=reach, cores=9, seed=seed) for seed in range(4)]
    assert_close(results[0].out, out, out_bound(case, x, "float16", out), "out")
    assert_close(results[0].lse, lse, lse_bound(case, x, lse), "lse")
    for again in results[1:]:
        assert again.out.tobytes() == results[0].out.tobytes()
        assert again.lse.tobytes() == results[0].lse.tobytes()


def test_decode_reads_the_keys_once_per_group(device: Device) -> None:
    """Work per tile of keys, not per tile and head."""
    single, grouped = (Case("", 1, heads, 1, 1, 1024, 64, slopes="learned") for heads in (1, 32))
    one, many = (forward(device, c, make_inputs(c, "float16")) for c in (single, grouped))
    assert many.instructions < 2 * one.instructions


def test_decode_pruning_keeps_what_the_gentlest_head_needs(device: Device) -> None:
    case = Case("", 2, 4, 2, 1, 3000, 32, slopes="learned", magnitude=0.3)
    x = make_inputs(case, "float16")
    x.slopes[:] = [4.0, 0.5, 0.25, 2.0]
    reach = brute_reach(case, x)
    pruned, dense = forward(device, case, x, reach=reach), forward(device, case, x)
    assert pruned.instructions < 0.5 * dense.instructions
    out, lse = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    assert_close(pruned.out, out, out_bound(case, x, "float16", out), "out")
    assert_close(pruned.lse, lse, lse_bound(case, x, lse), "lse")


@pytest.mark.parametrize("causal", [True, False])
def test_pruning_skips_work_and_not_precision(device: Device, causal: bool) -> None:
    """Less than half of the vector work, and the result within the same bound as without."""
    case = Case("", 1, 2, 1, 300, 1500, 32, causal, slopes="steep", magnitude=0.5)
    x = make_inputs(case, "float16")
    dense = forward(device, case, x)
    pruned = forward(device, case, x, reach=brute_reach(case, x))
    assert pruned.vector_elements < 0.5 * dense.vector_elements
    out, lse = oracle.attention(x.q, x.k, x.v, x.slopes, spans=x.spans, **case.options)
    assert_close(pruned.out, out, out_bound(case, x, "float16", out), "out")
    assert_close(pruned.lse, lse, lse_bound(case, x, lse), "lse")


@pytest.mark.parametrize("cores", [2, 7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_no_row_may_see_may_hold_anything(
    device: Device, case: Case, dtype: str, cores: int
) -> None:
    x = make_inputs(case, dtype)
    clean = forward(device, case, x, cores=cores)
    got = forward(device, case, poisoned(case, x), cores=cores)
    np.testing.assert_array_equal(got.out, clean.out)
    np.testing.assert_array_equal(got.lse, clean.lse)


def test_unsupported_shapes_give_their_reason(device: Device) -> None:
    case = Case("", 1, 1, 1, 4, 4, 257)
    with pytest.raises(Fault, match="head_dim is not in"):
        forward(device, case, make_inputs(case, "float16"))
    case = Case("", 1, 300, 300, 2, 2, 256, layout="BSND")
    with pytest.raises(Fault, match="65535"):
        forward(device, case, make_inputs(case, "float16"))
