"""What is measured: shapes, modes and the one formula for the work in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Peers take power-of-two head counts with these slopes, so every provider computes the same thing.
FORWARD, TRAINING, DECODE = "forward", "training", "decode"


@dataclass(frozen=True)
class Case:
    """One column of a table: what to compute, on which inputs.

    `mode` is "forward", "training" (forward and backward) or "decode" (one query row against a
    cache of `keys`).
    """

    mode: str
    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    causal: bool = True
    dtype: str = "float32"
    threads: int = 2

    @property
    def name(self) -> str:
        causal = "causal" if self.causal else "full"
        lengths = f"{self.queries}x{self.keys}" if self.mode == DECODE else f"{self.queries}"
        return (
            f"{self.mode}-{causal}-{self.dtype}-"
            f"b{self.batch}h{self.heads}s{lengths}d{self.head_dim}t{self.threads}"
        )

    @property
    def slopes(self) -> np.ndarray:
        """2^(-8 i / n), i = 1..n: the paper's slopes for a power of two."""
        return 2.0 ** (-8.0 * np.arange(1, self.heads + 1) / self.heads)

    @property
    def scale(self) -> float:
        return float(self.head_dim) ** -0.5

    @property
    def flops(self) -> float:
        """Floating-point operations of the dense computation: 2 products forward, 7 with the
        backward.

        Two operations per multiply-add; a causal square counts half its pairs. Softmax is not
        counted.
        """
        products = 7 if self.mode == TRAINING else 2
        pairs = self.queries * self.keys / (2 if self.causal and self.queries > 1 else 1)
        return 2.0 * products * self.batch * self.heads * pairs * self.head_dim

    @property
    def cache_bytes(self) -> float:
        """Bytes of K and V that a decode step has to read."""
        size = 4 if self.dtype == "float32" else 2
        return 2.0 * self.batch * self.heads * self.keys * self.head_dim * size

    def inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """q, k, v and dout [B, H, S, D] as float32, rounded to `dtype` so that every provider sees
        one input.
        """
        rng = np.random.default_rng(seed)

        def draw(length: int) -> np.ndarray:
            shape = (self.batch, self.heads, length, self.head_dim)
            return rng.standard_normal(shape, dtype=np.float32)

        q, k, v, dout = (
            draw(self.queries),
            draw(self.keys),
            draw(self.keys),
            draw(self.queries),
        )
        return {
            n: round_to(a, self.dtype)
            for n, a in zip(("q", "k", "v", "dout"), (q, k, v, dout), strict=True)
        }


def numpy_dtype(name: str) -> type:
    if name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return {"float32": np.float32, "float16": np.float16}[name]


def round_to(array: np.ndarray, dtype: str) -> np.ndarray:
    """`array` rounded to `dtype`, still stored as float32."""
    return array.astype(numpy_dtype(dtype), copy=False).astype(np.float32, copy=False)


COLUMNS = (
    (1, 8, 512, 32),
    (8, 8, 256, 32),
    (1, 16, 1024, 64),
    (1, 32, 2048, 64),
    (1, 32, 2048, 128),
    (1, 8, 8192, 64),
)


def square(mode: str, dtype: str = "float32", causal: bool = True) -> list[Case]:
    return [Case(mode, b, h, s, s, d, causal, dtype) for b, h, s, d in COLUMNS]


SUITES: dict[str, list[Case]] = {
    "forward": square(FORWARD),
    "forward-full": square(FORWARD, causal=False),
    "forward-bfloat16": square(FORWARD, "bfloat16"),
    "forward-float16": square(FORWARD, "float16"),
    "training": square(TRAINING),
    "training-bfloat16": square(TRAINING, "bfloat16"),
    "decode": [
        Case(DECODE, 1, 32, 1, n, 128, True, dtype)
        for dtype in ("float32", "bfloat16", "float16")
        for n in (2048, 8192, 32768)
    ],
    "threads": [
        Case(FORWARD, 1, 16, 1024, 1024, 64, threads=1),
        Case(FORWARD, 1, 16, 1024, 1024, 64, threads=2),
        Case(TRAINING, 1, 16, 1024, 1024, 64, threads=1),
        Case(TRAINING, 1, 16, 1024, 1024, 64, threads=2),
    ],
    "small": [Case(FORWARD, 1, 1, 16, 16, 32), Case(TRAINING, 1, 1, 16, 16, 32)],
    "growth": [
        Case(FORWARD, 1, 8, s, s, 64) for s in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    ],
    "growth-decode": [Case(DECODE, 1, 32, 1, n, 128) for n in (512, 2048, 8192, 32768, 65536)],
}
