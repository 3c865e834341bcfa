"""Mistakes in the Hopper forward kernel that the model must catch; see tests.cuda.mutants."""

from __future__ import annotations

from functools import partial

from tests.cases import Case
from tests.cuda.mutant import Mutant

BOTH_SIDES = Case("both-sides", 1, 2, 1, 70, 600, 64, False, spans=((0, 600, 130),))
CASES = (
    (Case("causal", 1, 2, 1, 300, 700, 64, slopes="learned"), "bfloat16"),
    (Case("spans", 2, 4, 2, 140, 700, 128, spans=((37, 690, 555), (140, 420, 300))), "float16"),
    (Case("full", 1, 2, 1, 133, 650, 128, causal=False, slopes="learned"), "bfloat16"),
    (BOTH_SIDES, "float16"),
    (Case("signed", 1, 1, 1, 64, 400, 64, False, bias="signed", spans=((0, 400, 0),)), "float16"),
    (Case("sees-nothing", 1, 2, 1, 300, 600, 64, spans=((250, 590, 0),)), "float16"),
    (Case("steep", 1, 2, 1, 160, 1300, 64, slopes="steep"), "float16"),
    (Case("one-tile", 1, 1, 1, 40, 100, 64), "bfloat16"),
    (Case("causal-negative", 1, 1, 1, 130, 400, 64, slopes="negative"), "float16"),
    (Case("far-ahead", 1, 1, 1, 40, 640, 128, spans=((130, 600, 900),), slopes="steep"), "float16"),
)
SEEDS = (0, 1, 3, 5, 6)

FORWARD, MATRIX, MAP = "sm90/forward.cuh", "sm90/matrix.cuh", "sm90/tensor_map.h"
GEOMETRY = "geometry.h"

K_FULL = "barrier_wait(memory.k_full(k_place.stage), k_place.parity);"
V_FULL = "barrier_wait(memory.v_full(v_place.stage), v_place.parity);"
V_NEXT = "barrier_wait(memory.v_full(v_next.stage), v_next.parity);"
K_DONE = "products_wait<1>();\n    pin_registers(s[0]);\n    release_keys(last);"
V_DONE = (
    "products_wait<0>();\n    pin_registers(o[0]);\n    release(memory.v_empty(v_place.stage));"
)
TOGETHER = "turns keep the groups closer than a ring is long, and one of them waits for every tile"
NEXT = "start_next_scores();\n    start_next_sum();\n    turn.pass();"


def _forward(
    what: str, old: str, new: str = "", nth: int = 0, file: str = FORWARD, equal: str = ""
) -> Mutant:
    return Mutant(what, file, old, new, nth, "hopper", equal)


_matrix, _map = partial(_forward, file=MATRIX), partial(_forward, file=MAP)
_geometry = partial(_forward, file=GEOMETRY)


