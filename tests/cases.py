"""The only list of sizes: tests of the kernels, the bindings and the operators draw from here.

SMALL   every combination of causal, bias, layout and spans, and each special situation once
SHAPES  odd lengths, head counts and head dimensions
SHARED  few key heads for many query heads, of which the backward gives parts to threads
LONG    long sequences, for tests marked slow
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = ("float32", "float16", "bfloat16")
NUMPY_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
Span = tuple[int, int, int]  # (kv_start, kv_end, q_start)


@dataclass(frozen=True)
class Case:
    """One problem: sizes, modes and what to draw the inputs from."""

    name: str
    B: int
    Hq: int
    Hkv: int
    Sq: int
    Sk: int
    D: int
    causal: bool = True
    bias: str = "symmetric"
    layout: str = "BNSD"
    spans: tuple[Span, ...] | None = None  # one per batch item
    slopes: str = "geometric"  # a key of SLOPES
    scale: float | None = None
    magnitude: float = 1.0  # standard deviation of the elements of q and k

    def __str__(self) -> str:
        return self.name

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that all implementations share, with the scale resolved."""
        scale = float(self.D**-0.5 if self.scale is None else self.scale)
        return {
            "scale": scale,
            "causal": self.causal,
            "bias": self.bias,
            "input_layout": self.layout,
        }

    def shape(self, heads: int, length: int) -> tuple[int, int, int, int]:
        if self.layout == "BNSD":
            return (self.B, heads, length, self.D)
        return (self.B, length, heads, self.D)


@dataclass(frozen=True)
class Inputs:
    """NumPy arrays. q, k, v, dout: working dtype; slopes, dlse: float32; spans: int32 or None."""

    q: Any
    k: Any
    v: Any
    slopes: Any
    spans: Any
    dout: Any
    dlse: Any


# How slopes are drawn. Training may drive a slope anywhere, so zero, negative and mixed signs are
# ordinary inputs.
SLOPES = {
    "geometric": lambda rng, h: 2.0 ** (-8.0 * np.arange(1, h + 1) / h),
    "learned": lambda rng, h: rng.uniform(0.001, 1.0, h),
    "mixed": lambda rng, h: rng.uniform(-0.3, 0.7, h),
    "zero": lambda rng, h: np.zeros(h),
    "negative": lambda rng, h: rng.uniform(-0.2, -0.01, h),
    "steep": lambda rng, h: rng.uniform(2.0, 16.0, h),
}


def make_inputs(case: Case, dtype: str = "float32") -> Inputs:
    """Normally distributed inputs, rounded to `dtype`; the same numbers in every process."""
    rng = _generator(case, 0)
    return Inputs(
        q=_draw(rng, case.shape(case.Hq, case.Sq), dtype, case.magnitude),
        k=_draw(rng, case.shape(case.Hkv, case.Sk), dtype, case.magnitude),
        v=_draw(rng, case.shape(case.Hkv, case.Sk), dtype),
        slopes=SLOPES[case.slopes](rng, case.Hq).astype(np.float32),
        spans=None if case.spans is None else np.array(case.spans, np.int32).reshape(case.B, 3),
        dout=_draw(rng, case.shape(case.Hq, case.Sq), dtype),
        dlse=_draw(rng, (case.B, case.Hq, case.Sq), "float32"),
    )


def make_dp(case: Case, dtype: str = "float32") -> Any:
    """The gradient [B, Hq, Sq, Sk] that arrives at the weights; apart, because it is large."""
    return _draw(_generator(case, 1), (case.B, case.Hq, case.Sq, case.Sk), dtype)


def _generator(case: Case, stream: int) -> np.random.Generator:
    return np.random.default_rng([stream, case.B, case.Hq, case.Sq, case.Sk, case.D])


def _draw(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, magnitude: float = 1.0
) -> Any:
    x = np.float32(magnitude) * rng.standard_normal(shape, np.float32)
    return x.astype(NUMPY_DTYPES[dtype])


