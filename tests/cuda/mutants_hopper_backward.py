"""Mistakes in how the warps of the Hopper backward kernel work together, which the model must
catch; see tests.cuda.mutants. Those in what they compute are in mutants_hopper_sums.py."""

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
MEMORY, COPIES = "sm90/backward_memory.cuh", "sm90/backward_copies.cuh"


def kernel(
    what: str, old: str, new: str = "", nth: int = 0, file: str = BACKWARD, equal: str = ""
) -> Mutant:
    return Mutant(f"backward: {what}", file, old, new, nth, "hopper-backward", equal)


ends, launch = partial(kernel, file=ENDS), partial(kernel, file=LAUNCH)
memory, copies = partial(kernel, file=MEMORY), partial(kernel, file=COPIES)
output = partial(kernel, file="sm90/output.cuh")
matrix = partial(kernel, file="sm90/matrix.cuh")

RELEASE = "    release(memory.empty(stage(pairs)));\n"
GRADS_DONE = "    products_wait<0>();\n    pin_registers(dv[0]);\n    pin_registers(dk[0]);\n"
LAST_PIECE_DONE = "products_wait<0>();\n    hand_over_piece"
LOADED = "__syncwarp();\n      if (which == 1) release(memory.own_empty(tasks, 1));\n"

RINGS = (
    memory("barriers not fenced", "    barrier_init_fence();\n"),
    kernel("barriers used before they are ready", "  __syncthreads();\n"),
    kernel("no wait for a pair", "barrier_wait(memory.full(stage(pairs)), parity(pairs));"),
    copies(
        "pairs overwritten early",
        "    barrier_wait(memory.empty(stage), parity_of<kStages>(pairs) ^ 1);\n",
    ),
    kernel("pairs never released", RELEASE),
    kernel("pairs released before their products end", GRADS_DONE + RELEASE, RELEASE + GRADS_DONE),
    memory(
        "empty counts warpgroups, not warps",
        "init(empty(stage), kConsumerWarps",
        "init(empty(stage), 2",
    ),
    kernel(
        "every lane releases",
        "if (lane_id() == 0) barrier_arrive(barrier)",
        "barrier_arrive(barrier)",
    ),
    copies("bytes of Q alone expected", "full, 2 * kTileBytes", "full, kTileBytes"),
    copies("full without the statistics", "<kColumns, D> + kStatBytes);", "<kColumns, D>);"),
    copies(
        "statistics of half the rows", "kStatFloats<kColumns> * 4;", "kStatFloats<kColumns> * 2;"
    ),
    copies(
        "statistics of the first pair",
        "index = task.walk.index(pair)",
        "index = task.walk.index(0)",
    ),
    copies("the first head for all", "head = task.walk.head(pair)", "head = task.walk.head(0)"),
    copies("slope of the group's first head", "slopes[head]", "slopes[task.walk.first_head]"),
    copies("every pair the last", "next == ReachWalk::kEnd);", "true);"),
    copies("no pair the last", "next == ReachWalk::kEnd);", "false);"),
    memory(
        "shared memory not rounded up",
        "(small + kSmallBytes + kEightRows - 1) & ~(kEightRows - 1u)",
        "small + kSmallBytes",
    ),
    memory(
        "no room for rounding up", "ceil_div(kSmallBytes, kEightRows) * kEightRows", "kSmallBytes"
    ),
    kernel("registers not released", "release_registers<kTile.producer_registers>();"),
    kernel("a producer that keeps 32 registers", "<kTile.producer_registers>", "<32>"),
)

