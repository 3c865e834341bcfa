"""Mistakes in the Hopper backward kernel that the model must catch; see tests.cuda.mutants."""

from __future__ import annotations

from functools import partial

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
    (Case("steep", 1, 2, 1, 160, 736, 64, slopes="steep"), "float16"),
    (Case("sees-nothing", 1, 1, 1, 200, 260, 64, spans=((130, 250, 0),)), "bfloat16"),
    (Case("many-pairs", 2, 4, 1, 270, 140, 64, False, slopes="learned"), "float16"),
)

BACKWARD, ENDS, LAUNCH = "sm90/backward.cuh", "sm90/backward_ends.cuh", "sm90/backward.cu"
MATRIX, GEOMETRY = "sm90/matrix.cuh", "geometry.h"


def _kernel(
    what: str, old: str, new: str = "", nth: int = 0, file: str = BACKWARD, equal: str = ""
) -> Mutant:
    return Mutant(f"backward: {what}", file, old, new, nth, "hopper-backward", equal)


_ends, _launch = partial(_kernel, file=ENDS), partial(_kernel, file=LAUNCH)
_matrix, _geometry = partial(_kernel, file=MATRIX), partial(_kernel, file=GEOMETRY)

EMPTY = "barrier_wait(memory.empty(place.stage), place.parity ^ 1);"
RELEASE = "    if (lane_id() == 0) barrier_arrive(memory.empty(place.stage));\n"
GRADS_DONE = "    products_wait<0>();\n    pin_registers(dv[0]);\n    pin_registers(dk[0]);\n"
S_DONE = "products_wait<1>();\n    pin_registers(s[0]);"
DP_DONE = "products_wait<1>();\n    pin_registers(dp[0]);"
DS = "store_scores(part);\n    fence_async_proxy();"
PIECE_DONE = "products_wait<1>();\n    hand_over_piece();"

RINGS = (
    _kernel("barriers not fenced", "    barrier_init_fence();\n"),
    _kernel("barriers and ticket used before they are ready", "  __syncthreads();\n"),
    _kernel("no wait for K and V", "barrier_wait(memory.own_full(), 0);"),
    _kernel("no wait for a pair", "barrier_wait(memory.full(place.stage), place.parity);"),
    _kernel("pairs overwritten early", EMPTY),
    _kernel("the end announced early", EMPTY, nth=1),
    _kernel(
        "the end not announced",
        "    store_note(memory.note(place.stage), ReachWalk::kEnd, 0, 0.0f);\n"
        "    barrier_arrive(memory.full(place.stage));\n",
    ),
    _kernel("pairs never released", RELEASE),
    _kernel("pairs released before their products end", GRADS_DONE + RELEASE, RELEASE + GRADS_DONE),
    _kernel("empty counts warpgroups, not warps", "empty(stage), 4 *", "empty(stage), 1 *"),
    _kernel("every lane releases", RELEASE, RELEASE.replace("if (lane_id() == 0) ", "")),
    _kernel("bytes of K alone expected", "landed, 2 * kTileBytes", "landed, kTileBytes"),
    _kernel("bytes of Q alone expected", "full, 2 * kTileBytes", "full, kTileBytes"),
    _kernel("full without the statistics", "<kColumns, D> + kStatBytes);", "<kColumns, D>);"),
    _kernel(
        "statistics of half the rows", "kStatFloats<kColumns> * 4;", "kStatFloats<kColumns> * 2;"
    ),
    _kernel("statistics of the first pair", "walk.index(pair, problem", "walk.index(0, problem"),
    _kernel("the first head for all", "task.walk.head(pair), row =", "task.walk.head(0), row ="),
    _kernel("slope of the group's first head", "slopes[head]", "slopes[task.walk.first_head]"),
    _kernel("K cleared before it has landed", "barrier_wait(memory.raw(), 0);"),
    _kernel("unseen keys used as they are", "needs_clearing<kRows>(first_key, held)", "false"),
    _kernel("unseen K used as it is", "  clear_rows<kRows, D>(memory.own(0), first_key, held);\n"),
    _kernel("unseen V used as it is", "  clear_rows<kRows, D>(memory.own(1), first_key, held);\n"),
    _kernel(
        "shared memory not rounded up",
        "(small + kSmallBytes + kEightRows - 1) & ~(kEightRows - 1u)",
        "small + kSmallBytes",
    ),
    _kernel(
        "no room for rounding up", "ceil_div(kSmallBytes, kEightRows) * kEightRows", "kSmallBytes"
    ),
    _kernel("registers not released", "release_registers<kTile.producer_registers>();"),
    _kernel("a producer that keeps 32 registers", "<kTile.producer_registers>", "<32>"),
)