WAITS = (
    _forward("no wait for Q", "barrier_wait(memory.q_full(), q_place.parity);"),
    _forward(
        "Q released before all lanes know the task",
        "      __syncwarp();  // before the first lane",
        "      // before the first lane",
        equal="the model's lanes meet in the shuffles of load_task; a GPU's need not",
    ),
    _forward("Q overwritten early", "barrier_wait(memory.q_empty(), q_place.parity ^ 1);"),
    _forward("Q never released", "if (last) release(memory.q_empty());"),
    _forward("Q released by every tile", "if (last) release", "release"),
    _forward(
        "Q not released by a task without keys",
        "release(memory.q_empty());\n      } else",
        "} else",
    ),
    _forward("a task announced before its place is free", "    q_place.advance();\n"),
    _forward(
        "the last task not announced", "    announce({{0, 0, -1}, {0, 0, 0}, {0, 0}, 0.0f});\n"
    ),
    _forward("no wait for the first K", K_FULL, nth=0),
    _forward("no wait for K", K_FULL, nth=1),
    _forward("no wait for the last V", V_FULL, nth=0),
    _forward("no wait for V", V_NEXT),
    _forward(
        "a skipped K released before it has come",
        K_FULL,
        nth=2,
        equal=TOGETHER,
    ),
    _forward(
        "a skipped V released before it has come",
        V_FULL,
        nth=1,
        equal=TOGETHER,
    ),
    _forward("K overwritten early", "barrier_wait(memory.k_empty(place.stage), place.parity ^ 1);"),
    _forward("V overwritten early", "barrier_wait(memory.v_empty(place.stage), place.parity ^ 1);"),
    _forward("producer waits for the wrong phase", "place.parity ^ 1", "place.parity"),
    _forward(
        "a late lane of the producer misses a phase",
        "if (leader) {\n        barrier_wait(memory.k_empty(place.stage), place.parity ^ 1);",
        "barrier_wait(memory.k_empty(place.stage), place.parity ^ 1);\n      if (leader) {",
    ),
    _matrix("parity never changes", "parity ^= 1;"),
    _forward("edge parity never changes", "    edge_place.advance();\n"),
    _forward("S read before its wait", K_DONE, K_DONE.replace("<1>", "<2>")),
    _forward("O read before its wait", V_DONE, V_DONE.replace("<0>", "<1>")),
    _forward("the last O read before its wait", "products_wait<0>();", "products_wait<1>();", 2),
    _forward(
        "K and Q released before their products end",
        K_DONE,
        "\n".join(reversed(K_DONE.split("\n"))),
    ),
    _forward(
        "K alone released before its products end",
        K_DONE,
        "release(memory.k_empty(k_place.stage));\n"
        "products_wait<1>();\npin_registers(s[0]);\nif (last) release(memory.q_empty());\n"
        "k_place.advance();",
        equal="before K is refilled the producer waits for a V that all warps release later",
    ),
    _forward("V released before its products end", V_DONE, "\n".join(reversed(V_DONE.split("\n")))),
    _forward("K never released", "    release(memory.k_empty(k_place.stage));\n"),
    _forward("V never released", V_DONE, V_DONE.rsplit("\n", 1)[0]),
    _forward("V counted instead of K", "    k_place.advance();", "    v_place.advance();"),
    _forward(
        "the last V never released",
        "release(memory.v_empty(v_place.stage));\n    v_place.advance();",
        "v_place.advance();",
    ),
    _forward("empty counts warpgroups, not warps", "? 4 * kTile.groups : 1", "? kTile.groups : 1"),
    _forward(
        "every lane releases",
        "if (lane_id() == 0) barrier_arrive(barrier);",
        "barrier_arrive(barrier);",
    ),
)

COPIES = (
    _forward("barriers not fenced", "    barrier_init_fence();"),
    _forward("barriers used before they are ready", "  __syncthreads();\n"),
    _forward(
        "half of K expected", "k_full(place.stage), kBytes);", "k_full(place.stage), kBytes / 2);"
    ),
    _forward(
        "half of V expected",
        "barrier_arrive_expect(barrier, kBytes);",
        "barrier_arrive_expect(barrier, kBytes / 2);",
    ),
    _matrix("every panel from the first columns", "panel * kPanelColumns, row", "0, row"),
    _matrix("every panel in the same place", "tile + panel * kPanelBytes<kRows>", "tile"),
    _forward(
        "K of the wrong head",
        "key,\n                               task.kv_head",
        "key,\n                               task.place.head",
    ),
    _forward(
        "K of the first batch item",
        "key,\n                               task.kv_head, task.place.batch",
        "key,\n                               task.kv_head, 0",
    ),
    _forward(
        "Q of the wrong rows",
        "task.place.tile * kTile.rows(), task.place.head,",
        "0, task.place.head,",
    ),
    _map(
        "rows a head apart", "map_stride(len, tensor.stride_s)", "map_stride(len, tensor.stride_h)"
    ),
    _map(
        "rows beyond the tensor are read",
        "static_cast<cuuint64_t>(len)",
        "static_cast<cuuint64_t>(len + 128)",
    ),
    _forward(
        "shared memory not rounded up",
        "(shared_base() + kEightRows - 1) & ~(kEightRows - 1u)",
        "shared_base()",
    ),
    _forward("no room for rounding up", "kEightRows + kQueryBytes", "kQueryBytes"),
    _forward(
        "unseen V used as it is", "if (needs_clearing<kColumns>(key, task.keys)) {", "if (false) {"
    ),
    _matrix("rows before the valid ones kept", "first < valid.begin ||", ""),
    _matrix("last valid row cleared", "row < valid.end) continue", "row + 1 < valid.end) continue"),
    _matrix("one invalid row kept", "row < valid.end) continue", "row <= valid.end) continue"),
    _matrix("first valid row cleared", "row >= valid.begin &&", "row > valid.begin &&"),
    _forward("cleared before it has landed", "barrier_wait(memory.v_raw(), edge_place.parity);"),
    _matrix("clearing not fenced", "  fence_async_proxy();\n"),
    _matrix(
        "full before all lanes have cleared",
        "  fence_async_proxy();\n  __syncwarp();\n",
        "  fence_async_proxy();\n",
    ),
    _forward("registers not released", "release_registers<kTile.producer_registers>();"),
)

