"""Mistakes in what the Hopper backward kernel computes, which the model must catch; see
tests.cuda.mutants."""

from __future__ import annotations

from tests.cuda.mutants_hopper_backward import (
    GRADS_DONE,
    LAST_PIECE_DONE,
    copies,
    ends,
    kernel,
    launch,
    matrix,
    output,
)

S_DONE = "      products_wait<1>();\n    }\n    pin_registers(s[0]);"
FIRST_S_DONE = "products_wait<0>();\n    } else {"
DP_DONE = "products_wait<1>();\n    pin_registers(dp[0]);"
DS = "store_scores(part);\n    fence_async_proxy();"
PIECE_DONE = "products_wait<1>();\n      hand_over_piece"

COVERED = "covering_tiles(keys, kTile.rows())"
REACHES = f"[x] = {COVERED};"


def _reach(begin: int, end: int) -> str:
    return f"[x] = {{{COVERED}.begin + {begin}, {COVERED}.end + {end}}};"


REACH = (
    ends("reach ends one tile early", REACHES, _reach(0, -1)),
    ends("reach ends one tile late", REACHES, _reach(0, 1)),
    ends("reach begins one tile late", REACHES, _reach(1, 0)),
    ends("the first tile in reach left out", "begin > key_tile ||", "begin >= key_tile ||"),
    ends("the last tile in reach left out", "end <= key_tile)", "end - 1 <= key_tile)"),
    ends("the first 32 pairs only", "pair < count; pair", "pair < least(count, 1); pair"),
    ends(
        "every lane walks for itself",
        "found = least(found, __shfl_xor_sync(kAllLanes, found, step));",
        "__syncwarp();",
    ),
    ends(
        "reach of the first warp's rows only", "warp < kDescribeWarps; ++warp", "warp < 1; ++warp"
    ),
    ends("reach read before it is there", "  __syncthreads();\n"),
    ends("reach of one row only", "      if (bounded) {", "      if (bounded && column == 0) {"),
    ends(
        "pairs from the first rows, turns as they are",
        "tiles.end - 1 - pair / group",
        "tiles.begin + pair / group",
        equal="blocks run one after another on the model: none waits; on a GPU some would",
    ),
    ends(
        "the heads of a group exchanged",
        "first + pair % group * query_tiles",
        "first + (group - 1 - pair % group) * query_tiles",
    ),
    copies("rows of the first tile", "task.walk.tile(pair) * kColumns", "0"),
    ends("log-sum-exp in base e", "lse * kLog2E", "lse"),
    ends("delta left out", "stats[kColumns + column] = delta;", "stats[kColumns + column] = 0.0f;"),
    ends("delta without that of lse", "sums[u] - given.dlse[index]", "sums[u]"),
    ends(
        "rows that do not exist left as they were",
        "if (split.lane != 0) continue;",
        "if (split.lane != 0 || row >= end) continue;",
    ),
)

