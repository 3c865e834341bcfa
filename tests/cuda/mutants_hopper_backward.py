"""Mistakes in the Hopper backward kernel that the model must catch; see tests.cuda.mutants."""

from __future__ import annotations

from tests.cases import Case
from tests.cuda.mutant import Mutant

# Together: rings that go round several times, heads that share a key head, rows that no tile of
# keys reaches, tiles of keys that rows of some heads do not reach, both sides of the diagonal.
CASES = (
    (Case("causal", 1, 2, 1, 200, 330, 64, slopes="learned"), "bfloat16"),
    (Case("spans", 2, 2, 1, 140, 300, 128, spans=((37, 290, 150), (140, 300, 120))), "float16"),
    (
        Case("both", 1, 1, 1, 70, 300, 64, False, spans=((0, 300, 130),), slopes="learned"),
        "float16",
    ),
    (Case("steep", 1, 2, 1, 160, 700, 64, slopes="steep"), "float16"),
    (Case("sees-nothing", 1, 1, 1, 200, 260, 64, spans=((130, 250, 0),)), "bfloat16"),
    (Case("many-pairs", 2, 4, 1, 270, 140, 64, False, slopes="learned"), "float16"),
)

BACKWARD, ENDS, LAUNCH = "sm90/backward.cuh", "sm90/backward_ends.cuh", "sm90/backward.cu"
MATRIX, GEOMETRY = "sm90/matrix.cuh", "geometry.h"


def _backward(
    what: str, old: str, new: str = "", nth: int = 0, file: str = BACKWARD, equal: str = ""
) -> Mutant:
    return Mutant(f"backward: {what}", file, old, new, nth, "hopper-backward", equal)


EMPTY = "barrier_wait(memory.empty(place.stage), place.parity ^ 1);"
RELEASE = "    if (lane_id() == 0) barrier_arrive(memory.empty(place.stage));\n"
GRADS_DONE = "    products_wait<0>();\n    pin_registers(dv[0]);\n    pin_registers(dk[0]);\n"
S_DONE = "products_wait<1>();\n    pin_registers(s[0]);"
DP_DONE = "products_wait<1>();\n    pin_registers(dp[0]);"
PIECE_DONE = "products_wait<1>();\n    hand_over_piece();"

RINGS = (
    _backward("barriers not fenced", "    barrier_init_fence();\n"),
    _backward("barriers and ticket used before they are ready", "  __syncthreads();\n"),
    _backward("no wait for K and V", "barrier_wait(memory.own_full(), 0);"),
    _backward("no wait for a pair", "barrier_wait(memory.full(place.stage), place.parity);"),
    _backward("pairs overwritten early", EMPTY),
    _backward("the end announced early", EMPTY, nth=1),
    _backward(
        "the end not announced",
        "    store_note(memory.note(place.stage), ReachWalk::kEnd, 0, 0.0f);\n"
        "    barrier_arrive(memory.full(place.stage));\n",
    ),
    _backward("pairs never released", RELEASE),
    _backward(
        "pairs released before their products end", GRADS_DONE + RELEASE, RELEASE + GRADS_DONE
    ),
    _backward(
        "empty counts warpgroups, not warps",
        "empty(stage), 4 * kTile.groups",
        "empty(stage), kTile.groups",
    ),
    _backward("every lane releases", RELEASE, RELEASE.replace("if (lane_id() == 0) ", "")),
    _backward("bytes of K alone expected", "landed, 2 * kTileBytes", "landed, kTileBytes"),
    _backward("bytes of Q alone expected", "full, 2 * kTileBytes", "full, kTileBytes"),
    _backward("full without the statistics", "<kColumns, D> + kStatBytes);", "<kColumns, D>);"),
    _backward(
        "statistics of half the rows",
        "kStatBytes = kStatFloats<kColumns> * 4;",
        "kStatBytes = kStatFloats<kColumns> * 2;",
    ),
    _backward(
        "statistics copied too short",
        "full,\n               kStatBytes",
        "full,\n               16",
    ),
    _backward(
        "statistics of the first pair",
        "task.walk.index(pair, problem, batch)",
        "task.walk.index(0, problem, batch)",
    ),
    _backward("the first head for all", "task.walk.head(pair), row =", "task.walk.head(0), row ="),
    _backward(
        "slope of the group's first head",
        "problem.slopes[head]);",
        "problem.slopes[task.walk.first_head]);",
    ),
    _backward("K cleared before it has landed", "barrier_wait(memory.raw(), 0);"),
    _backward("unseen keys used as they are", "needs_clearing<kRows>(first_key, held)", "false"),
    _backward(
        "unseen K used as it is", "  clear_rows<kRows, D>(memory.own(0), first_key, held);\n"
    ),
    _backward(
        "unseen V used as it is", "  clear_rows<kRows, D>(memory.own(1), first_key, held);\n"
    ),
    _backward(
        "shared memory not rounded up",
        "(small + kSmallBytes + kEightRows - 1) & ~(kEightRows - 1u)",
        "small + kSmallBytes",
    ),
    _backward(
        "no room for rounding up",
        "ceil_div(kSmallBytes, kEightRows) * kEightRows + kBigBytes",
        "kSmallBytes + kBigBytes",
    ),
    _backward("registers not released", "release_registers<kTile.producer_registers>();"),
    _backward(
        "a producer that keeps 32 registers",
        "release_registers<kTile.producer_registers>();",
        "release_registers<32>();",
    ),
)

