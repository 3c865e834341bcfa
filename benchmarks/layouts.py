"""Our kernels on the three layouts they read in place: BNSD, BSND and a packed projection; and a
packed projection with spans, which say that nothing is padding: what a padded batch pays for it.

Results and gradients are written to arrays that exist, in the layout of the inputs, so that
nothing but the strides differs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from cases import DECODE, FORWARD, TRAINING, Case, square
from providers import Arrays, Prepared, Provider

Tensors = dict[str, np.ndarray]


def _prepare(
    case: Case, tensors: Tensors, layout: str, prune: bool, spans: np.ndarray | None = None
) -> Prepared:
    """A call on q, k, v, dout, and out, dq, dk, dv to write to; all of them views in `layout`."""
    from alibi_kernels import native

    slopes = case.slopes.astype(np.float32)
    options: dict[str, Any] = {
        "causal": case.causal,
        "prune": prune,
        "threads": case.threads,
        "input_layout": layout,
        "spans": spans,
    }
    inputs = tuple(tensors[n] for n in ("q", "k", "v"))
    lse = np.empty((case.batch, case.heads, case.queries), np.float32)
    grads = (*(tensors[n] for n in ("dq", "dk", "dv")), np.empty(case.heads, np.float32))

    def forward() -> object:
        return native.attention_forward(*inputs, slopes, out=(tensors["out"], lse), **options)

    def training() -> object:
        forward()
        return native.attention_backward(
            *inputs, slopes, tensors["out"], lse, tensors["dout"], grads=grads, **options
        )

    run = training if case.mode == TRAINING else forward
    names = ("out", "dq", "dk", "dv") if case.mode == TRAINING else ("out",)

    def outputs() -> Arrays:
        run()
        swap = layout == "BSND"
        return {n: np.swapaxes(tensors[n], 1, 2) if swap else tensors[n] for n in names}

    return Prepared(run, outputs)


def bnsd(case: Case, inputs: Arrays, *, prune: bool = False) -> Prepared:
    """[B, H, S, D] each."""
    results = {n: np.empty_like(inputs["q"]) for n in ("out", "dq", "dk", "dv")}
    return _prepare(case, inputs | results, "BNSD", prune)


def bsnd(case: Case, inputs: Arrays, *, prune: bool = False) -> Prepared:
    """[B, S, H, D] each."""
    moved = {n: np.ascontiguousarray(np.swapaxes(a, 1, 2)) for n, a in inputs.items()}
    results = {n: np.empty_like(moved["q"]) for n in ("out", "dq", "dk", "dv")}
    return _prepare(case, moved | results, "BSND", prune)


def packed(
    case: Case, inputs: Arrays, *, prune: bool = False, with_spans: bool = False
) -> Prepared:
    """Thirds of one [B, S, 3, H, D] array in the model's order; the gradients too."""
    order = "kqv"
    thirds = np.stack([np.swapaxes(inputs[n], 1, 2) for n in order], axis=2)
    gradients = np.empty_like(thirds)
    tensors = {n: thirds[:, :, i] for i, n in enumerate(order)}
    tensors |= {f"d{n}": gradients[:, :, i] for i, n in enumerate(order)}
    tensors["dout"] = np.ascontiguousarray(np.swapaxes(inputs["dout"], 1, 2))
    tensors["out"] = np.empty_like(tensors["dout"])
    spans = np.array([(0, case.keys, 0)] * case.batch, np.int32) if with_spans else None
    return _prepare(case, tensors, "BSND", prune, spans)


def _reads_any(case: Case) -> list[str]:
    return []


def _same_tokens(case: Case) -> list[str]:
    return [] if case.queries == case.keys else ["queries and keys are of the same tokens"]


BNSD = "BNSD"
CASES = [*square(FORWARD), *square(TRAINING), Case(DECODE, 1, 32, 1, 8192, 128)]
PROVIDERS = [
    Provider(name, "ours", "alibi_kernels.native", prepare, unsupported, note)
    for name, prepare, unsupported, note in (
        (BNSD, bnsd, _reads_any, "[B, H, S, D]"),
        ("BSND", bsnd, _reads_any, "[B, S, H, D]"),
        ("packed", packed, _same_tokens, "thirds of [B, S, 3, H, D]"),
        ("packed, spans", partial(packed, with_spans=True), _same_tokens, "of the whole length"),
    )
]