def _every_mode() -> tuple[Case, ...]:
    """Each combination of causal, bias, layout, spans; head groups, sizes, slopes take turns."""
    sizes = itertools.cycle(
        [
            (2, 2, 17, 17, 8),
            (6, 2, 5, 33, 40),
            (4, 1, 33, 21, 5),
            (3, 3, 19, 50, 32),
            (1, 1, 9, 9, 64),
        ]
    )
    slopes = itertools.cycle(["geometric", "learned", "mixed"])
    cases = []
    modes = itertools.product(
        (True, False), ("symmetric", "signed"), ("BNSD", "BSND"), (False, True)
    )
    for causal, bias, layout, with_spans in modes:
        heads_q, heads_kv, len_q, len_k, head_dim = next(sizes)
        if causal and not with_spans:
            len_k = max(len_k, len_q)
        spans = (
            ((0, len_k, max(0, len_k - len_q)), (len_k // 4, len_k - 2, 3)) if with_spans else None
        )
        name = "-".join(
            [
                "causal" if causal else "full",
                bias,
                layout,
                "spans" if with_spans else "nospans",
                f"D{head_dim}",
            ]
        )
        cases.append(
            Case(
                name,
                2,
                heads_q,
                heads_kv,
                len_q,
                len_k,
                head_dim,
                causal,
                bias,
                layout,
                spans,
                next(slopes),
            )
        )
    return tuple(cases)


SITUATIONS = (
    Case("one-token", 1, 1, 1, 1, 1, 1),
    Case("head-dim-1", 1, 2, 1, 7, 7, 1, slopes="mixed"),
    Case("left-padding", 3, 2, 2, 24, 24, 16, spans=((0, 24, 0), (5, 24, 0), (23, 24, 0))),
    Case("right-padding", 2, 2, 1, 24, 24, 16, spans=((0, 13, 0), (0, 1, 0)), slopes="learned"),
    Case("right-padding-full", 2, 2, 2, 20, 20, 8, causal=False, spans=((0, 13, 0), (3, 20, 0))),
    Case("decode", 2, 4, 2, 1, 129, 32, slopes="learned"),
    Case("cache", 2, 4, 2, 1, 64, 32, spans=((0, 17, 16), (0, 64, 63))),
    Case("cache-few-rows", 2, 4, 1, 3, 64, 16, spans=((0, 20, 17), (0, 3, 0)), layout="BSND"),
    Case("chunk", 1, 2, 2, 16, 48, 16, spans=((0, 32, 16),)),
    Case(
        "rows-after-the-keys", 2, 2, 1, 6, 20, 8, spans=((0, 20, 100), (2, 9, 30)), slopes="mixed"
    ),
    Case("rows-before-the-keys", 1, 2, 2, 12, 40, 8, spans=((30, 40, 0),)),
    Case(
        "rows-before-the-keys-full",
        2,
        2,
        2,
        12,
        40,
        8,
        causal=False,
        spans=((3, 40, -50), (0, 11, -4)),
    ),
    Case("empty-span", 2, 2, 1, 9, 9, 8, spans=((4, 4, 0), (0, 9, 0))),
    Case("empty-span-full", 2, 2, 2, 9, 14, 8, causal=False, spans=((0, 0, 5), (14, 14, 0))),
    Case("more-rows-than-keys-full", 1, 3, 1, 40, 11, 16, causal=False),
    Case("slopes-zero", 1, 2, 2, 21, 21, 16, slopes="zero"),
    Case("slopes-negative", 1, 3, 3, 30, 30, 16, slopes="negative"),
    Case(
        "slopes-negative-full", 1, 3, 1, 30, 25, 16, causal=False, bias="signed", slopes="negative"
    ),
    Case("slopes-steep", 1, 4, 4, 65, 65, 16, slopes="steep"),
    Case("scale-negative", 1, 2, 2, 15, 15, 8, scale=-0.7),
    Case("scale-zero", 1, 2, 2, 15, 15, 8, scale=0.0),
    Case("large-scores", 1, 2, 2, 40, 40, 16, magnitude=6.0, slopes="learned"),
)

SMALL = _every_mode() + SITUATIONS

SHAPES = (
    Case("3x3-D256", 2, 1, 1, 3, 3, 256),
    Case("97x97-D32", 2, 6, 6, 97, 97, 32),
    Case("129x129-D64", 1, 12, 12, 129, 129, 64, layout="BSND"),
    Case("97x129-D80", 1, 6, 3, 97, 129, 80, causal=False, slopes="learned"),
    Case("129x257-D96", 1, 6, 2, 129, 257, 96, slopes="learned"),
    Case("257x257-D128", 1, 4, 2, 257, 257, 128, causal=False, bias="signed"),
    Case("48x300-D40", 3, 12, 4, 48, 300, 40, spans=((0, 300, 252), (100, 299, 101), (0, 60, 12))),
    Case("513x513-D8", 1, 6, 1, 513, 513, 8, slopes="mixed"),
    Case("130x514-D256", 1, 1, 1, 130, 514, 256, layout="BSND"),
    Case("255x511-D5", 1, 3, 3, 255, 511, 5, causal=False, slopes="mixed"),
    Case("1x1025-D128", 2, 8, 2, 1, 1025, 128),
    Case("1025x1025-D64", 1, 2, 1, 1025, 1025, 64),
)

SHARED = (
    Case("six", 2, 6, 1, 260, 290, 24, layout="BSND", spans=((0, 290, 30), (11, 200, 0))),
    Case("uneven", 1, 5, 1, 180, 600, 128, slopes="learned"),  # parts of 1, 2 and 2; several chunks
    Case("full", 1, 8, 2, 130, 90, 17, causal=False),
)

LONG = (
    Case("1025x1025-D96-full", 2, 6, 2, 1025, 1025, 96, causal=False, layout="BSND"),
    Case("2048x2048-D128", 1, 4, 4, 2048, 2048, 128),
    Case("1000x4097-D64", 1, 6, 2, 1000, 4097, 64, spans=((17, 4096, 3000),), slopes="learned"),
    Case("4096x4096-D64", 1, 8, 8, 4096, 4096, 64),
    Case("8192x8192-D32", 1, 2, 1, 8192, 8192, 32),
    Case("1x131073-D8", 1, 2, 1, 1, 131_073, 8, slopes="learned"),
    Case("16x100003-D16", 1, 2, 1, 16, 100_003, 16, spans=((7, 100_001, 99_980),)),
)
