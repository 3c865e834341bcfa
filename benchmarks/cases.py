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
    cache of `keys`). `heads_kv` is the number of key/value heads that the query heads share; None:
    each has its own. `lengths` are the tokens of each batch item, behind which it is padded; None:
    all have `keys`. Outputs of padding do not count, and no gradient arrives there.
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
    heads_kv: int | None = None
    lengths: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        causal = "causal" if self.causal else "full"
        lengths = f"{self.queries}x{self.keys}" if self.mode == DECODE else f"{self.queries}"
        heads = f"{self.heads}" if self.heads_kv is None else f"{self.heads}over{self.heads_kv}"
        return (
            f"{self.mode}-{causal}-{self.dtype}-"
            f"b{self.batch}h{heads}s{lengths}d{self.head_dim}t{self.threads}"
        ) + ("" if self.lengths is None else "-padded")

    @property
    def key_heads(self) -> int:
        return self.heads_kv or self.heads

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.key_heads

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
        counted, and nothing of padding.
        """
        products = 7 if self.mode == TRAINING else 2
        pairs = self.batch * self.queries * self.keys
        if self.lengths is not None:
            pairs = sum(n * n for n in self.lengths)
        if self.causal and self.queries > 1:
            pairs /= 2
        return 2.0 * products * self.heads * pairs * self.head_dim

    @property
    def spans(self) -> np.ndarray | None:
        """(first key, end, position of query row 0) of each batch item; None: nothing is padded."""
        if self.lengths is None:
            return None
        return np.array([(0, length, 0) for length in self.lengths], np.int32)

    @property
    def cache_bytes(self) -> float:
        """Bytes of K and V that a decode step has to read."""
        size = 4 if self.dtype == "float32" else 2
        return 2.0 * self.batch * self.key_heads * self.keys * self.head_dim * size

    def inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """q, k, v and dout [B, H, S, D] as float32, rounded to `dtype` so that every provider sees
        one input.
        """
        rng = np.random.default_rng(seed)

        def draw(heads: int, length: int) -> np.ndarray:
            shape = (self.batch, heads, length, self.head_dim)
            return rng.standard_normal(shape, dtype=np.float32)

        q, k, v, dout = (
            draw(self.heads, self.queries),
            draw(self.key_heads, self.keys),
            draw(self.key_heads, self.keys),
            draw(self.heads, self.queries),
        )
        for item, length in enumerate(self.lengths or ()):
            dout[item, :, length:] = 0
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


# Of the tokens 56% and 63% are no padding.
LENGTHS = {
    (8, 8, 512, 64): (320, 512, 64, 448, 128, 384, 192, 256),
    (4, 16, 1024, 64): (768, 1024, 256, 512),
}
# Query heads that share key heads: four each, as in many language models, and all.
GROUPED = [
    Case(mode, 1, h, s, s, d, True, dtype, heads_kv=heads_kv)
    for mode, dtype in ((FORWARD, "float32"), (TRAINING, "float32"), (TRAINING, "bfloat16"))
    for h, heads_kv, s, d in ((32, 8, 2048, 128), (16, 1, 1024, 64))
]
PADDED = [
    Case(mode, b, h, s, s, d, True, dtype, lengths=lengths)
    for mode, dtype in ((FORWARD, "float32"), (FORWARD, "bfloat16"), (TRAINING, "float32"))
    for (b, h, s, d), lengths in LENGTHS.items()
]


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
    "decode-grouped": [
        Case(DECODE, 1, 32, 1, n, 128, True, dtype, heads_kv=8)
        for dtype in ("float32", "bfloat16", "float16")
        for n in (2048, 8192, 32768)
    ],
    "grouped": GROUPED,
    "padded": PADDED,
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