PRODUCTS = (
    kernel("no fence before S", "    products_fence();\n"),
    kernel("no fence before dV", "    products_fence();\n", nth=1),
    kernel("no fence before dQ", "    products_fence();\n", nth=2),
    kernel("S read before its wait", S_DONE, S_DONE.replace("<1>", "<2>")),
    kernel("dP read before its wait", DP_DONE, DP_DONE.replace("<1>", "<2>")),
    kernel(
        "S of the first pair read before its wait", FIRST_S_DONE, FIRST_S_DONE.replace("<0>", "<1>")
    ),
    kernel("dQ read before its wait", PIECE_DONE, PIECE_DONE.replace("<1>", "<2>")),
    kernel(
        "the last dQ read before its wait", LAST_PIECE_DONE, LAST_PIECE_DONE.replace("<0>", "<1>")
    ),
    kernel("dK read before its wait", GRADS_DONE, GRADS_DONE.replace("<0>", "<1>")),
    kernel("S and dP in one group", "    products_commit();\n"),
    kernel("dS fenced before it is stored", DS, "\n    ".join(reversed(DS.split("\n    ")))),
    kernel("dV from dS", "(part, 1, dv[0], p)", "(part, 1, dv[0], ds)"),
    kernel("dK from dO", "(kParts - 1, 0, dk[0], ds)", "(kParts - 1, 1, dk[0], ds)"),
    kernel("dK of the first part left out", "start_sum_of(part, 0, dk[0], ds);", ";"),
    kernel("dK of the last part twice the first", "(kParts - 1, 0,", "(0, 0,"),
    kernel("dP from K", "(part, 1, dp[0])", "(part, 0, dp[0])"),
    kernel("dP of the rows of K in registers", "which == 0 ? k_rows : v_rows", "k_rows"),
    kernel("the first 64 keys for all, in registers", "= 64 * group + warp_id()", "= warp_id()"),
    kernel(
        "the first 64 keys for all",
        "own(tasks, which) + group * kPanelBytes<64>",
        "own(tasks, which)",
    ),
    kernel("the first 64 rows for all parts", "+ part * kPanelBytes<64>;", ";"),
    kernel("dS of both groups in one place", "row = 64 * group + warp", "row = warp", nth=1),
    kernel("dS not swizzled", "at ^ static_cast<uint32_t>", "at + static_cast<uint32_t>"),
    kernel("dS of all parts in one panel", "part * kPanelBytes<kRows> +", "0 * part +"),
    kernel("dQ of the first rows for all", "+ group / kColumnPieces * kPanel;", ";"),
    kernel(
        "dQ of the first columns for all",
        "own(tasks, 0) + group % kColumnPieces * kPanel",
        "own(tasks, 0)",
    ),
    kernel("dQ of half the keys", "k < kRows / 16; ++k", "k < kRows / 32; ++k"),
    kernel("dQ added to the old one", "k != 0, T{});", "true, T{});"),
    kernel("dQ from dS as it is", "multiply_shared<true, true>", "multiply_shared<false, true>"),
    matrix("held: k step of 64 bytes", "k % 4 * 32)", "k % 4 * 64)"),
    matrix("held: K not swizzled", "(piece ^ line % 8) * 16", "piece * 16"),
    kernel("dk without the scale", "dk[0], params.problem.scale);", "dk[0], 1.0f);"),
    output("rows of gradients past the end are stored", "if (row < end) *", "*"),
    output(
        "rows 8 apart with one factor",
        "* factors[i]",
        "* factors[0]",
        equal="the backward pass has one",
    ),
)

SCORES = (
    kernel("edges taken for plain", "all_allowed(head.span, queries, keys, head.causal) &&", ""),
    kernel("the diagonal taken for plain", "(side != 0 || !head.symmetric)", "true"),
    kernel("right side taken for the left one", "head.symmetric && side > 0 ?", "false ?"),
    kernel("plain: one row off", "(8 * t + e % 2)", "(8 * t + e % 2 + 1)"),
    kernel("plain: keys 8 apart taken for one", "(row0 + 8 * i + lane_id()", "(row0 + lane_id()"),
    kernel("statistics of the first part for all", "column = 64 * part + 8 * t", "column = 8 * t"),
    kernel("delta of the wrong rows", "dp[0][t][e] - delta[e % 2]", "dp[0][t][e] - delta[e / 2]"),
    kernel(
        "keys of the wrong warp",
        "64 * group + warp_id() % 4 * 16;\n      set_zero",
        "64 * group + (warp_id() + 1) % 4 * 16;\n      set_zero",
    ),
)

ADDED = "add_float(params.slope_parts + int64_t{note().sequence()} * warps + row0 / 16, share);"

SLOPES = (
    kernel(
        "parts stored, not added",
        ADDED,
        ADDED.replace("add_float(params.slope_parts + ", "params.slope_parts[").replace(
            ", share);", "] = share;"
        ),
    ),
    kernel("parts of all warps in one place", "* warps + row0 / 16, share)", "* warps, share)"),
    kernel("every lane adds", "    if (lane_id() == 0)\n      add_float", "      add_float"),
    copies("parts of the wrong head", "head * problem.batch + batch", "head + batch"),
    launch("parts not cleared", "if (params.slope_parts != nullptr) {", "if (false) {"),
    kernel("distances of the next part", "(c / 2 * 8 + c % 2)", "(c / 2 * 8 + c % 2 + 64)"),
)

FINISH = (
    ends("dq of rows that nobody worked on", "if (!params.reaches[index].empty())", "if (true)"),
    ends("dq without the scale", "(four.word[i]) * problem.scale", "(four.word[i])"),
    ends("dq: rows 8 apart exchanged", "x[i / 2][2 * lane", "x[1 - i / 2][2 * lane"),
    ends("dq: rows past the end are stored", "if (row >= problem.len_q) continue;"),
    ends("dq: columns of the first piece", "group % kColumnPieces * 64 +", "0 +"),
    ends("dq: rows of the first piece", "+ group / kColumnPieces * 64", ""),
    ends("dq: stored 16 bytes at a time wherever it lies", "if (grad.aligned) {", "if (true) {"),
    ends("dq: one element left out", "i < 8; ++i) from_float", "i < 7; ++i) from_float"),
)

MUTANTS = REACH + PRODUCTS + SCORES + SLOPES + FINISH