TASKS = (
    kernel(
        "no wait for K and V", "barrier_wait(memory.own_full(tasks, which), parity_of<1>(tasks));"
    ),
    copies(
        "K and V overwritten early",
        "      barrier_wait(memory.own_empty(tasks, which), parity_of<1>(tasks) ^ 1);\n",
    ),
    kernel("K never released", "      release(memory.own_empty(tasks, 0));\n"),
    kernel(
        "K released before the last piece",
        LAST_PIECE_DONE,
        "release(memory.own_empty(tasks, 0));\n    " + LAST_PIECE_DONE,
    ),
    kernel("V in registers never released", "if (which == 1) release", "if (which == 2) release"),
    kernel(
        "V released before all lanes hold it",
        LOADED,
        LOADED.replace("__syncwarp();", ""),
        equal="ldmatrix is collective: no lane is late",
    ),
    kernel("V in shared memory never released", "if (!kHeld && last &&", "if (false &&"),
    kernel("V released with the first pair", "if (!kHeld && last &&", "if (!kHeld &&"),
    kernel("V not waited for", "      if (part == 0) meet_own(1);\n"),
    kernel("V of a task without pairs not waited for", "        meet_own(1);\n"),
    memory(
        "K and V keep their places",
        "(task + which) % 2",
        "which",
        equal="K comes later, when the last piece is done",
    ),
    memory("one note for all tasks", "task % 2 * kTaskBytes", "0 * task"),
    copies("bytes of K and V expected for each", "landed, kTileBytes", "landed, 2 * kTileBytes"),
    copies("V from K", "which == 0 ? params.k_map : params.v_map", "params.k_map"),
    copies(
        "K cleared before it has landed",
        "    barrier_wait(memory.own_raw(), parity_of<1>(clearings++));\n",
    ),
    copies("clearings not counted", "(clearings++)", "(clearings)"),
    copies("unseen keys used as they are", "needs_clearing<kRows>(first_key, held)", "false"),
    copies(
        "unseen V used as it is",
        "const bool clear = seen &&",
        "const bool clear = which == 0 && seen &&",
    ),
    copies(
        "unseen K used as it is",
        "const bool clear = seen &&",
        "const bool clear = which == 1 && seen &&",
    ),
    copies(
        "the end not announced",
        "    TaskNote{memory.task(tasks)}.store_end();\n"
        "    barrier_arrive(memory.own_full(tasks, 0));\n",
    ),
    copies("the last task not drawn", "ticket >= params.tasks", "ticket + 1 >= params.tasks"),
    kernel("sums kept for the next task", "      set_zero(dk);\n"),
    kernel(
        "rows of the task before",
        "      row0 = task().place().tile * kRows",
        "      row0 = tasks * kRows",
    ),
    copies("tasks by the number of the block", "take_ticket(params.ticket)", "blockIdx.x"),
    launch(
        "tasks left out",
        "params.tasks = static_cast<int>(tasks)",
        "params.tasks = static_cast<int>(tasks) - 1",
    ),
    launch("dk wherever it lies", "params.dk.aligned && ", ""),
)

SCORES_RING = (
    kernel(
        "dS of the other group not waited for",
        "    barrier_wait(memory.scores_full(stage(pair)), parity(pair));\n",
    ),
    kernel(
        "dS overwritten early",
        "    if (part == 0) barrier_wait(memory.scores_empty(stage(pairs)), parity(pairs) ^ 1);\n",
    ),
    kernel("dS never released", "    release(memory.scores_empty(stage(pair)));\n"),
    kernel("dS never said to be full", "    release(memory.scores_full(stage(pairs)));\n"),
    kernel(
        "dS full before all lanes have stored",
        "    __syncwarp();\n    release(memory.scores_full",
        "    release(memory.scores_full",
    ),
    memory(
        "dS full when one group has stored",
        "scores_full(stage), kConsumerWarps",
        "scores_full(stage), 4",
    ),
    memory(
        "dS empty when one group is done",
        "scores_empty(stage), kConsumerWarps",
        "scores_empty(stage), 4",
    ),
    kernel(
        "the piece of this pair twice",
        "start_piece(pairs - 1);\n    start_sum_of",
        "start_piece(pairs);\n    start_sum_of",
    ),
    kernel(
        "the last piece left out",
        "    start_piece(pairs - 1);\n    products_wait<0>();\n    hand_over_piece(pairs - 1);\n",
    ),
    memory("one buffer for dS", "+ stage * kScoreBytes", "+ 0 * stage"),
)

