"""Every rule of the contract is broken on purpose; the exact words are the expectation."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from alibi_kernels import contract
from alibi_kernels.contract import RULES, Spec
from tests.test_contract import K, Q, attention, packed, reshaped, statuses, weights

Reject = tuple[str, Callable[[], Any], str]

# (rule, a call that breaks it, the message without the name of the operator)
REJECTED: list[Reject] = [
    (
        "tensor.type",
        lambda: contract.require_type("q", [[1.0]], np.ndarray, op="alibi_attention"),
        "q must be a numpy.ndarray, got [[1.0]] (list); convert it first.",
    ),
    (
        "tensor.type",
        lambda: contract.require_type("k", np.zeros((2, 3)), Fraction, op="alibi_attention"),
        "k must be a fractions.Fraction, got a ndarray of shape (2, 3); convert it first.",
    ),
    (
        "shape.rank",
        lambda: attention(reshaped(Q, 8, 100, 64)),
        'q must have 4 axes (batch, heads, length, head_dim) for input_layout="BNSD", but '
        "q.shape = (8, 100, 64); reshape it to one axis each.",
    ),
    (
        "shape.rank",
        lambda: attention(k=reshaped(K, 2, 120, 4, 64, 1), input_layout="BSND"),
        'k must have 4 axes (batch, length, heads, head_dim) for input_layout="BSND", but '
        "k.shape = (2, 120, 4, 64, 1); reshape it to one axis each.",
    ),
    (
        "shape.batch",
        lambda: attention(k=reshaped(K, 1, 4, 120, 64)),
        "k has batch size 1 but q has 2 (k.shape = (1, 4, 120, 64), "
        'input_layout="BNSD"); q, k and v must have the same batch size.',
    ),
    (
        "shape.batch",
        lambda: weights(k=reshaped(K, 3, 4, 120, 64)),
        "k has batch size 3 but q has 2 (k.shape = (3, 4, 120, 64), "
        'input_layout="BNSD"); q and k must have the same batch size.',
    ),
    (
        "shape.length",
        lambda: attention(v=reshaped(K, 2, 4, 121, 64)),
        "v has length 121 but k has 120 (v.shape = (2, 4, 121, 64), "
        'input_layout="BNSD"); k and v must have the same length.',
    ),
    (
        "shape.heads",
        lambda: attention(v=reshaped(K, 2, 8, 120, 64)),
        "v has head count 8 but k has 4 (v.shape = (2, 8, 120, 64), "
        'input_layout="BNSD"); k and v must have the same head count.',
    ),
    (
        "head_dim.match",
        lambda: attention(k=reshaped(K, 2, 4, 120, 32)),
        "k has head_dim 32 but q has 64 (k.shape = (2, 4, 120, 32), "
        'input_layout="BNSD"); q, k and v must have the same head_dim.',
    ),
    (
        "head_dim.match",
        lambda: attention(v=reshaped(K, 2, 4, 120, 65)),
        "v has head_dim 65 but q has 64 (v.shape = (2, 4, 120, 65), "
        'input_layout="BNSD"); q, k and v must have the same head_dim.',
    ),
    (
        "head_dim.zero",
        lambda: attention(reshaped(Q, 2, 8, 100, 0), reshaped(K, 2, 4, 120, 0)),
        "q has head_dim 0 (q.shape = (2, 8, 100, 0)); head_dim must be at least 1.",
    ),
    (
        "head_groups.divide",
        lambda: attention(k=reshaped(K, 2, 3, 120, 64)),
        "q has 8 heads and k has 3 (q.shape = (2, 8, 100, 64), k.shape = (2, 3, 120, 64), "
        'input_layout="BNSD"); the heads of q must be a positive multiple of the heads of k. If '
        'heads and length stand the other way round, pass input_layout="BSND".',
    ),
    (
        "head_groups.divide",
        lambda: attention(k=reshaped(K, 2, 120, 0, 64), input_layout="BSND"),
        "q has 100 heads and k has 0 (q.shape = (2, 8, 100, 64), k.shape = (2, 120, 0, 64), "
        'input_layout="BSND"); the heads of q must be a positive multiple of the heads of k. If '
        'heads and length stand the other way round, pass input_layout="BNSD".',
    ),
    (
        "dtype.unsupported",
        lambda: attention(Spec(Q.shape, "float64")),
        "q has dtype float64; q, k and v must be float32, float16 or bfloat16. Cast q first.",
    ),
    (
        "dtype.unsupported",
        lambda: packed(dtype="int32"),
        "packed has dtype int32; packed must be float32, float16 or bfloat16. Cast packed first.",
    ),
    (
        "dtype.match",
        lambda: attention(v=Spec(K.shape, "float16")),
        "v has dtype float16 but q has float32; q, k and v must have the same dtype. Cast v to "
        "float32 first.",
    ),
    (
        "packed.shape",
        lambda: packed((2, 100, 8, 3, 64)),
        "packed must have shape (batch, length, 3, heads, head_dim), but packed.shape = "
        "(2, 100, 8, 3, 64); reshape the output of the fused projection.",
    ),
    (
        "slopes.type",
        lambda: contract.fixed_slopes("paper"),
        "slopes must be a float32 Tensor, or a flat list, tuple or NumPy array of numbers, one per "
        "query head; got 'paper' (str). alibi_slopes(num_heads) makes them.",
    ),
    (
        "slopes.type",
        lambda: contract.fixed_slopes(np.ones((1, 8), np.float32)),
        "slopes must be a float32 Tensor, or a flat list, tuple or NumPy array of numbers, one per "
        "query head; got a ndarray of shape (1, 8). alibi_slopes(num_heads) makes them.",
    ),
    (
        "slopes.shape",
        lambda: attention(slopes=Spec((1, 8, 1, 1), "float32")),
        "slopes must have shape (8,), one slope per query head, but slopes.shape = (1, 8, 1, 1); "
        "slopes are never broadcast. alibi_slopes(8) makes them.",
    ),
    (
        "slopes.shape",
        lambda: attention(slopes=Spec((1,), "float32")),
        "slopes must have shape (8,), one slope per query head, but slopes.shape = (1,); slopes "
        "are never broadcast. alibi_slopes(8) makes them.",
    ),
    (
        "slopes.dtype",
        lambda: attention(slopes=Spec((8,), "float16")),
        "slopes has dtype float16; it must be float32 whatever the dtype of q, because the bias of "
        "distant keys needs the digits. Keep slopes in float32; alibi_kernels.TrainedSlopes keeps "
        "trained ones so in mixed precision.",
    ),
    (
        "slopes.finite",
        lambda: contract.fixed_slopes([0.5, math.nan]),
        "slopes[1] is nan; every slope must be a finite float32 number. Check where the slopes "
        "come from.",
    ),
    (
        "slopes.finite",
        lambda: contract.validate_slopes_values([1e39]),
        "slopes[0] is 1e+39; every slope must be a finite float32 number. Check where the slopes "
        "come from.",
    ),
    (
        "scale.type",
        lambda: attention(scale="auto"),
        "scale must be a real number or None (= head_dim ** -0.5), got 'auto' (str); pass a float.",
    ),
    (
        "scale.type",
        lambda: attention(scale=[0.125]),
        "scale must be a real number or None (= head_dim ** -0.5), got [0.125] (list); pass a "
        "float.",
    ),
    (
        "scale.finite",
        lambda: attention(scale=math.inf),
        "scale must be a finite float32 number, got inf; pass None for head_dim ** -0.5.",
    ),
    (
        "scale.finite",
        lambda: weights(scale=-1e39),
        "scale must be a finite float32 number, got -1e+39; pass None for head_dim ** -0.5.",
    ),
    (
        "bias.choice",
        lambda: attention(bias="alibi"),
        'bias must be one of "symmetric", "signed"; got \'alibi\' (str).',
    ),
    (
        "bias.choice",
        lambda: attention(bias=["signed"]),
        'bias must be one of "symmetric", "signed"; got [\'signed\'] (list).',
    ),
    (
        "input_layout.choice",
        lambda: attention(input_layout="SBH"),
        'input_layout must be one of "BNSD", "BSND"; got \'SBH\' (str).',
    ),
    (
        "backend.choice",
        lambda: attention(backend="gpu"),
        'backend must be one of "cpu", "cuda", "ascend", "ascend_builtin", "reference"; got '
        "'gpu' (str). Pass None "
        "to have it chosen.",
    ),
    (
        "order.choice",
        lambda: packed(order="qqv"),
        'order must be one of "qkv", "qvk", "kqv", "kvq", "vqk", "vkq"; got \'qqv\' (str).',
    ),
    (
        "kind.choice",
        lambda: contract.check_choice("kind", "x", contract.SLOPE_KINDS, op="alibi_attention"),
        'kind must be one of "paper", "geometric"; got \'x\' (str).',
    ),
    ("flag.type", lambda: attention(causal=1), "causal must be True or False, got 1 (int)."),
    ("flag.type", lambda: attention(prune=None), "prune must be True or False, got None."),
    (
        "spans.shape",
        lambda: attention(spans=Spec((1, 3), "int32")),
        "spans must have shape (2, 3), a row (kv_start, kv_end, q_start) per batch item, but "
        "spans.shape = (1, 3); spans are never broadcast.",
    ),
    (
        # Cast, as the message for another dtype says, a mask would still not be spans.
        "spans.mask",
        lambda: attention(spans=Spec((2, 120), "bool")),
        "spans has dtype bool, but spans are not a mask: pass int32 of shape (batch, 3), a row "
        "(kv_start, kv_end, q_start) per batch item, such as (0, n, 0) for n tokens padded on the "
        "right.",
    ),
    (
        "spans.dtype",
        lambda: attention(spans=Spec((2, 3), "int64")),
        "spans has dtype int64; it must be int32. Cast it first.",
    ),
    (
        "spans.range",
        lambda: contract.validate_spans_values([(0, 9, 0), (5, 3, 0)], 9, True),
        "spans[1] = (5, 3, 0), but 0 <= kv_start <= kv_end <= 9 (the length of k) must hold; "
        "correct kv_start and kv_end.",
    ),
    (
        "spans.q_start",
        lambda: contract.validate_spans_values(np.array([[0, 4, -1]]), 9, True),
        "spans[0] = (0, 4, -1) has q_start -1, but q_start must be at least 0 when causal=True: "
        "rows before the first key would see nothing. Correct it, or drop those rows.",
    ),
    (
        "spans.needed",
        lambda: attention(reshaped(Q, 2, 8, 130, 64)),
        "q has length 130 but k only 120, and causal=True without spans aligns the last query with "
        "the last key, so that the first 10 queries would see nothing; pass spans with rows "
        "(kv_start, kv_end, q_start) to say where the queries are.",
    ),
]


@pytest.mark.parametrize(("rule", "call", "message"), REJECTED, ids=[r[0] for r in REJECTED])
def test_rejected(rule: str, call: Callable[[], Any], message: str) -> None:
    with pytest.raises(RULES[rule][0]) as caught:
        call()
    op, text = str(caught.value).split(": ", 1)
    assert text == message
    assert op in ("alibi_attention", "alibi_attention_weights", "alibi_attention_packed")
    assert caught.value.__context__ is None  # a user sees one error, not two


def test_every_python_rule_is_tested() -> None:
    tested = {rule for rule, _, _ in REJECTED}
    of_slopes = {rule for rule in RULES if rule.startswith(("num_heads.", "max_bias."))}
    # Tested with arrays, in native/test_bindings.py.
    of_arrays = {"threads.range", "isa.choice", "results.length"}
    of_arrays |= {rule for rule in RULES if rule.startswith("array.")}
    # Tested in test_layer_ops.py and native/test_layer.py.
    of_arrays |= {rule for rule in RULES if rule.startswith("rows.")} | {"epsilon.range"}
    # Tested in test_kept_norms.py and test_key_norms.py.
    of_arrays |= {rule for rule in RULES if rule.startswith(("key_norms.", "norms.", "start."))}
    of_arrays |= {"backend.cannot"}  # test_registry.py
    of_arrays |= {"backend.lse_gradient"}  # test_ascend_choice.py
    assert tested | of_slopes | of_arrays | set(statuses()) == set(RULES)
