// What comes before and after the Hopper backward kernel: which tiles of keys matter to a tile of
// query rows, the walk of a block over the rows that its keys matter to, and dq from the sums in
// float32.
#ifndef ALIBI_CUDA_SM90_BACKWARD_ENDS_CUH_
#define ALIBI_CUDA_SM90_BACKWARD_ENDS_CUH_

#include "../sm80/block.cuh"
#include "tensor_map.h"

namespace alibi {
namespace cuda {

// A piece of dq: 64 rows and 64 columns, in the order in which 128 threads hold the accumulators of
// a product: by eight columns, by thread, four floats each (two of a row, two of the eighth after).
constexpr int kPieceFloats = 64 * 64;
constexpr int kPieceBytes = kPieceFloats * static_cast<int>(sizeof(float));

struct HopperBackwardParams {
  BackwardParams backward;
  CUtensorMap q_map;
  CUtensorMap dout_map;
  CUtensorMap k_map;
  CUtensorMap v_map;
  Range* reaches;  // [B, Hq, query tiles] tiles of keys that matter to a tile of query rows
  float* stats;    // [B, Hq, query tiles, kStatFloats] of the rows of a tile
  float* pieces;   // [B, Hq, query tiles, groups] sums of dq / scale
  int* turns;      // [B, Hq, query tiles] additions so far, zero at the start
  int* ticket;     // tasks taken so far, zero at the start
  int together;    // heads whose blocks run at a time, see longest_first
};

// The (query head, query tile) pairs that a tile of keys matters to: the heads of the group in
// turn, and the tiles of each. All lanes of a warp.
struct ReachWalk {
  const Range* reaches;  // of the group's first head
  int first_head;
  int group;
  int query_tiles;  // of a head
  int key_tile;
  Range tiles;  // of a head, those that may see the keys

  static constexpr int kEnd = -1;

  __device__ __forceinline__ int head(int pair) const {
    return first_head + pair / (tiles.end - tiles.begin);
  }
  __device__ __forceinline__ int tile(int pair) const {
    return tiles.begin + pair % (tiles.end - tiles.begin);
  }
  __device__ __forceinline__ Range reach(int pair) const {
    return reaches[(head(pair) - first_head) * query_tiles + tile(pair)];
  }
  // How many tiles of keys come before this one where several work on the same rows.
  __device__ __forceinline__ int order(int pair) const { return reach(pair).end - 1 - key_tile; }
  // Of the query tile among those of all heads.
  __device__ __forceinline__ int64_t index(int pair, const ProblemView& problem, int batch) const {
    return (static_cast<int64_t>(batch) * problem.heads_q + head(pair)) * query_tiles + tile(pair);
  }

