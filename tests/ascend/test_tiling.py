"""Which key tiles a query tile visits: tiling.h against a search over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ascend.device import NO_REACH, TILE, Device, make_call

LEN_K = 600


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