TURN = "while (now != order) now = load_acquire(turn);"
FENCE = "fence_async_proxy_global();"
ORDER = "key_tile - reach(pair).begin"
PASS = "    runs_wait<0>();\n    store_release(turn, order + 1);\n"
FULL = "barrier_wait(memory.piece_full(group, pair), parity_of<kPieceRing>(pair));"
FREE = (
    "    if (lane_id() == 0) "
    "barrier_wait(memory.piece_empty(group, last), last / kPieceRing % 2 ^ 1);\n"
)
STORED = "fence_async_proxy();\n    __syncwarp();\n    release(memory.piece_full"

PIECES = (
    memory("fewer barriers of pieces than pairs in work", "kPieceRing = 4;", "kPieceRing = 1;"),
    copies("a piece not waited for", FULL),
    copies("only the first group's piece waited for", FULL, FULL.replace("group", "0")),
    kernel("a piece handed over without waiting for its buffer", FREE),
    memory("one buffer for all pieces", "stage) * kPieceBytes", "0) * kPieceBytes"),
    kernel(
        "a piece stored by lanes that did not wait",
        "__syncwarp();\n    const uint32_t at",
        "const uint32_t at",
    ),
    kernel("a piece not fenced", STORED, STORED.removeprefix("fence_async_proxy();")),
    kernel(
        "a piece full before all lanes have stored", STORED, STORED.replace("__syncwarp();", "")
    ),
    memory("a piece full when one warp has stored", "(0, 0) + 8 * i, 4)", "(0, 0) + 8 * i, 1)"),
    copies("a piece released while it is read", "    runs_wait_read<0>();\n"),
    copies("pieces never taken away", "barrier_arrive(memory.piece_empty(group, pair))"),
    kernel("one writer too few", "(params, memory, role)", "(params, memory, role + 1)"),
    copies("writers of the same pieces", "number += kWriters", "number += 2"),
    copies("the additions not closed", "    runs_commit();\n"),
    copies(
        "a note not waited for",
        "barrier_wait(memory.writer_note_full(pair), parity_of<kWriterNotes>(pair));",
    ),
    copies(
        "writers of the first group told alone of the end",
        "writer < kWriters; ++writer",
        "writer < 1; ++writer",
    ),
    memory("two notes for the writers", "kWriterNotes = 8;", "kWriterNotes = 2;"),
)

TURNS = (
    copies("turn not waited for", TURN),
    copies("turn looked at without acquiring", "int now = load_acquire(turn)", "int now = *turn"),
    copies("turn waited for without acquiring", TURN, TURN.replace("load_acquire(turn)", "*turn")),
    copies("no proxy fence after the turn", "    fence_async_proxy_global();\n"),
    copies("proxy fence before the turn", f"{TURN}\n    {FENCE}", f"{FENCE}\n    {TURN}"),
    copies(
        "turn passed before the additions have arrived",
        PASS,
        PASS.replace("runs_wait<0>", "runs_wait_read<0>"),
    ),
    copies(
        "turn passed before the additions are waited for",
        PASS,
        "\n".join(reversed(PASS.strip("\n").split("\n"))) + "\n",
    ),
    copies("turn never passed", "    store_release(turn, order + 1);\n"),
    copies("turn passed to the one after the next", "order + 1);", "order + 2);"),
    copies(
        "turn passed without releasing", "store_release(turn, order + 1);", "*turn = order + 1;"
    ),
    copies("one turn for both groups", "int64_t{index} * kTile.groups + group;", "int64_t{index};"),
    copies("the first adds, too", "if (order == 0) {", "if (false) {"),
    copies("all store", "if (order == 0) {", "if (true) {"),
    launch("turns not cleared", "(params.turns, (pieces + 1) *", "(params.ticket,"),
    launch("ticket not cleared", "(params.turns, (pieces + 1) *", "(params.turns, pieces *"),
    ends("turns from the last tile of keys", ORDER, "reach(pair).end - 1 - key_tile"),
    ends("turns from one on", ORDER, "key_tile + 1 - reach(pair).begin"),
    memory("tiles of keys from the last", "tiles - 1 - work.tile}", "work.tile}"),
)

MUTANTS = RINGS + TASKS + SCORES_RING + PIECES + TURNS