  // The first pair from `pair` on whose rows need this tile of keys.
  __device__ __forceinline__ int from(int pair) const {
    const int count = group * (tiles.end - tiles.begin);
    for (; pair < count; pair += 32) {
      int found = pair + lane_id();
      if (found >= count || reach(found).begin > key_tile || reach(found).end <= key_tile)
        found = count;
#pragma unroll
      for (int step = 16; step > 0; step /= 2)
        found = least(found, __shfl_xor_sync(kAllLanes, found, step));
      if (found < count) return found;
    }
    return kEnd;
  }
};

// Keys that the masks and the pruning bound leave to a tile of query rows. One warp.
__device__ __forceinline__ Range keys_in_reach(const BackwardParams& params,
                                               const QueryTask& task) {
  if (params.slack == nullptr || task.keys.empty()) return task.keys;
  int begin = task.keys.end, end = task.keys.begin;
  for (int row = task.rows.begin + lane_id(); row < task.rows.end; row += 32) {
    const int64_t index = row_index(params.problem, task.place.batch, task.place.head, row);
    const int reach = reach_of_slack(params.slack[index], task.head.slope2);
    if (reach < 0) continue;
    const int position = task.head.span.q_start + row;
    const Range keys = within_reach(task.keys, {position, position + 1}, reach);
    begin = least(begin, keys.begin);
    end = most(end, keys.end);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    begin = least(begin, __shfl_xor_sync(kAllLanes, begin, step));
    end = most(end, __shfl_xor_sync(kAllLanes, end, step));
  }
  return {begin, end};
}

// Statistics of a tile of query rows: log-sum-exp in base 2, then delta. +inf makes P = 0 for rows
// that see nothing or do not exist.
template <int kColumns>
constexpr int kStatFloats = 2 * kColumns;

// One warp per tile of kColumns query rows, in the order of [B, Hq, query tiles].
template <int kColumns>
__global__ void __launch_bounds__(32)
    describe_queries(const HopperBackwardParams params, int key_tile_rows) {
  const BackwardParams& given = params.backward;
  const ProblemView& problem = given.problem;
  const int tiles = ceil_div(problem.len_q, kColumns), x = static_cast<int>(blockIdx.x);
  const int sequence = x / tiles;
  const QueryTask task = query_task<kColumns>(
      problem, BlockPlace{sequence / problem.heads_q, sequence % problem.heads_q, x % tiles});
  const Range found = covering_tiles(keys_in_reach(given, task), key_tile_rows);
  if (lane_id() == 0) params.reaches[x] = found;
  float* stats = params.stats + static_cast<int64_t>(x) * kStatFloats<kColumns>;
  for (int c = lane_id(); c < kColumns; c += 32) {
    const int row = task.rows.begin + c;
    const bool inside = row < task.rows.end;
    const int64_t index =
        inside ? row_index(problem, task.place.batch, task.place.head, row) : int64_t{0};
    const float lse = inside ? given.lse[index] : -INFINITY;
    stats[c] = lse == -INFINITY ? INFINITY : lse * kLog2E;
    stats[kColumns + c] = inside ? given.delta[index] : 0.0f;
  }
}

// dq = scale * the sums, rounded to T. One block per piece; a thread has eight columns of two rows.
constexpr int kFinishThreads = 256;
template <class T, int D>
__global__ void __launch_bounds__(kFinishThreads)
    finish_query_grads(const HopperBackwardParams params) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  constexpr int kColumnPieces = D / 64;
  const ProblemView& problem = params.backward.problem;
  const TensorView& grad = params.backward.dq;
  const int group = static_cast<int>(blockIdx.x) % kTile.groups;
  const int index = static_cast<int>(blockIdx.x) / kTile.groups;
  const int tiles = ceil_div(problem.len_q, kTile.columns), sequence = index / tiles;
  const int eight = static_cast<int>(threadIdx.x) % 8;
  const int line = static_cast<int>(threadIdx.x) / 8 % 8, warp = static_cast<int>(threadIdx.x) / 64;
  float x[2][8] = {};
  if (!params.reaches[index].empty()) {
    const float* source = params.pieces + static_cast<int64_t>(blockIdx.x) * kPieceFloats +
                          (eight * 128 + warp * 32 + line * 4) * 4;
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
      const Words four = *reinterpret_cast<const Words*>(source + 4 * lane);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i / 2][2 * lane + i % 2] = __uint_as_float(four.word[i]) * problem.scale;
    }
  }
  const int column = group % kColumnPieces * 64 + 8 * eight;
  T* data = head_data<T>(grad, sequence / problem.heads_q, sequence % problem.heads_q);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row =
        index % tiles * kTile.columns + group / kColumnPieces * 64 + 16 * warp + line + 8 * half;
    if (row >= problem.len_q) continue;
    T* target = data + row * grad.stride_s + column;
    if (grad.aligned) {
      Words packed;
#pragma unroll
      for (int i = 0; i < 4; ++i) packed.word[i] = pack<T>(x[half][2 * i], x[half][2 * i + 1]);
      *reinterpret_cast<Words*>(target) = packed;
    } else {
      for (int i = 0; i < 8; ++i) from_float(target[i], x[half][i]);
    }
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_BACKWARD_ENDS_CUH_