TURN = "while (now != order) now = load_acquire(turn);"
FENCE = "fence_async_proxy_global();"
ORDER = "reach(pair).end - 1 - key_tile"
PASS = "      runs_wait<0>();\n      store_release(turn, order + 1);\n"
FULL = "piece_full(group, number), number / kPieceRing % 2);"
FREE = "barrier_wait(memory.piece_empty(group, last), last / kPieceRing % 2 ^ 1);"
STORED = "fence_async_proxy();\n    __syncwarp();\n    if (lane_id() == 0) barrier_arrive"

PIECES = (
    _kernel("fewer barriers of pieces than writers", "kPieceRing = 4;", "kPieceRing = 2;"),
    _kernel("a piece not waited for", f"barrier_wait(memory.{FULL}"),
    _kernel("only the first group's piece waited for", FULL, FULL.replace("group", "0")),
    _kernel("a piece handed over without waiting for its buffer", FREE),
    _kernel("one buffer for all pieces", "stage) * kPieceBytes", "0) * kPieceBytes"),
    _kernel(
        "a piece stored by lanes that did not wait",
        "__syncwarp();\n    const uint32_t at",
        "const uint32_t at",
    ),
    _kernel("a piece not fenced", STORED, STORED.removeprefix("fence_async_proxy();")),
    _kernel(
        "a piece full before all lanes have stored", STORED, STORED.replace("__syncwarp();", "")
    ),
    _kernel("a piece full when one warp has stored", "(0, 0) + 8 * i, 4)", "(0, 0) + 8 * i, 1)"),
    _kernel("a piece released while it is read", "      runs_wait_read<0>();\n"),
    _kernel("pieces never released", "barrier_arrive(memory.piece_empty(group, number))"),
    _kernel("one writer too few", "memory, role - 1)", "memory, role)"),
    _kernel("writers of the same pairs", "number % kWriters == writer", "number % 2 == writer % 2"),
    _kernel("the additions not closed", "      runs_commit();\n"),
)

TURNS = (
    _kernel("turn not waited for", TURN),
    _kernel("turn looked at without acquiring", "int now = load_acquire(turn)", "int now = *turn"),
    _kernel("turn waited for without acquiring", TURN, TURN.replace("load_acquire(turn)", "*turn")),
    _kernel("no proxy fence after the turn", "      fence_async_proxy_global();\n"),
    _kernel("proxy fence before the turn", f"{TURN}\n      {FENCE}", f"{FENCE}\n      {TURN}"),
    _kernel(
        "turn passed before the additions have arrived",
        PASS,
        PASS.replace("runs_wait<0>", "runs_wait_read<0>"),
    ),
    _kernel(
        "turn passed before the additions are waited for",
        PASS,
        "\n".join(reversed(PASS.strip("\n").split("\n"))) + "\n",
    ),
    _kernel("turn never passed", "      store_release(turn, order + 1);\n"),
    _kernel("turn passed to the one after the next", "order + 1);", "order + 2);"),
    _kernel(
        "turn passed without releasing", "store_release(turn, order + 1);", "*turn = order + 1;"
    ),
    _kernel("the first adds, too", "if (order == 0) {", "if (false) {"),
    _kernel("all store", "if (order == 0) {", "if (true) {"),
    _launch("turns not cleared", "(params.turns, (query_tiles + 1) *", "(params.ticket,"),
    _launch("ticket not cleared", "(query_tiles + 1) * static_cast", "query_tiles * static_cast"),
    _ends("turns from the first tile of keys", ORDER, "key_tile - reach(pair).begin"),
    _ends("turns from one on", ORDER, "reach(pair).end - key_tile"),
    _kernel("tasks by the number of the block", "take_ticket(params.ticket)", "blockIdx.x"),
    _geometry(
        "tiles of keys from the first", "tiles - 1 - static_cast<int>(rest", "static_cast<int>(rest"
    ),
)

