"""tiling.h and make_tiling.h on the host against brute force: what a call becomes, which key tiles
a query tile visits, how they are cut into parts, where each piece of the workspace lies."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from tests.ascend.device import ENTRIES, KERNELS, NO_REACH, TILE, Device, Fault, Tiling, make_call

LEN_K = 600
MIN_PART_TILES = 2  # tiling.h
FLOAT, HALF, SLOTS = 4, 2, 2


def call_of(
    shape: tuple[int, int, int, int, int, int], layout: str = "BNSD", cores: int = 1
) -> tuple[Any, Any, Any]:
    """The call, and arrays of the shapes of q and k that take no memory."""
    batch, heads_q, heads_kv, len_q, len_k, head_dim = shape
    q, k = (
        np.lib.stride_tricks.as_strided(
            np.zeros(1, np.float16),
            (batch, h, n, head_dim) if layout == "BNSD" else (batch, n, h, head_dim),
            (0, 0, 0, 0),
        )
        for h, n in ((heads_q, len_q), (heads_kv, len_k))
    )
    return make_call(q, k, 0.5, True, "symmetric", layout, cores, 0), q, k


def element_strides(shape: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    """batch, head, row of a contiguous tensor, by counting elements."""
    numbers = np.arange(np.prod(shape)).reshape(shape)
    if layout == "BSND":
        numbers = numbers.transpose(0, 2, 1, 3)
    origin = numbers[0, 0, 0, 0]

    def step(axis: int) -> int:
        index = [0, 0, 0, 0]
        index[axis] = 1
        return int(numbers[tuple(index)] - origin) if numbers.shape[axis] > 1 else -1

    return step(0), step(1), step(2)


SHAPES = (
    (1, 1, 1, 1, 1, 1),
    (2, 6, 2, 5, 33, 40),
    (3, 4, 4, 128, 128, 64),
    (2, 4, 1, 129, 300, 16),
    (2, 12, 3, 1, 300, 64),
    (1, 5, 5, 1, 1025, 8),
    (2, 2, 2, 257, 40, 256),
)


@pytest.mark.parametrize("fused_forward", [False, True])
@pytest.mark.parametrize("layout", ["BNSD", "BSND"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiling(
    device: Device, shape: tuple[int, int, int, int, int, int], layout: str, fused_forward: bool
) -> None:
    """Every field; tasks by counting them."""
    batch, heads_q, heads_kv, len_q, len_k, head_dim = shape
    call, q, k = call_of(shape, layout, cores=7)
    t = device.tiling(call, fused_forward)
    rows_are_heads = fused_forward and len_q == 1 and heads_q > heads_kv
    heads, rows = (heads_kv, heads_q // heads_kv) if rows_are_heads else (heads_q, len_q)
    assert (t.batch, t.heads_q, t.heads_kv) == (batch, heads, heads_kv)
    assert (t.len_q, t.len_k, t.head_dim) == (rows, len_k, head_dim)
    assert (t.causal, t.symmetric, t.has_spans, t.has_reach, t.scale) == (1, 1, 1, 1, 0.5)
    assert (t.q_start, t.row_step) == (len_k - len_q, 0 if rows_are_heads else 1)
    query_tiles = list(itertools.product(range(batch), range(heads), range(0, rows, TILE)))
    key_tiles = list(itertools.product(range(batch), range(heads_kv), range(0, len_k, TILE)))
    assert t.tasks == len(query_tiles) * t.parts
    assert t.key_tasks == len(key_tiles)
    assert (t.tiles_q, t.tiles_k) == (len(range(0, rows, TILE)), len(range(0, len_k, TILE)))
    assert t.blocks == min(7, t.tasks)
    check_strides(t, q.shape, k.shape, layout, rows_are_heads)


def check_strides(
    t: Tiling, q: tuple[int, ...], k: tuple[int, ...], layout: str, rows_are_heads: bool
) -> None:
    for got, expected in zip(
        (t.kv.batch, t.kv.head, t.kv.row), element_strides(k, layout), strict=True
    ):
        assert expected in (got, -1)
    if not rows_are_heads:
        for got, expected in zip(
            (t.q.batch, t.q.head, t.q.row), element_strides(q, layout), strict=True
        ):
            assert expected in (got, -1)
        return
    numbers = np.arange(np.prod(q)).reshape(q)
    if layout == "BSND":
        numbers = numbers.transpose(0, 2, 1, 3)
    for b, h in np.ndindex(numbers.shape[:2]):  # head h is row h % len_q of head h // len_q
        at = b * t.q.batch + h // t.len_q * t.q.head + h % t.len_q * t.q.row
        assert at == numbers[b, h, 0, 0]


def test_number_of_parts(device: Device) -> None:
    """The most parts that leave each AI Core one and each part MIN_PART_TILES key tiles."""
    for cores, batch, heads, len_q, tiles in itertools.product(
        (1, 2, 3, 5, 8, 20, 24), (1, 2, 3), (1, 2, 7), (1, 16, 130), (1, 2, 3, 4, 7, 40, 1000)
    ):
        call, _, _ = call_of((batch, heads, heads, len_q, tiles * TILE - 5, 4), cores=cores)
        query_tiles = batch * heads * -(-len_q // TILE)
        possible = [
            n
            for n in range(1, cores + 1)
            if n == 1 or (query_tiles * n <= cores and n * MIN_PART_TILES <= tiles)
        ]
        t = device.tiling(call, True)
        assert t.parts == max(possible)
        assert t.parts == 1 or t.blocks == t.tasks
        assert device.tiling(call, False).parts == 1


def test_parts_of_a_range(device: Device) -> None:
    """Every tile in exactly one part, in order, parts of equal size but for one tile."""
    for first, count, parts in itertools.product((0, 3), range(12), range(1, 9)):
        tiles: list[int] = []
        sizes = []
        for part in range(parts):
            begin, end = device.part((first, first + count), part, parts)
            sizes.append(end - begin)
            tiles += range(begin, end)
        assert tiles == list(range(first, first + count))
        assert max(sizes) - min(sizes) <= 1
    # 2^22 tiles, the longest sequence, in as many parts as any device has AI Cores.
    ends = [device.part((0, 1 << 22), part, 64)[1] for part in range(64)]
    assert ends == [(1 << 22) * (part + 1) // 64 for part in range(64)]


def pieces(t: Tiling, entry: str) -> tuple[list[int], int]:
    """Bytes of the pieces of one AI Core in order, and of what all cores share."""
    tile, wide = TILE * TILE, TILE * (-(-t.head_dim // 16) * 16) * FLOAT
    rows = TILE * FLOAT
    return {
        "alibi_attention": (
            [SLOTS * tile * FLOAT, SLOTS * tile * HALF, SLOTS * wide],
            t.tasks * (wide + 2 * rows) if t.parts > 1 else 0,
        ),
        "alibi_attention_grad": (
            [SLOTS * tile * FLOAT] * 2 + [SLOTS * tile * HALF] * 2 + [2 * wide],
            0,
        ),
        "alibi_attention_weights": ([SLOTS * tile * FLOAT], 0),
        "alibi_attention_weights_grad": ([SLOTS * tile * HALF, wide], t.tasks * rows),
    }[entry]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1, 3, 5000, 200)], ids=str)
def test_workspace(device: Device, shape: tuple[int, int, int, int, int, int], entry: str) -> None:
    """No gaps, no overlaps, every piece on a 512-byte boundary."""
    call, _, _ = call_of(shape, cores=20)
    t = device.tiling(call, entry == "alibi_attention")
    *offsets, total = device.workspace(t, entry)
    sizes, shared = pieces(t, entry)
    assert offsets == [0, *itertools.accumulate(sizes)]
    assert total == t.blocks * offsets[-1] + shared
    assert all(offset % 512 == 0 for offset in offsets)


def test_budgets_are_those_of_the_readme(device: Device) -> None:
    """The totals in csrc/ascend/README.md's memory table, and that they fit."""
    table = (KERNELS / "README.md").read_text()
    rows = {
        line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| ")
    }
    for entry, (l1, ub) in device.budgets().items():
        assert l1 <= 512 << 10
        assert ub <= 192 << 10
        assert f"**{l1 / 1024:g}**" in rows[f"`{entry}` L1"]
        assert f"**{ub / 1024:g}**" in rows[f"`{entry}` UB"]