TURN = "while (now != order) now = load_acquire(turn);"
PASS = "      runs_wait<0>();\n      store_release(turn, order + 1);\n"
FREE = "barrier_wait(memory.piece_empty(group, last), last / kPieceRing % 2 ^ 1);"

PIECES = (
    _backward("as many barriers of pieces as writers", "kPieceRing = 4;", "kPieceRing = 3;"),
    _backward(
        "a piece not waited for",
        "barrier_wait(memory.piece_full(group, number), number / kPieceRing % 2);",
    ),
    _backward(
        "only the first group's piece waited for",
        "piece_full(group, number), number /",
        "piece_full(0, number), number /",
    ),
    _backward("a piece handed over without waiting for its buffer", FREE),
    _backward("one buffer for all pieces", "stage) * kPieceBytes", "0) * kPieceBytes"),
    _backward(
        "a piece stored by lanes that did not wait",
        "    __syncwarp();\n    const uint32_t at",
        "    const uint32_t at",
    ),
    _backward(
        "a piece not fenced",
        "fence_async_proxy();\n    __syncwarp();\n    if (lane_id() == 0) barrier_arrive",
        "__syncwarp();\n    if (lane_id() == 0) barrier_arrive",
    ),
    _backward(
        "a piece full before all lanes have stored",
        "fence_async_proxy();\n    __syncwarp();\n    if (lane_id() == 0) barrier_arrive",
        "fence_async_proxy();\n    if (lane_id() == 0) barrier_arrive",
    ),
    _backward(
        "a piece full when one warp has stored",
        "piece_full(0, 0) + 8 * i, 4)",
        "piece_full(0, 0) + 8 * i, 1)",
    ),
    _backward("a piece released while it is read", "      runs_wait_read<0>();\n"),
    _backward(
        "pieces never released",
        "        barrier_arrive(memory.piece_empty(group, number));",
        "        ;",
    ),
    _backward("one writer too few", "memory, role - 1)", "memory, role)"),
    _backward(
        "writers of the same pairs", "number % kWriters == writer", "number % 2 == writer % 2"
    ),
    _backward("the additions not closed", "      runs_commit();\n"),
)

TURNS = (
    _backward("turn not waited for", TURN),
    _backward(
        "turn looked at without acquiring", "int now = load_acquire(turn);", "int now = *turn;"
    ),
    _backward(
        "turn waited for without acquiring", TURN, TURN.replace("load_acquire(turn)", "*turn")
    ),
    _backward("no proxy fence after the turn", "      fence_async_proxy_global();\n"),
    _backward(
        "turn passed before the additions have arrived",
        PASS,
        PASS.replace("runs_wait<0>", "runs_wait_read<0>"),
    ),
    _backward(
        "turn passed before the additions are waited for",
        PASS,
        "\n".join(reversed(PASS.strip("\n").split("\n"))) + "\n",
    ),
    _backward("turn never passed", "      store_release(turn, order + 1);\n"),
    _backward("turn passed to the one after the next", "order + 1);", "order + 2);"),
    _backward(
        "turn passed without releasing", "store_release(turn, order + 1);", "*turn = order + 1;"
    ),
    _backward("the first adds, too", "if (order == 0) {", "if (false) {"),
    _backward("all store", "if (order == 0) {", "if (true) {"),
    _backward("the second stores, too", "if (order == 0) {", "if (order <= 1) {"),
    _backward(
        "turns not cleared",
        "call.clear(params.turns, (query_tiles + 1) *",
        "call.clear(params.turns + query_tiles,",
        file=LAUNCH,
    ),
    _backward(
        "ticket not cleared",
        "(query_tiles + 1) * static_cast<int64_t>",
        "query_tiles * static_cast<int64_t>",
        file=LAUNCH,
    ),
    _backward(
        "turns from the first tile of keys",
        "reach(pair).end - 1 - key_tile",
        "key_tile - reach(pair).begin",
        file=ENDS,
    ),
    _backward(
        "turns from two on",
        "reach(pair).end - 1 - key_tile",
        "reach(pair).end - key_tile",
        file=ENDS,
    ),
    _backward(
        "tiles of keys from the first",
        "tiles - 1 - static_cast<int>(rest / count)}",
        "static_cast<int>(rest / count)}",
        file=GEOMETRY,
    ),
)

