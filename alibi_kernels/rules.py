"""Every rule that a call must keep, with the exception and the words for breaking it.

The part of a rule's name before the dot is the lower-case name of the status code with which
csrc/alibi_attention.h refuses the same mistake; where C has no such code, it is the argument. A
message says what is wrong, what came, what was expected, and what to do.
"""

from __future__ import annotations

from typing import Any

_MATCH = (
    "{name} has {axis} {got} but {other} has {want} ({name}.shape = {shape}, "
    'input_layout="{layout}"); {names} must have the same {axis}.'
)
_CHOICE = "{name} must be one of {choices}; got {got}."

# name -> (exception, message). Every message is preceded by the name of the operator.
RULES: dict[str, tuple[type[Exception], str]] = {
    # Reported by a kernel library, which knows no Python names.
    "null_pointer": (
        ValueError,
        "the kernel received a null pointer; pass every pointer that csrc/alibi_attention.h does "
        "not mark as optional.",
    ),
    "shape": (
        ValueError,
        "the kernel received a size that is negative or too large to index; pass the sizes of the "
        "tensors.",
    ),
    "dtype": (
        TypeError,
        "the kernel received an unknown dtype code; pass float32, float16 or bfloat16.",
    ),
    "head_groups": (
        ValueError,
        "the kernel received query heads that are not a multiple of the key heads; pass k and v "
        "with a number of heads that divides that of q.",
    ),
    "head_dim": (
        ValueError,
        "the kernel received a head_dim that it does not take; pass 1 to 256, or use "
        'backend="reference".',
    ),
    "bias": (
        ValueError,
        'the kernel received an unknown bias code; pass bias="symmetric" or bias="signed".',
    ),
    "scale": (ValueError, "the kernel received a scale that is not finite; pass a finite float32."),
    "spans": (
        ValueError,
        "spans are out of range: every row (kv_start, kv_end, q_start) needs "
        "0 <= kv_start <= kv_end <= length of k, and q_start >= 0 when causal=True; correct the "
        "values.",
    ),
    "unsupported": (
        NotImplementedError,
        "the kernel library does not support window, segments or dropout; leave them off.",
    ),
    "isa": (
        RuntimeError,
        "the requested CPU instruction set is unknown, not built, or not available on this CPU; "
        "unset ALIBI_CPU_ISA, or pick one that `python -m alibi_kernels.info` lists as available.",
    ),
    "out_of_memory": (
        MemoryError,
        "scratch memory could not be allocated; use a smaller batch or fewer threads.",
    ),
    "device": (
        RuntimeError,
        "the accelerator reported an error or is not present; see `python -m alibi_kernels.info`, "
        'or use backend="reference".',
    ),
    # Checked in Python, before anything runs.
    "tensor.type": (TypeError, "{name} must be a {expected}, got {got}; convert it first."),
    "shape.rank": (
        ValueError,
        '{name} must have 4 axes {axes} for input_layout="{layout}", but {name}.shape = {shape}; '
        "reshape it to one axis each.",
    ),
    "shape.batch": (ValueError, _MATCH),
    "shape.length": (ValueError, _MATCH),
    "shape.heads": (ValueError, _MATCH),
    "head_dim.match": (ValueError, _MATCH),
    "head_dim.zero": (
        ValueError,
        "{name} has head_dim 0 ({name}.shape = {shape}); head_dim must be at least 1.",
    ),
    "head_groups.divide": (
        ValueError,
        "q has {heads_q} heads and k has {heads_kv} (q.shape = {q_shape}, k.shape = {k_shape}, "
        'input_layout="{layout}"); the heads of q must be a positive multiple of the heads of k. '
        'If heads and length stand the other way round, pass input_layout="{other_layout}".',
    ),
    "dtype.unsupported": (
        TypeError,
        "{name} has dtype {got}; {names} must be float32, float16 or bfloat16. Cast {name} first.",
    ),
    "dtype.match": (
        TypeError,
        "{name} has dtype {got} but q has {want}; {names} must have the same dtype. Cast {name} "
        "to {want} first.",
    ),
    "packed.shape": (
        ValueError,
        "packed must have shape (batch, length, 3, heads, head_dim), but packed.shape = {shape}; "
        "reshape the output of the fused projection.",
    ),
    "slopes.type": (
        TypeError,
        "slopes must be a float32 Tensor, or a flat list, tuple or NumPy array of numbers, one per "
        "query head; got {got}. alibi_slopes(num_heads) makes them.",
    ),
    "slopes.shape": (
        ValueError,
        "slopes must have shape ({heads},), one slope per query head, but slopes.shape = {shape}; "
        "slopes are never broadcast. alibi_slopes({heads}) makes them.",
    ),
    "slopes.dtype": (
        TypeError,
        "slopes has dtype {got}; it must be float32 whatever the dtype of q, because the bias of "
        "distant keys needs the digits. Keep slopes in float32; alibi_kernels.TrainedSlopes keeps "
        "trained ones so in mixed precision.",
    ),
    "slopes.finite": (
        ValueError,
        "slopes[{index}] is {got}; every slope must be a finite float32 number. Check where the "
        "slopes come from.",
    ),
    "scale.type": (
        TypeError,
        "scale must be a real number or None (= head_dim ** -0.5), got {got}; pass a float.",
    ),
    "scale.finite": (
        ValueError,
        "scale must be a finite float32 number, got {got}; pass None for head_dim ** -0.5.",
    ),
    "bias.choice": (ValueError, _CHOICE),
    "input_layout.choice": (ValueError, _CHOICE),
    "backend.choice": (ValueError, _CHOICE + " Pass None to have it chosen."),
    "backend.cannot": (
        RuntimeError,
        'backend "{backend}" cannot run this call: {reasons}. Pass backend=None (and unset '
        "ALIBI_BACKEND) to have one chosen that can.",
    ),
    "backend.lse_gradient": (
        RuntimeError,
        "backend ascend_builtin computes no gradient through lse; leave lse out of the loss, "
        'install the op package of csrc/ascend, or pass backend="reference".',
    ),
    "order.choice": (ValueError, _CHOICE),
    "kind.choice": (ValueError, _CHOICE),
    "flag.type": (TypeError, "{name} must be True or False, got {got}."),
    "spans.shape": (
        ValueError,
        "spans must have shape ({batch}, 3), a row (kv_start, kv_end, q_start) per batch item, but "
        "spans.shape = {shape}; spans are never broadcast.",
    ),
    "spans.mask": (
        TypeError,
        "spans has dtype bool, but spans are not a mask: pass int32 of shape (batch, 3), a row "
        "(kv_start, kv_end, q_start) per batch item, such as (0, n, 0) for n tokens padded on the "
        "right.",
    ),
    "spans.dtype": (TypeError, "spans has dtype {got}; it must be int32. Cast it first."),
    "spans.range": (
        ValueError,
        "spans[{index}] = {got}, but 0 <= kv_start <= kv_end <= {len_k} (the length of k) must "
        "hold; correct kv_start and kv_end.",
    ),
    "spans.q_start": (
        ValueError,
        "spans[{index}] = {got} has q_start {q_start}, but q_start must be at least 0 when "
        "causal=True: rows before the first key would see nothing. Correct it, or drop those rows.",
    ),
    "spans.needed": (
        ValueError,
        "q has length {len_q} but k only {len_k}, and causal=True without spans aligns the last "
        "query with the last key, so that the first {missing} queries would see nothing; pass "
        "spans with rows (kv_start, kv_end, q_start) to say where the queries are.",
    ),
    "key_norms.shape": (
        ValueError,
        "key_norms must have shape ({want}), one norm per batch item, key head and 16 keys, but "
        "key_norms.shape = {shape}; key_norms(k) makes them.",
    ),
    "norms.shape": (
        ValueError,
        "norms must have shape {want}, a norm for every 16 positions that the keys reach, but "
        "norms.shape = {shape}; pass None to have them allocated.",
    ),
    "norms.dtype": (
        TypeError,
        "{name} has dtype {got}; it must be float32, because a norm that was rounded may be less "
        "than a key's. Keep what key_norms() returns.",
    ),
    "num_heads.type": (TypeError, "num_heads must be an integer, got {got}."),
    "num_heads.range": (ValueError, "num_heads must be at least 1, got {got}."),
    "max_bias.type": (TypeError, "max_bias must be a real number, got {got}."),
    "max_bias.range": (ValueError, "max_bias must be finite and above 0, got {got}."),
    # Checked by alibi_kernels.native: what only arrays in memory can break.
    "array.shape": (ValueError, "{name} must have shape {want}, but {name}.shape = {shape}."),
    "array.dtype": (
        TypeError,
        "{name} has dtype {got}; it must be {want}. Cast {name} first.",
    ),
    "array.strides": (
        ValueError,
        "{name} has strides of {strides} bytes for elements of {itemsize}; its last axis must be "
        "contiguous, and its elements aligned. Pass numpy.ascontiguousarray({name}).",
    ),
    "array.contiguous": (
        ValueError,
        "{name} must be C-contiguous to be written to, but {name}.strides = {strides}.",
    ),
    "array.readonly": (ValueError, "{name} is read-only; pass an array that can be written to."),
    # Checked by layer_norm and bias_gelu, on tensors and on arrays.
    "rows.rank": (
        ValueError,
        "x must have at least one axis, of at least one element, but x.shape = {shape}; reshape "
        "it, or leave an empty last axis out.",
    ),
    "rows.vector": (
        ValueError,
        "{name} must have shape ({width},), one number per element of the last axis of x (x.shape "
        "= {x_shape}), but {name}.shape = {shape}; pass one of that length.",
    ),
    "rows.contiguous": (
        ValueError,
        "{name} must be C-contiguous, but {name}.strides = {strides}; pass "
        "numpy.ascontiguousarray({name}).",
    ),
    "epsilon.range": (
        ValueError,
        "epsilon must be a finite number of at least 0, got {got}; pass one such as 1e-5.",
    ),
    "start.range": (ValueError, "start must be an integer of at least 0, got {got}."),
    "start.norms": (
        ValueError,
        "start is a Tensor and norms is None, so that nothing says how many norms there are; pass "
        "norms, or an integer as start.",
    ),
    "start.dtype": (TypeError, "start has dtype {got}; it must be int32. Cast it first."),
    "start.shape": (
        ValueError,
        "start must have shape ({batch},), one position per batch item, but start.shape = {shape}.",
    ),
    "start.reach": (
        ValueError,
        "start[{index}] is {got}, but {keys} keys that have norms can start at 0 to {last}; "
        "correct it, or keep more norms.",
    ),
    "results.length": (
        ValueError,
        "{name} must be a tuple of {want} arrays or None, {names}; got {got}. Pass None to have "
        "them allocated.",
    ),
    "threads.range": (
        ValueError,
        "threads must be an integer of at least 1, or None for the OpenMP default; got {got}.",
    ),
    "isa.choice": (
        ValueError,
        "isa must be None or one of {choices}, the instruction sets that this CPU and this library "
        "share; got {got}.",
    ),
}


def error(rule: str, op: str, **fields: Any) -> Exception:
    """The exception of a rule, ready to be raised; `op` is the function that the user called."""
    kind, text = RULES[rule]
    return kind(f"{op}: {text.format(**fields)}")