REACH = (
    _ends("reach ends one tile early", "[x] = found;", "[x] = {found.begin, found.end - 1};"),
    _ends("reach ends one tile late", "[x] = found;", "[x] = {found.begin, found.end + 1};"),
    _ends("reach begins one tile late", "[x] = found;", "[x] = {found.begin + 1, found.end};"),
    _ends("the first tile in reach left out", "begin > key_tile ||", "begin >= key_tile ||"),
    _ends("the last tile in reach left out", "end <= key_tile)", "end - 1 <= key_tile)"),
    _ends("the first 32 pairs only", "pair < count; pair", "pair < least(count, 1); pair"),
    _ends(
        "every lane walks for itself",
        "found = least(found, __shfl_xor_sync(kAllLanes, found, step));",
        "__syncwarp();",
    ),
    _ends("reach of one row only", "row < task.rows.end; row", "row < task.rows.begin + 1; row"),
    _ends("reach of the last lane's rows only", "least(begin, keys.begin)", "keys.begin"),
    _kernel("rows of the first head's tiles", "task.walk.tile(pair) * kColumns", "0"),
    _ends("log-sum-exp in base e", "lse * kLog2E", "lse"),
    _ends("delta left out", "inside ? given.delta[index] : 0.0f", "0.0f"),
)

PRODUCTS = (
    _kernel("no fence before S", "    products_fence();\n"),
    _kernel("no fence before dV", "    products_fence();\n", nth=1),
    _kernel("no fence before dQ", "    products_fence();\n", nth=2),
    _kernel("S read before its wait", S_DONE, S_DONE.replace("<1>", "<2>")),
    _kernel("dP read before its wait", DP_DONE, DP_DONE.replace("<1>", "<2>")),
    _kernel("dQ read before its wait", PIECE_DONE, PIECE_DONE.replace("<1>", "<2>")),
    _kernel("dK read before its wait", GRADS_DONE, GRADS_DONE.replace("<0>", "<1>")),
    _kernel("S and dP in one group", "    products_commit();\n"),
    _kernel("dS fenced before it is stored", DS, "\n    ".join(reversed(DS.split("\n    ")))),
    _kernel("the groups do not meet", "    named_sync(1, 128 * kTile.groups);\n"),
    _kernel("each group meets itself", "(1, 128 * kTile.groups)", "(1 + group, 128)"),
    _kernel("one buffer for dS", "+ stage * kScoreBytes", "+ 0 * stage"),
    _kernel("dV from dS", "(part, 1, dv[0], p)", "(part, 1, dv[0], ds)"),
    _kernel("dK from dO", "(kParts - 1, 0, dk[0], ds)", "(kParts - 1, 1, dk[0], ds)"),
    _kernel("dK of the first part left out", "start_sum_of(part, 0, dk[0], ds);", ";"),
    _kernel("dK of the last part twice the first", "(kParts - 1, 0,", "(0, 0,"),
    _kernel("dP from K", "(part, 1, dp[0])", "(part, 0, dp[0])"),
    _kernel("dP of the rows of K in registers", "which == 0 ? k_rows : v_rows", "k_rows"),
    _kernel("the first 64 keys for all, in registers", "= 64 * group + warp_id()", "= warp_id()"),
    _kernel("the first 64 keys for all", "own(which) + group * kPanelBytes<64>", "own(which)"),
    _kernel("the first 64 rows for all parts", "+ part * kPanelBytes<64>;", ";"),
    _kernel("dS of both groups in one place", "row = 64 * group + warp", "row = warp", nth=1),
    _kernel("dS not swizzled", "at ^ static_cast<uint32_t>", "at + static_cast<uint32_t>"),
    _kernel("dS of all parts in one panel", "part * kPanelBytes<kRows> +", "0 * part +"),
    _kernel("dQ of the first rows for all", "+ group / kColumnPieces * kPanel;", ";"),
    _kernel("dQ of the first columns for all", "own(0) + group % kColumnPieces * kPanel", "own(0)"),
    _kernel("dQ of half the keys", "k < kRows / 16; ++k", "k < kRows / 32; ++k"),
    _kernel("dQ added to the old one", "k != 0, T{});", "true, T{});"),
    _kernel("dQ from dS as it is", "multiply_shared<true, true>", "multiply_shared<false, true>"),
    _matrix("held: k step of 64 bytes", "k % 4 * 32)", "k % 4 * 64)"),
    _matrix("held: K not swizzled", "(piece ^ line % 8) * 16", "piece * 16"),
    _kernel("dk without the scale", "out.problem.scale);", "1.0f);"),
)