REACH = (
    _backward(
        "reach ends one tile early",
        "params.reaches[x] = found;",
        "params.reaches[x] = {found.begin, found.end - 1};",
        file=ENDS,
    ),
    _backward(
        "reach ends one tile late",
        "params.reaches[x] = found;",
        "params.reaches[x] = {found.begin, found.end + 1};",
        file=ENDS,
    ),
    _backward(
        "reach begins one tile late",
        "params.reaches[x] = found;",
        "params.reaches[x] = {found.begin + 1, found.end};",
        file=ENDS,
    ),
    _backward(
        "the first tile in reach left out", "begin > key_tile ||", "begin >= key_tile ||", file=ENDS
    ),
    _backward(
        "the last tile in reach left out", "end <= key_tile)", "end - 1 <= key_tile)", file=ENDS
    ),
    _backward(
        "the first 32 pairs only",
        "pair < count; pair += 32",
        "pair < least(count, 1); pair += 32",
        file=ENDS,
    ),
    _backward(
        "every lane walks for itself",
        "found = least(found, __shfl_xor_sync(kAllLanes, found, step));",
        "__syncwarp();",
        file=ENDS,
    ),
    _backward(
        "reach of one row only",
        "row < task.rows.end; row += 32",
        "row < task.rows.begin + 1; row += 32",
        file=ENDS,
    ),
    _backward(
        "reach of the last lane's rows only",
        "      begin = least(begin, keys.begin);\n".replace("      ", "    "),
        "    begin = keys.begin;\n",
        file=ENDS,
    ),
    _backward("rows of the first head's tiles", "task.walk.tile(pair) * kColumns", "0"),
    _backward("log-sum-exp in base e", "lse * kLog2E", "lse", file=ENDS),
    _backward("delta left out", "inside ? given.delta[index] : 0.0f", "0.0f", file=ENDS),
)

PRODUCTS = (
    _backward("no fence before S", "    products_fence();\n"),
    _backward("no fence before dV", "    products_fence();\n", nth=1),
    _backward("no fence before dQ", "    products_fence();\n", nth=2),
    _backward("S read before its wait", S_DONE, S_DONE.replace("<1>", "<2>")),
    _backward("dP read before its wait", DP_DONE, DP_DONE.replace("<1>", "<2>")),
    _backward("dQ read before its wait", PIECE_DONE, PIECE_DONE.replace("<1>", "<2>")),
    _backward("dK read before its wait", GRADS_DONE, GRADS_DONE.replace("<0>", "<1>")),
    _backward("S and dP in one group", "    products_commit();\n"),
    _backward(
        "dS not fenced",
        "    store_scores(part);\n    fence_async_proxy();\n",
        "    store_scores(part);\n",
    ),
    _backward(
        "dS fenced before it is stored",
        "    store_scores(part);\n    fence_async_proxy();\n",
        "    fence_async_proxy();\n    store_scores(part);\n",
    ),
    _backward("the groups do not meet", "    named_sync(1, 128 * kTile.groups);\n"),
    _backward(
        "each group meets itself", "named_sync(1, 128 * kTile.groups)", "named_sync(1 + group, 128)"
    ),
    _backward(
        "one buffer for dS", "kTile.stages) + stage * kScoreBytes", "kTile.stages) + 0 * stage"
    ),
    _backward("dV from dS", "start_sum_of(part, 1, dv[0], p)", "start_sum_of(part, 1, dv[0], ds)"),
    _backward(
        "dK from dO",
        "start_sum_of(kParts - 1, 0, dk[0], ds)",
        "start_sum_of(kParts - 1, 1, dk[0], ds)",
    ),
    _backward(
        "dK of the first part left out", "if (part + 1 < kParts) start_sum_of(part, 0, dk[0], ds);"
    ),
    _backward(
        "dK of the last part twice the first", "start_sum_of(kParts - 1, 0,", "start_sum_of(0, 0,"
    ),
    _backward("dP from K", "start_scores_of(part, 1, dp[0])", "start_scores_of(part, 0, dp[0])"),
    _backward("dP of the rows of K in registers", "which == 0 ? k_rows : v_rows", "k_rows"),
    _backward(
        "the first 64 keys for all, in registers",
        "const int row = 64 * group + warp_id() % 4 * 16;",
        "const int row = warp_id() % 4 * 16;",
    ),
    _backward(
        "the first 64 keys for all",
        "memory.own(which) + group * kPanelBytes<64>",
        "memory.own(which)",
    ),
    _backward(
        "the first 64 rows for all parts", "place.stage) + part * kPanelBytes<64>;", "place.stage);"
    ),
    _backward(
        "dS of both groups in one place",
        "row = 64 * group + warp_id() % 4 * 16 + line;",
        "row = warp_id() % 4 * 16 + line;",
    ),
    _backward(
        "dS not swizzled",
        "at ^ static_cast<uint32_t>(t * 16)",
        "at + static_cast<uint32_t>(t * 16)",
    ),
    _backward("dS of all parts in one panel", "part * kPanelBytes<kRows> +", "0 * part +"),
    _backward("dQ of the first rows for all", "+ group / kColumnPieces * kPanel;", ";"),
    _backward(
        "dQ of the first columns for all",
        "memory.own(0) + group % kColumnPieces * kPanel",
        "memory.own(0)",
    ),
    _backward("dQ of half the keys", "k < kRows / 16; ++k", "k < kRows / 32; ++k"),
    _backward("dQ added to the old one", "k != 0, T{});", "true, T{});"),
    _backward("dQ from dS as it is", "multiply_shared<true, true>", "multiply_shared<false, true>"),
    _backward("held: k step of 64 bytes", "k % 4 * 32)", "k % 4 * 64)", file=MATRIX),
    _backward("held: K not swizzled", "(piece ^ line % 8) * 16", "piece * 16", file=MATRIX),
    _backward("dk without the scale", "out.problem.scale);", "1.0f);"),
)