BAD = {
    "an empty tensor": (1, 1, 1, 0, 4, 8),
    "no multiple": (1, 3, 2, 4, 4, 8),
    "head_dim": (1, 1, 1, 4, 4, 257),
    "longer than 2\\^29": (1, 1, 1, 4, (1 << 29) + 1, 8),
    "more tiles": (1 << 12, 1 << 10, 1, 1, 1 << 29, 8),
}


@pytest.mark.parametrize("reason", BAD)
def test_refused_shapes(device: Device, reason: str) -> None:
    call, _, _ = call_of(BAD[reason])
    with pytest.raises(Fault, match=reason):
        device.tiling(call, True)


def brute_range(
    causal: bool, symmetric: bool, span: tuple[int, int, int], row: int, rows: int, reach: int
) -> tuple[int, int]:
    """Tiles from the first to the last key that some row may see, at most `reach` keys beyond the
    nearest key of its row. Without causality the signed bias grows to the right: no limit there."""
    kv_start, kv_end, q_start = span
    seen = set()
    for p in range(q_start + row, q_start + row + rows):
        nearest = min(max(p, kv_start), kv_end - 1)
        for j in range(kv_start, min(kv_end, p + 1) if causal else kv_end):
            one_sided = j > nearest and not causal and not symmetric
            if abs(j - nearest) <= reach or one_sided:
                seen.add(j // TILE)
    return (min(seen), max(seen) + 1) if seen else (0, 0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("bias", ["symmetric", "signed"])
def test_key_tiles(device: Device, causal: bool, bias: str) -> None:
    rng = np.random.default_rng(7)
    q, k = np.zeros((1, 1, 700, 8), np.float16), np.zeros((1, 1, LEN_K, 8), np.float16)
    call = make_call(q, k, 1.0, causal, bias, "BNSD", 1, 0)
    for trial in range(300):
        edges = rng.choice([0, 1, 127, 128, 129, 256, 300, LEN_K - 1, LEN_K], 2)
        kv_start, kv_end = sorted(int(e) for e in edges)
        q_start = int(rng.integers(0 if causal else -300, 700))
        row, rows = int(rng.choice([0, 128, 256])), int(rng.choice([1, 2, 64, 128]))
        reach = int(rng.choice([0, 1, 5, 127, 128, 300, NO_REACH]))
        span = (kv_start, kv_end, q_start)
        expected = brute_range(causal, bias == "symmetric", span, row, rows, reach)
        got = device.tile_range(call, span, row, rows, reach)
        assert got == expected, (trial, span, row, rows, reach)


def test_kernels_see_device_functions_only() -> None:
    """tiling.h is the one header they share with the host."""
    sources = [KERNELS / "tiling.h", *(KERNELS / "op_kernel").glob("*.h")]
    functions = [line for path in sources for line in path.read_text().splitlines()]
    functions = [line for line in functions if re.search(r"^ *[\w ]*\binline\b", line)]
    assert functions
    assert [line for line in functions if "__aicore__" not in line and "_DEVICE" not in line] == []