PRODUCTS = (
    _forward("no fence before the first S", "    products_fence();\n", nth=0),
    _forward("no fence before S", "    products_fence();\n", nth=1),
    _forward("no fence before the last O", "    products_fence();\n", nth=2),
    _forward("S and O in one group", "    products_commit();\n", nth=0),
    _forward("O before S", NEXT, "start_next_sum();\n    start_next_scores();\n    turn.pass();"),
    _forward("P packed while it is read", V_DONE, "pack_tile<T>(p, s[0]);\n    " + V_DONE),
    _forward("O rescaled while it is written", V_DONE, "rescale_rows(o, rescale);\n    " + V_DONE),
    _forward("O not rescaled", "    if (!same) rescale_rows(o, rescale);\n"),
    _forward(
        "O rescaled only when all lanes need it",
        "__all_sync(kAllLanes, same && counted)",
        "!__all_sync(kAllLanes, !same)",
    ),
    _forward(
        "O rescaled by each lane for itself",
        "__all_sync(kAllLanes, same && counted)",
        "same",
        equal="lanes of a row agree; the vote is for speed",
    ),
    _matrix("S added to the old one", "k != 0, T{}", "true, T{}"),
    _matrix("k step of 64 bytes", "k % 4 * 32", "k % 4 * 64"),
    _matrix("second panel of Q forgotten", "panel * kPanelBytes<kRowsA> +", "0 +"),
    _matrix("second panel of K forgotten", "panel * kPanelBytes<kRowsB> +", "0 +"),
    _matrix("512 bytes between groups of rows", "a, 16, kEightRows", "a, 16, 512"),
    _matrix(
        "V: panel stride forgotten",
        "matrix_descriptor(b, kPanelBytes<kRowsB>, kEightRows)",
        "matrix_descriptor(b, 16, kEightRows)",
    ),
    _matrix(
        "V: strides exchanged",
        "matrix_descriptor(b, kPanelBytes<kRowsB>, kEightRows)",
        "matrix_descriptor(b, kEightRows, kPanelBytes<kRowsB>)",
    ),
    _matrix("V: half a step", "k * 2 * kEightRows", "k * kEightRows"),
    _matrix("V not transposed", "multiply_held<true>", "multiply_held<false>"),
    _matrix(
        "P in the wrong order",
        "s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]",
        "s[2 * k + i % 2][i / 2 * 2], s[2 * k + i % 2][i / 2 * 2 + 1]",
    ),
    _forward(
        "both warpgroups take the first rows",
        "memory.q() + turn.group * kPanelBytes<64>",
        "memory.q()",
    ),
    _forward("first tile not packed", f"{V_FULL}\n    pack_tile<T>(p, s[0]);", V_FULL),
)

TURNS = (
    _forward(
        "turn opened by the wrong warpgroup",
        "if (group == kGroups - 1) pass();",
        "if (group == 0) pass();",
    ),
    _forward("last turn not taken", "    turn.close();\n"),
    _forward("turn never opened", "    turn.open();\n"),
    _forward("turn never passed", NEXT, NEXT.replace("turn.pass();", "")),
    _forward(
        "turn passed to oneself",
        "named_arrive(1 + (group + 1) % kGroups, 256)",
        "named_arrive(1 + group, 256)",
    ),
    _forward("turn not taken", "turn.take();", "", 1),
)