SCORES = (
    _kernel("edges taken for plain", "all_allowed(head.span, queries, keys, head.causal) &&", ""),
    _kernel("the diagonal taken for plain", "(side != 0 || !head.symmetric)", "true"),
    _kernel("right side taken for the left one", "head.symmetric && side > 0 ?", "false ?"),
    _kernel("plain: one row off", "(8 * t + e % 2)", "(8 * t + e % 2 + 1)"),
    _kernel("plain: keys 8 apart taken for one", "(row0 + 8 * i + lane_id()", "(row0 + lane_id()"),
    _kernel("statistics of the first part for all", "column = 64 * part + 8 * t", "column = 8 * t"),
    _kernel("delta of the wrong rows", "dp[0][t][e] - delta[e % 2]", "dp[0][t][e] - delta[e / 2]"),
    _kernel("keys of the wrong warp", "group_ + warp_id() %", "group_ + (warp_id() + 1) %"),
)

SLOPES = (
    _kernel("share lost at a change of head", "before >= 0", "before >= 0 && sequence < 0"),
    _kernel("share of the last head lost", "    enter_head(-1);\n"),
    _kernel("share of the head before kept", "    store_shared(share, 0.0f);\n"),
    _kernel("share of the last part only", "before + share);", "share);"),
    _kernel("shares of all warps in one place", "+ 16 + 8 * warp;", "+ 16 + 0 * warp;"),
    _kernel("parts of all warps in one place", "* warps + row0 / 16]", "* warps]"),
    _kernel("parts of the wrong head", "head * problem.batch + batch", "head + batch"),
    _launch("parts not cleared", "if (params.slope_parts != nullptr) {", "if (false) {"),
    _kernel("distances of the next part", "(c / 2 * 8 + c % 2)", "(c / 2 * 8 + c % 2 + 64)"),
)

FINISH = (
    _ends("dq of rows that nobody worked on", "if (!params.reaches[index].empty())", "if (true)"),
    _ends("dq without the scale", "(four.word[i]) * problem.scale", "(four.word[i])"),
    _ends("dq: rows 8 apart exchanged", "x[i / 2][2 * lane", "x[1 - i / 2][2 * lane"),
    _ends("dq: rows past the end are stored", "if (row >= problem.len_q) continue;"),
    _ends("dq: columns of the first piece", "group % kColumnPieces * 64 +", "0 +"),
    _ends("dq: rows of the first piece", "+ group / kColumnPieces * 64", ""),
    _ends("dq: stored 16 bytes at a time wherever it lies", "if (grad.aligned) {", "if (true) {"),
    _ends("dq: one element left out", "i < 8; ++i) from_float", "i < 7; ++i) from_float"),
)

MUTANTS = RINGS + PIECES + TURNS + REACH + PRODUCTS + SCORES + SLOPES + FINISH
