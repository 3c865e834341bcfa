// What comes before and after the Hopper backward kernel: which tiles of keys matter to a tile of
// query rows, the walk of a block over the rows that its keys matter to, and dq from the sums in
// float32.
#ifndef ALIBI_CUDA_SM90_BACKWARD_ENDS_CUH_
#define ALIBI_CUDA_SM90_BACKWARD_ENDS_CUH_

#include "../sm80/block.cuh"
#include "../sm80/prepass.cuh"
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
  int* turns;      // [B, Hq, query tiles, groups] additions so far, zero at the start
  int* ticket;     // tasks taken so far, zero at the start
  int tasks;       // tiles of keys of all key heads
  int together;    // heads whose tasks run at a time, see longest_first
};

// The (query head, query tile) pairs that a tile of keys matters to: the query tiles from the last to
// the first, and the heads of the group for each. All lanes of a warp.
struct ReachWalk {
  const Range* reaches;  // of all query tiles
  int first;             // query tile of the group's first head, among those of all heads
  int first_head;
  int group;
  int query_tiles;  // of a head
  int key_tile;
  Range tiles;  // of a head, those that may see the keys

  static constexpr int kEnd = -1;

  __device__ __forceinline__ int head(int pair) const { return first_head + pair % group; }
  __device__ __forceinline__ int tile(int pair) const { return tiles.end - 1 - pair / group; }
  __device__ __forceinline__ Range reach(int pair) const { return reaches[index(pair)]; }
  // How many tiles of keys come before this one where several work on the same rows.
  __device__ __forceinline__ int order(int pair) const { return key_tile - reach(pair).begin; }
  // Of the query tile among those of all heads.
  __device__ __forceinline__ int index(int pair) const {
    return first + pair % group * query_tiles + tile(pair);
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

// Statistics of a tile of query rows: log-sum-exp in base 2, then delta_i = <dout_i, out_i> - dlse_i.
// +inf makes P = 0 for rows that see nothing or do not exist.
template <int kColumns>
constexpr int kStatFloats = 2 * kColumns;

constexpr int kDescribeWarps = 8;
constexpr int kDescribeShared = kDescribeWarps * 8;

// The keys that the pruning bound leaves to a row.
__device__ __forceinline__ Range keys_in_reach(const ProblemView& problem, const QueryTask& task,
                                               int row, float lse, float q_norm, float k_norm) {
  const float slack = row_slack(problem, task.head, row, lse, q_norm, k_norm);
  const int reach = reach_of_slack(slack, task.head.slope2);
  const int position = task.head.span.q_start + row;
  if (reach < 0) return {task.keys.end, task.keys.begin};
  return within_reach(task.keys, {position, position + 1}, reach);
}

// From the first key of any range to the last one, over a block of kDescribeWarps warps; thread 0 has
// the result.
__device__ __forceinline__ Range hull_of_block(Range keys) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    keys.begin = least(keys.begin, __shfl_xor_sync(kAllLanes, keys.begin, step));
    keys.end = most(keys.end, __shfl_xor_sync(kAllLanes, keys.end, step));
  }
  const auto place = [](int warp, int which) {
    return shared_base() + static_cast<uint32_t>(8 * warp + 4 * which);
  };
  if (lane_id() == 0) {
    store_shared(place(warp_id(), 0), __uint_as_float(static_cast<uint32_t>(keys.begin)));
    store_shared(place(warp_id(), 1), __uint_as_float(static_cast<uint32_t>(keys.end)));
  }
  __syncthreads();
  if (threadIdx.x != 0) return keys;
  for (int warp = 1; warp < kDescribeWarps; ++warp) {
    float begin, end;
    load_shared(begin, place(warp, 0));
    load_shared(end, place(warp, 1));
    keys = {least(keys.begin, __float_as_int(begin)), most(keys.end, __float_as_int(end))};
  }
  return keys;
}

// One block per tile of query rows, in the order of [B, Hq, query tiles]: the statistics of its rows,
// and which tiles of keys matter to them. All of a block's reads of out and dout start at once.
template <class T, int D>
__global__ void __launch_bounds__(kDescribeWarps * 32)
    describe_queries(const HopperBackwardParams params) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  constexpr int kColumns = kTile.columns, kEach = kColumns / kDescribeWarps;
  static_assert(kEach == kBatch * 32 / (D / kPiece<T>), "a warp has one batch of rows");
  const BackwardParams& given = params.backward;
  const ProblemView& problem = given.problem;
  const int tiles = ceil_div(problem.len_q, kColumns), x = static_cast<int>(blockIdx.x);
  const BlockPlace place = {x / tiles / problem.heads_q, x / tiles % problem.heads_q, x % tiles};
  const QueryTask task = query_task<kColumns>(problem, place);
  const RowLanes split = row_lanes<T>(D);
  const int first = task.rows.begin + warp_id() * kEach, end = task.rows.end;
  const bool bounded = given.key_norms != nullptr;
  const float k_norm =
      bounded ? given.key_norms[place.batch * problem.heads_kv + task.kv_head] : 0.0f;
  float sums[kBatch] = {}, squares[kBatch] = {};
  if (first < end) {
    const DotRows<T> dout = dot_rows<T>(given.dout, place.batch, place.head);
    const DotRows<T> out = dot_rows<T>(given.out, place.batch, place.head);
    const DotRows<T> q = dot_rows<T>(given.q, place.batch, place.head);
    dot_products(out, dout, D, split, first, end, sums);
    if (bounded) dot_products(q, q, D, split, first, end, squares);
  }
  Range keys = {task.keys.end, task.keys.begin};
  float* stats = params.stats + static_cast<int64_t>(x) * kStatFloats<kColumns>;
#pragma unroll
  for (int u = 0; u < kBatch; ++u) {
    const int row = first + u * split.step + split.row, column = row - task.rows.begin;
    if (split.lane != 0) continue;
    float lse = -INFINITY, delta = 0.0f;
    if (row < end) {
      const int64_t index = row_index(problem, place.batch, place.head, row);
      lse = given.lse[index];
      delta = given.dlse == nullptr ? sums[u] : sums[u] - given.dlse[index];
      if (bounded) {
        const float q_norm = norm_of(bounding(squares[u]));
        const Range found = keys_in_reach(problem, task, row, lse, q_norm, k_norm);
        keys = {least(keys.begin, found.begin), most(keys.end, found.end)};
      }
    }
    stats[column] = lse == -INFINITY ? INFINITY : lse * kLog2E;
    stats[kColumns + column] = delta;
  }
  if (bounded && !task.keys.empty()) {
    keys = hull_of_block(keys);
  } else {
    keys = task.keys;
  }
  if (threadIdx.x == 0) params.reaches[x] = covering_tiles(keys, kTile.rows());
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