SCORES = (
    _backward("edges taken for plain", "all_allowed(head.span, queries, keys, head.causal) &&", ""),
    _backward("the diagonal taken for plain", "(side != 0 || !head.symmetric)", "true"),
    _backward(
        "right side taken for the left one",
        "head.symmetric && side > 0 ? -head.slope2 : head.slope2",
        "head.slope2",
    ),
    _backward("plain: one row off", "(8 * t + e % 2)", "(8 * t + e % 2 + 1)"),
    _backward(
        "plain: keys 8 apart taken for one",
        "static_cast<float>(row0 + 8 * i + lane_id() / 4 - position);\n    }",
        "static_cast<float>(row0 + lane_id() / 4 - position);\n    }",
    ),
    _backward(
        "statistics of the first part for all", "column = 64 * part + 8 * t", "column = 8 * t"
    ),
    _backward(
        "delta of the wrong rows", "dp[0][t][e] - delta[e % 2]", "dp[0][t][e] - delta[e / 2]"
    ),
    _backward(
        "rows of the wrong warp",
        "row0(task.keys.begin + 64 * group_ + warp_id() % 4 * 16)",
        "row0(task.keys.begin + 64 * group_ + (warp_id() + 1) % 4 * 16)",
    ),
)

SLOPES = (
    _backward(
        "share lost at a change of head", "if (before >= 0) {", "if (before >= 0 && sequence < 0) {"
    ),
    _backward("share of the last head lost", "    enter_head(-1);\n"),
    _backward("share of the head before kept", "    store_shared(share, 0.0f);\n"),
    _backward("share of the last part only", "before + share);", "share);"),
    _backward("shares of all warps in one place", "+ 16 + 8 * warp;", "+ 16 + 0 * warp;"),
    _backward("parts of all warps in one place", "* warps + row0 / 16]", "* warps]"),
    _backward(
        "parts of the wrong head",
        "head * problem.batch + batch,",
        "batch * problem.heads_q + head,",
    ),
    _backward(
        "parts not cleared", "if (params.slope_parts != nullptr) {", "if (false) {", file=LAUNCH
    ),
    _backward(
        "distances of the next part",
        "distance = first - static_cast<float>(c / 2 * 8 + c % 2);",
        "distance = first - static_cast<float>(c / 2 * 8 + c % 2 + 64);",
    ),
)

FINISH = (
    _backward(
        "dq of rows that nobody worked on",
        "if (!params.reaches[index].empty()) {",
        "if (true) {",
        file=ENDS,
    ),
    _backward("dq without the scale", "four.at[i] * problem.scale", "four.at[i]", file=ENDS),
    _backward(
        "dq: rows 8 apart exchanged",
        "x[i / 2][2 * lane + i % 2]",
        "x[1 - i / 2][2 * lane + i % 2]",
        file=ENDS,
    ),
    _backward("dq: rows past the end are stored", "if (row >= problem.len_q) continue;", file=ENDS),
    _backward("dq: columns of the first piece", "group % kColumnPieces * 64 +", "0 +", file=ENDS),
    _backward("dq: rows of the first piece", "+ group / kColumnPieces * 64", "", file=ENDS),
    _backward(
        "dq: rows stored 16 bytes at a time wherever they lie",
        "if (grad.aligned) {",
        "if (true) {",
        file=ENDS,
    ),
    _backward(
        "dq: one element left out", "i < 8; ++i) from_float", "i < 7; ++i) from_float", file=ENDS
    ),
)

MUTANTS = RINGS + PIECES + TURNS + REACH + PRODUCTS + SCORES + SLOPES + FINISH