SCORES = (
    _forward(
        "diagonal tile taken for a plain one",
        "const int side = side_of_diagonal(head.span, rows, keys);",
        "const int side = -1;",
    ),
    _forward(
        "right side taken for the left one",
        "const int side = side_of_diagonal(head.span, rows, keys);",
        "const int side = -abs(side_of_diagonal(head.span, rows, keys));",
    ),
    _forward(
        "a bias that grows to the right taken for one that falls",
        "side > 0 && !head.symmetric ? 0 : side",
        "side",
    ),
    _forward(
        "edges of the span taken for plain",
        "    if (!all_allowed(head.span, rows, keys, kCausal)) return 0;\n",
    ),
    _forward("plain: one column off", "(kColumns - 7)", "(kColumns - 8)"),
    _forward("right of the diagonal: one column off", ": -(8 * t + e)", ": -(8 * t + e + 1)"),
    _forward("plain: the lane's columns left out", "lane_column - 6 :", "-6 :"),
    _forward("right of the diagonal: the lane's columns left out", ": -lane_column", ": 0"),
    _forward("maxima never move", "<= state.row_max[0][i] + kHeadroom", "<= INFINITY"),
    _forward("maxima that negative slopes exceed", " && head.slope2 >= 0.0f"),
    _forward(
        "plain: distance to the wrong key",
        "tile * kColumns + kColumns - 1 - position",
        "tile * kColumns + kColumns - position",
    ),
    _forward(
        "plain: the row's part left out",
        "state.absorb<2>(s, rescale, offset);",
        "state.absorb<2>(s, rescale);",
    ),
    _forward(
        "plain: rows 8 apart taken for one",
        "row0() + 8 * i + lane_id() / 4;",
        "row0() + lane_id() / 4;",
    ),
    _forward("rows of the wrong warp", "warp_id() % 4 * 16;", "(warp_id() + 1) % 4 * 16;"),
    _forward(
        "offset not in the shift",
        "anchor - offset[i / 2][i % 2]",
        "anchor",
        file="sm80/softmax.cuh",
    ),
    _forward("rows past the end are stored", "if (row < end) *", "*", file="sm90/output.cuh"),
    _forward(
        "sums of rows past the end are stored",
        "row < problem.len_q && lane_id()",
        "lane_id()",
        file="sm90/output.cuh",
    ),
)

REACH = (
    _forward(
        "pruning forgets the query norm",
        "score_ceiling(problem.scale, q_norm, k_norm)",
        "score_ceiling(problem.scale, 0.0f, k_norm)",
    ),
    _forward(
        "pruning forgets how near the nearest key is", "head.slope2, nearest)", "head.slope2, 0)"
    ),
    _forward(
        "reach of the last row only", "{first, last + 1}, reach)", "{last, last + 1}, reach - 160)"
    ),
    _forward(
        "walk ends one tile early",
        "tile >= tiles.begin; --tile, place",
        "tile > tiles.begin; --tile, place",
    ),
    _geometry(
        "heads of later sections forgotten",
        "return {first + static_cast<int>(rest % count)",
        "return {static_cast<int>(rest % count)",
        equal="the cases have one section; geometry_test.cc covers more",
    ),
    _geometry(
        "rounds all in one direction",
        "round % 2 == 0 ? block",
        "true ? block",
        equal="the order of tasks, and the cases have one block; geometry_test.cc covers more",
    ),
    _forward(
        "a task is not followed by another", "index < params.tasks; ++round", "round < 1; ++round"
    ),
    _forward(
        "tickets count from the first task",
        "leader ? blocks + take_ticket",
        "leader ? take_ticket",
        equal="a task done twice gives the same; it would only be slow",
    ),
    _forward(
        "one lane keeps its task", "index = __shfl_sync(kAllLanes, next, 0);", "index = next;"
    ),
    _forward(
        "rows that see a key of the tile skip it",
        "head.span.q_start + group_row + 64",
        "head.span.q_start + group_row + 32",
    ),
    _forward(
        "a skipped tile's turn not passed on",
        "    turn.take();\n    turn.pass();\n    release_keys",
        "    release_keys",
    ),
    _forward(
        "a late lane misses the phase of a skipped V",
        "    __syncwarp();  // a late lane would",
        "    // a late lane would",
    ),
    _geometry(
        "tiles from the first",
        "tiles - 1 - static_cast<int>(rest / count)}",
        "static_cast<int>(rest / count)}",
        equal="the order of blocks",
    ),
)

MUTANTS = WAITS + COPIES + PRODUCTS + TURNS + SCORES + REACH
