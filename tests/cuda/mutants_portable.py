"""Mistakes in the portable kernels that the model must catch; run as tests.cuda.mutants says."""

from __future__ import annotations

from tests.cuda.mutant import Mutant


def _wait(name: str, file: str, nth: int, part: str, groups: int = 0) -> Mutant:
    return Mutant(name, file, f"copy_wait<{groups}>();", "", nth, part)


def _barrier(name: str, file: str, nth: int, part: str) -> Mutant:
    return Mutant(name, file, "__syncthreads();", "", nth, part)


FORWARD, QUERY, KEY = "sm80/forward.cuh", "sm80/backward_query.cuh", "sm80/backward_key.cuh"
TILE, BIAS, SOFTMAX = "sm80/tile.cuh", "sm80/bias_mask.cuh", "sm80/softmax.cuh"
GEOMETRY, PREPASS, WEIGHTS = "geometry.h", "sm80/prepass.cuh", "sm80/weights.cuh"
OUTPUT, DECODE = "sm80/output.cuh", "sm80/decode.cuh"


def _decode(what: str, old: str, new: str, nth: int = 0, equal: str = "") -> Mutant:
    return Mutant(f"decode: {what}", DECODE, old, new, nth, "decode", equal)


MUTANTS = (
    _wait("no wait for the first K and Q", FORWARD, 0, "forward"),
    _wait("no wait for V", FORWARD, 1, "forward"),
    _wait("no wait for the next K", FORWARD, 2, "forward"),
    _barrier("no barrier after the first K and Q", FORWARD, 0, "forward"),
    _barrier("no barrier after the next K", FORWARD, 1, "forward"),
    Mutant(
        "the vote without its barrier",
        FORWARD,
        "__syncthreads_and(stop) ?",
        "__all_sync(kAllLanes, stop) ?",
    ),
    Mutant("V waits for all but one group", FORWARD, "copy_wait<0>();", "copy_wait<1>();", 1),
    Mutant(
        "every warp decides for itself",
        FORWARD,
        "__syncthreads_and(stop)",
        "(__syncthreads(), stop)",
    ),
    Mutant("K tile one tile off", FORWARD, "k, next * kColumns", "k, (next + 1) * kColumns"),
    Mutant(
        "Q rows off by one warp",
        FORWARD,
        "warp_id() * 16 * kM",
        "(warp_id() ^ 1) * 16 * kM",
        equal="warps exchange their rows as a whole",
    ),
    Mutant("P not rescaled", FORWARD, "rescale_rows(o, rescale);", ""),
    Mutant("lse in base 2", OUTPUT, "state.log2_sum(i) * kLn2", "state.log2_sum(i)"),
    Mutant("rows past the end are stored", OUTPUT, "if (row >= problem.len_q) continue;", ""),
    Mutant(
        "keys beyond the tensor are read",
        "sm80/block.cuh",
        "task.kv_head, task.keys, problem.head_dim);",
        "task.kv_head, {0, problem.len_k + 64}, problem.head_dim);",
    ),
    Mutant(
        "split: an even share without the remainder",
        GEOMETRY,
        "const int each = ceil_div(tiles.end - tiles.begin, count);",
        "const int each = (tiles.end - tiles.begin) / count;",
    ),
    Mutant(
        "split: reach without the distance to the nearest key",
        GEOMETRY,
        "+ static_cast<float>(nearest) + 1.0f;",
        "+ 1.0f;",
    ),
    Mutant(
        "split: parts added up without their weights",
        "sm80/split.cuh",
        "params.split_lse[s * rows + index] - anchor) / sum;",
        "params.split_lse[index] - anchor) / sum;",
    ),
    Mutant(
        "pruning forgets the key norm",
        FORWARD,
        "score_ceiling(problem.scale, q_norm, k_norm)",
        "score_ceiling(problem.scale, q_norm, 0.0f)",
    ),
    Mutant(
        "GQA: wrong key head",
        "sm80/block.cuh",
        "head / (problem.heads_q / problem.heads_kv)",
        "head % problem.heads_kv",
    ),
    Mutant(
        "row maximum over one lane pair only",
        TILE,
        "return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));",
        "return x;",
    ),
    Mutant(
        "row sum over one lane pair only",
        TILE,
        "return x + __shfl_xor_sync(kAllLanes, x, 2);",
        "return x;",
    ),
    Mutant("V not transposed", TILE, "load_matrices<true>", "load_matrices<false>"),
    Mutant(
        "K matrices in the order of Q",
        TILE,
        "tile_offset(lane % 8 + lane / 16 * 8, lane / 8 % 2",
        "tile_offset(lane % 16, lane / 16",
    ),
    Mutant(
        "swizzle step added, not xored",
        GEOMETRY,
        "(address ^ static_cast<uint32_t>((step & mask) * 16))",
        "(address + static_cast<uint32_t>((step & mask) * 16))",
    ),
    Mutant(
        "partial rows not zero-filled",
        TILE,
        "valid ? count * static_cast<int>(sizeof(T)) : 0",
        "count * static_cast<int>(sizeof(T))",
    ),
    Mutant(
        "head_dim tail not cut",
        TILE,
        "most(0, least(source.head_dim - piece * kPiece<T>, kPiece<T>))",
        "kPiece<T>",
    ),
    Mutant(
        "float32: shuffle from the wrong lane",
        TILE,
        "i % 2 * 2 + e], q, 4)",
        "i % 2 * 2 + e], q ^ 1, 4)",
    ),
    Mutant("causal: the diagonal itself masked", BIAS, "distance > 0.0f", "distance >= 0.0f"),
    Mutant("causal: one key too many", BIAS, "distance > 0.0f", "distance > 1.0f"),
    Mutant("kv_end off by one", BIAS, "j < head.span.kv_end", "j <= head.span.kv_end"),
    Mutant("kv_start off by one", BIAS, "j >= head.span.kv_start", "j > head.span.kv_start"),
    Mutant(
        "symmetric bias signed in mixed tiles",
        BIAS,
        "head.symmetric ? -fabsf(distance) : distance",
        "distance",
    ),
    Mutant(
        "bias of the right side not mirrored",
        BIAS,
        "head.symmetric && side > 0 ? -head.slope2",
        "false ? -head.slope2",
    ),
    Mutant("bias ignores q_start", BIAS, "key - query - head.span.q_start", "key - query"),
    Mutant(
        "masked tile taken for a plain one",
        GEOMETRY,
        "keys.end - 1 <= span.q_start + rows.begin);",
        "keys.end - 1 <= span.q_start + rows.end);",
    ),
    Mutant(
        "plain test forgets kv_end",
        GEOMETRY,
        "keys.begin >= span.kv_start && keys.end <= span.kv_end &&",
        "keys.begin >= span.kv_start &&",
    ),
    Mutant(
        "rows without keys divide by zero",
        SOFTMAX,
        "largest == -INFINITY ? 0.0f : largest",
        "largest",
    ),
    Mutant(
        "old row sum not rescaled",
        SOFTMAX,
        "fmaf(row_sum[i / 2][i % 2], rescale[i / 2][i % 2], sums[0])",
        "row_sum[i / 2][i % 2] + sums[0]",
    ),
    Mutant(
        "walk forgets the left side",
        GEOMETRY,
        "return next >= tiles.begin ? next : kEnd;",
        "return kEnd;",
    ),
    Mutant(
        "a stop ends both sides",
        GEOMETRY,
        "return after(tile) > start ? (start > tiles.begin ? start - 1 : kEnd) : kEnd;",
        "return kEnd;",
    ),
    Mutant("tail bound 40 bits short", GEOMETRY, "return 25.0f +", "return -15.0f +"),
    Mutant(
        "key range one short",
        GEOMETRY,
        "span.q_start + rows.end) : span.kv_end};",
        "span.q_start + rows.end - 1) : span.kv_end};",
    ),
    _wait("dq: no wait for V", QUERY, 0, "backward", groups=1),
    _wait("dq: no wait for K", QUERY, 0, "backward"),
    _barrier("dq: no barrier after K", QUERY, 1, "backward"),
    _barrier("dq: no barrier before the next K", QUERY, 2, "backward"),
    Mutant("dq: delta left out", QUERY, "- delta[i / 2][i % 2])", ")", part="backward"),
    Mutant("dq: lse in base e", QUERY, "lse * kLog2E", "lse", part="backward"),
    Mutant(
        "dq: no scale",
        QUERY,
        "problem.scale);",
        "1.0f);",
        part="backward",
    ),
    Mutant(
        "dslopes: last warp forgotten",
        QUERY,
        "static_cast<int>(blockDim.x) / 32",
        "static_cast<int>(blockDim.x) / 32 - 1",
        part="backward",
    ),
    Mutant("dslopes: no barrier before the sum", QUERY, "__syncthreads();", "", 0, part="backward"),
    _wait("dk: no wait for dO", KEY, 0, "backward", groups=1),
    _wait("dk: no wait for Q", KEY, 0, "backward"),
    _barrier("dk: no barrier after dO", KEY, 0, "backward"),
    _barrier("dk: no barrier after Q", KEY, 1, "backward"),
    _barrier("dk: no barrier before the next dO", KEY, 2, "backward"),
    _barrier("dk: no barrier before the next Q", KEY, 3, "backward"),
    Mutant(
        "dk: only the first head of a group",
        KEY,
        "while (pair < group *",
        "while (pair < 1 *",
        part="backward",
    ),
    Mutant(
        "dk: negligible tested with the wrong slope",
        KEY,
        "row_is_done(slack, view.slope2",
        "row_is_done(slack, 16 * view.slope2",
        part="backward",
    ),
    Mutant(
        "dk: rows that see nothing count",
        KEY,
        "lse == -INFINITY ? INFINITY",
        "lse == -INFINITY ? 0.0f",
        part="backward",
        equal="their scores are -inf, and rows past the end meet zeros in Q and dO",
    ),
    Mutant(
        "dv from dS",
        KEY,
        "multiply_registers<T, D>(dv, s, dout_tile)",
        "multiply_registers<T, D>(dv, dp, dout_tile)",
        part="backward",
    ),
    Mutant(
        "delta without dlse",
        PREPASS,
        "sum : sum - params.dlse[index]",
        "sum : sum",
        part="backward",
    ),
    Mutant(
        "slack without the norms",
        PREPASS,
        "score_ceiling(problem.scale, q_norm, k_norm)",
        "0.0f",
        part="backward",
    ),
    Mutant(
        "slack without the distance of a key",
        PREPASS,
        "- distance_bits(missing, view.slope, farthest)",
        "",
        part="backward",
    ),
    Mutant(
        "keys seen by too few rows",
        GEOMETRY,
        "most(0, least(first - span.q_start, len_q))",
        "most(0, least(first + 1 - span.q_start, len_q))",
        part="backward",
    ),
    _decode("no wait for the queries", "copy_wait<3>();\n  __syncthreads();", "__syncthreads();"),
    _decode("no barrier after the queries", "__syncthreads();", ""),
    _decode("no barrier before the sums", "__syncthreads();", "", 1),
    _decode("no wait for K", "copy_wait<2>();", ""),
    _decode("K waits for one group less", "copy_wait<2>();", "copy_wait<3>();"),
    _decode("lanes do not wait for each other's K", "__syncwarp();", ""),
    _decode(
        "K and V overwritten while read",
        "__syncwarp();",
        "",
        1,
        equal="the model's lanes meet in the shuffles of the softmax; a GPU's need not",
    ),
    _decode(
        "lanes do not wait for each other's V",
        "__syncwarp();",
        "",
        2,
        equal="the model's lanes meet in the first ldmatrix or shuffle; a GPU's need not",
    ),
    _decode("no wait for V", "late ? copy_wait<1>() : copy_wait<3>();", ""),
    _decode("V ahead waits for one group less", ": copy_wait<3>();", ": copy_wait<4>();"),
    _decode("late V waits for one group less", "late ? copy_wait<1>()", "late ? copy_wait<2>()"),
    _decode("V of the next tile", "s, Memory::values(n));", "s, Memory::values(n + 1));"),
    _decode("late V is never copied", "if (late) load_values(n);", ""),
    _decode("P not rescaled", "rescale_rows(o, rescale);", ""),
    _decode(
        "slope of the group's first head",
        "problem.slopes[query_head(task, row)]",
        "problem.slopes[task.place.head * task.group]",
    ),
    _decode("all rows at one place", "task.span.q_start + row.query", "task.span.q_start"),
    _decode("kv_end off by one", "j < span.kv_end", "j <= span.kv_end"),
    _decode("kv_start off by one", "j >= span.kv_start", "j > span.kv_start"),
    _decode("the diagonal itself masked", "distance > 0.0f", "distance >= 0.0f"),
    _decode("warps added up without their weights", "exp2_fast(sums[w][0] - anchor)", "1.0f"),
    _decode("divided by no weight", "sum == 0.0f ? 0.0f : value / sum", "value / sum"),
    _decode(
        "rows past the end are published",
        "row >= task.rows.end) continue;",
        "row < 0) continue;",
        equal="the sums take no row past the end",
    ),
    _decode("columns past the end are stored", "if (x >= problem.head_dim) continue;", ""),
    _decode(
        "NaN is negligible",
        "all && p[0][c / 4][c % 4] <= rows.negligible[c % 4 / 2]",
        "all && !(p[0][c / 4][c % 4] > rows.negligible[c % 4 / 2])",
        equal="a row with NaN among its scores has NaN as its sum",
    ),
    Mutant(
        "decode: weights of 1/16 are negligible",
        GEOMETRY,
        "exp2f(-25.0f) /",
        "exp2f(-4.0f) *",
        part="decode",
    ),
    Mutant(
        "decode: rows of a group in another order",
        GEOMETRY,
        "return {index / len_q, index % len_q};",
        "return {index % len_q, index / len_q};",
        part="decode",
    ),
    Mutant("weights: K overwritten while read", WEIGHTS, "__syncthreads();", "", 1, part="weights"),
    Mutant(
        "weights: unseen tiles not written",
        WEIGHTS,
        "all = {0, ceil_div(problem.len_k, kColumns)}",
        "all = seen",
        part="weights",
    ),
    Mutant(
        "weights: transposed gather",
        WEIGHTS,
        "params, p, dp, delta, column, row)",
        "params, p, dp, delta, row, column)",
        part="weights",
    ),
)
