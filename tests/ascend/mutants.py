"""Defects planted in the kernels one at a time, to show that the tests would see them.

Each row: a name, the file under csrc/ascend, the text to replace (it must occur exactly once; white
space does not count) and its replacement. `harmless` says why a mutant changes nothing that a test
could or should see.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.cases import Case


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    harmless: str = ""


# Small problems that between them reach every branch of the kernels.
PROBES = (
    Case("causal", 1, 2, 1, 140, 140, 40),
    Case("full", 1, 2, 2, 130, 333, 72, causal=False),
    Case("few-keys-wide-heads", 2, 1, 1, 3, 20, 200),
    Case("decode", 2, 6, 2, 1, 300, 64),
    Case("decode-before-the-keys", 1, 4, 2, 1, 200, 8, spans=((100, 200, 50),)),
    Case("decode-single-head", 1, 1, 1, 1, 300, 64),
    Case("spans", 2, 4, 2, 70, 290, 16, spans=((140, 285, 100), (3, 3, 220)), layout="BSND"),
    Case("span-inside-a-block", 1, 1, 1, 3, 60, 40, spans=((9, 14, 11),)),
    Case("after-the-keys", 1, 1, 1, 4, 200, 16, spans=((0, 200, 500),)),
    Case("keys-ahead", 1, 1, 1, 20, 300, 16, causal=False, spans=((0, 300, 0),)),
    Case("one-row-in-the-last-tile", 1, 1, 1, 129, 129, 16),
    Case("many-tiles", 1, 1, 1, 129, 900, 144),
    Case("split-keys", 1, 2, 1, 1, 700, 24),
    Case("split-keys-many-rows", 1, 1, 1, 100, 700, 24, causal=False),
)

FWD = "op_kernel/attention_fwd.h"
BIAS = "op_kernel/bias_mask.h"
CUBE = "op_kernel/cube_unit.h"
ROWS = "op_kernel/row_ops.h"
SOFTMAX = "op_kernel/softmax_rows.h"
TASKS = "op_kernel/tasks.h"
GRAD = "op_kernel/attention_grad.h"
GVEC = "op_kernel/attention_grad_vector.h"
GROWS = "op_kernel/grad_rows.h"
PAIRS = "op_kernel/tile_pairs.h"
WEIGHTS = "op_kernel/weights_fwd.h"
WGRAD = "op_kernel/weights_grad.h"
