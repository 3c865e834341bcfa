// Few query rows against many keys, as in decoding: what takes time is reading K and V.
//
// A tile holds 16 query rows: those of all heads that share a key head, so that its keys are read
// once for all of them. A block takes a part of the keys, and each of its warps every `warps`-th key
// tile of that part, through buffers of its own: no warp waits for another before the end.
//
//   for each key tile of a warp, while later ones are on their way:
//     S = Q K^T, then scale, bias, mask; P = exp2(S - row_max)
//     O += P V
//   add up row_sum and O of the warps; combine_splits adds up those of the blocks
//
// Pruning. The bound of the other kernels needs the largest key norm, and to read all keys for it
// costs as much as half of the pass. Here the scores decide, which are exact: every warp first takes
// the scores of the keys nearest to the rows, and starts with their maximum as row_max. A tile of V
// is left out when all of P is below negligible_weight: row_max never falls, so that all of what is
// left out stays below 2^-24 of the row, and row_sum has it all the same. Where one tile of V counts
// the next is likely to: it is copied before its scores are known.
#ifndef ALIBI_CUDA_SM80_DECODE_CUH_
#define ALIBI_CUDA_SM80_DECODE_CUH_

#include "../tile_config.h"
#include "block.cuh"
#include "softmax.cuh"

namespace alibi {
namespace cuda {

// Where things lie in shared memory.
template <class T, int D, Gpu kGpu>
struct DecodeMemory {
  static constexpr DecodeTile kTile = kDecodeTile<T, D, kGpu>;
  static constexpr int kTileBytes = kTile.keys * kRowBytes<T, D>;
  static constexpr int kRing = 4 * kTileBytes;
  static constexpr int kRings = kDecodeRows * kRowBytes<T, D>;
  static constexpr int kSums = kRings + kTile.warps * kRing;
  static constexpr int kBytes = kSums + kTile.warps * kDecodeRows * 8;
  // O of a warp takes the place of its ring in the end; the width keeps rows in different banks.
  static constexpr int kSumWidth = D + 8;
  static_assert(kDecodeRows * kSumWidth * 4 <= kRing, "O of a warp must fit its ring");

  __device__ __forceinline__ static uint32_t queries() { return shared_base(); }
  __device__ __forceinline__ static uint32_t ring(int warp) {
    return shared_base() + static_cast<uint32_t>(kRings + warp * kRing);
  }
  __device__ __forceinline__ static uint32_t keys(int n) {
    return ring(warp_id()) + static_cast<uint32_t>(n % 2 * kTileBytes);
  }
  __device__ __forceinline__ static uint32_t values(int n) {
    return ring(warp_id()) + static_cast<uint32_t>((2 + n % 2) * kTileBytes);
  }
  // row_max and row_sum of a row of a warp.
  __device__ __forceinline__ static uint32_t sums(int warp, int row) {
    return shared_base() + static_cast<uint32_t>(kSums + (warp * kDecodeRows + row) * 8);
  }
  __device__ __forceinline__ static uint32_t out(int warp, int row, int column) {
    return ring(warp) + static_cast<uint32_t>((row * kSumWidth + column) * 4);
  }
};

// What a block works on: `rows` of the packed rows of a key head, against a part of the keys.
struct DecodeTask {
  BlockPlace place;  // head: a key head
  int group;         // query heads of a key head
  Range rows;
  Span span;
  Range visible;  // to one of the rows
};

__device__ __forceinline__ DecodeTask decode_task(const ProblemView& problem, unsigned block) {
  DecodeTask task;
  task.group = problem.heads_q / problem.heads_kv;
  const int rows = task.group * problem.len_q;
  task.place = place_block(block, ceil_div(rows, kDecodeRows), problem.heads_kv);
  const int begin = task.place.tile * kDecodeRows;
  task.rows = {begin, least(begin + kDecodeRows, rows)};
  task.span = load_span(problem, task.place.batch);
  task.visible = visible_keys(task.span, {0, problem.len_q}, problem.causal);
  return task;
}

// The query head of a packed row.
__device__ __forceinline__ int query_head(const DecodeTask& task, PackedRow row) {
  return task.place.head * task.group + row.head;
}

// Starts the copy of rows [row0, row0 + kRows) into a tile of this warp. Nearly all tiles are whole,
// and need no look at single rows.
template <class T, int D, int kRows>
__device__ __forceinline__ void load_own_tile(uint32_t tile, const RowSource<T>& source, int row0) {
  constexpr int kAll = kPieces<T, D>, kAcross = least(kAll, 32), kStep = 32 / kAcross;
  static_assert(kRows % kStep == 0, "a tile must be whole passes of the warp");
  if (row0 < source.valid.begin || row0 + kRows > source.valid.end || source.head_dim < D) {
#pragma unroll 1
    for (int i = lane_id(); i < kRows * kAll; i += 32) {
      const int own = i / kAll, piece = i % kAll, row = row0 + own;
      const int count = most(0, least(source.head_dim - piece * kPiece<T>, kPiece<T>));
      const bool valid = row >= source.valid.begin && row < source.valid.end && count > 0;
      const T* from = source.data + row * source.stride + piece * kPiece<T>;
      copy_async(tile + tile_offset(own, piece, kAll), valid ? from : source.data,
                 valid ? count * static_cast<int>(sizeof(T)) : 0);
    }
    return;
  }
  const int first = lane_id() / kAcross;
  if (first >= kStep) return;
#pragma unroll
  for (int piece = lane_id() % kAcross; piece < kAll; piece += kAcross) {
    const T* from = source.data + (row0 + first) * source.stride + piece * kPiece<T>;
#pragma unroll 4  // more keeps too many addresses in registers
    for (int i = 0; i < kRows / kStep; ++i) {
      copy_async(tile + tile_offset(first + i * kStep, piece, kAll), from, 16);
      from += kStep * source.stride;
    }
  }
}

// Starts the copy of the packed query rows. All threads of the block take part.
template <class T, int D, int kThreads>
__device__ __forceinline__ void load_packed_queries(uint32_t tile, const ForwardParams& params,
                                                    const DecodeTask& task) {
  const ProblemView& problem = params.problem;
  for (int i = static_cast<int>(threadIdx.x); i < kDecodeRows * kPieces<T, D>; i += kThreads) {
    const int own = i / kPieces<T, D>, piece = i % kPieces<T, D>, index = task.rows.begin + own;
    const int count = most(0, least(problem.head_dim - piece * kPiece<T>, kPiece<T>));
    const bool valid = index < task.rows.end && count > 0;
    const PackedRow row = packed_row(valid ? index : 0, problem.len_q);
    const T* source = head_data<const T>(params.q, task.place.batch, query_head(task, row)) +
                      row.query * params.q.stride_s + piece * kPiece<T>;
    copy_async(tile + tile_offset(own, piece, kPieces<T, D>),
               valid ? source : static_cast<const T*>(params.q.data),
               valid ? count * static_cast<int>(sizeof(T)) : 0);
  }
}

// What a lane knows of its two rows, l / 4 and l / 4 + 8 of the tile.
struct LaneRows {
  int position[2];
  float slope2[2];
  float negligible[2];  // weights up to this one are; below zero: none
};

__device__ __forceinline__ LaneRows lane_rows(const ProblemView& problem, const DecodeTask& task) {
  LaneRows rows;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int index = task.rows.begin + 8 * i + lane_id() / 4;
    const bool exists = index < task.rows.end;
    const PackedRow row = packed_row(exists ? index : 0, problem.len_q);
    const float slope = problem.slopes[query_head(task, row)];
    const bool prune = can_prune(problem.prune, slope, problem.causal, problem.symmetric);
    rows.position[i] = task.span.q_start + row.query;
    rows.slope2[i] = slope * kLog2E;
    rows.negligible[i] = !exists ? INFINITY : prune ? negligible_weight(problem.len_k) : -1.0f;
  }
  return rows;
}

// Turns products with the keys from `key0` on into scores in base 2: add_bias_and_mask for rows of
// different heads.
template <int kN>
__device__ __forceinline__ void add_packed_bias(float (&s)[1][kN][4], const ProblemView& problem,
                                                const Span& span, const LaneRows& rows, int key0) {
  const float scale2 = problem.scale * kLog2E;
  const int key = key0 + lane_id() % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float first = static_cast<float>(key - rows.position[i]);
#pragma unroll
    for (int c = 0; c < 2 * kN; ++c) {
      const int offset = c / 2 * 8 + c % 2, j = key + offset;
      const float distance = first + static_cast<float>(offset);
      const bool allowed =
          j >= span.kv_start && j < span.kv_end && !(problem.causal && distance > 0.0f);
      const float factor = problem.symmetric ? -fabsf(distance) : distance;
      float& x = s[0][c / 2][2 * i + c % 2];
      x = allowed ? fmaf(rows.slope2[i], factor, x * scale2) : -INFINITY;
    }
  }
}

// Whether this lane's weights are all negligible. NaN is not.
template <int kN>
__device__ __forceinline__ bool all_negligible(const float (&p)[1][kN][4], const LaneRows& rows) {
  bool all = true;
#pragma unroll
  for (int c = 0; c < 4 * kN; ++c) all = all && p[0][c / 4][c % 4] <= rows.negligible[c % 4 / 2];
  return all;
}

// The walk of one warp over its key tiles, with two buffers for K and two for V. Copies are counted in
// groups, in the order K_0, V_0, K_1, V_1, ..., empty ones too: what a wait leaves in flight is then a
// constant.
template <class T, int D, Gpu kGpu>
struct DecodeWalk {
  using Memory = DecodeMemory<T, D, kGpu>;
  static constexpr DecodeTile kTile = Memory::kTile;
  static constexpr int kKeys = kTile.keys;

  const ProblemView& problem;
  const DecodeTask& task;
  const LaneRows rows;
  const RowSource<T> k;
  const RowSource<T> v;
  const Range keys;  // of the block
  const bool dense;  // nothing can be left out
  bool loaded;       // V of the next tile is on its way, or has landed
  float o[1][D / 8][4];
  RowState<1> state;

  __device__ __forceinline__ DecodeWalk(const ForwardParams& params, const DecodeTask& of,
                                        int split)
      : problem(params.problem),
        task(of),
        rows(lane_rows(problem, task)),
        k(source(params.k)),
        v(source(params.v)),
        keys(split_range(task.visible, params.splits, split, kKeys * kTile.warps)),
        dense(!problem.prune || (!problem.causal && !problem.symmetric)),
        loaded(dense) {
    set_zero(o);
  }
  __device__ __forceinline__ RowSource<T> source(const TensorView& tensor) const {
    return head_rows<T>(tensor, task.place.batch, task.place.head, task.visible, problem.head_dim);
  }

  __device__ __forceinline__ int first_key(int n) const {
    return (keys.begin / kKeys + warp_id() + n * kTile.warps) * kKeys;
  }
  __device__ __forceinline__ int count() const {
    const Range tiles = covering_tiles(keys, kKeys);
    return most(0, ceil_div(tiles.end - tiles.begin - warp_id(), kTile.warps));
  }

  __device__ __forceinline__ void score(float (&s)[1][kKeys / 8][4], uint32_t tile,
                                        int key0) const {
    set_zero(s);
    multiply_tiles<T, D>(s, Memory::queries(), 0, tile);
    add_packed_bias(s, problem, task.span, rows, key0);
  }

  // row_max of the rows that may leave something out, from the keys of a tile.
  __device__ __forceinline__ void start_from(uint32_t tile, int key0) {
    float s[1][kKeys / 8][4];
    score(s, tile, key0);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = -INFINITY;
#pragma unroll
      for (int c = 0; c < kKeys / 4; ++c) top = fmaxf(top, s[0][c / 2][2 * i + c % 2]);
      top = quad_max(top);
      if (rows.negligible[i] > 0.0f) state.row_max[0][i] = top;
    }
  }

  __device__ __forceinline__ void load_keys(int n, int end) const {
    if (n < end) load_own_tile<T, D, kKeys>(Memory::keys(n), k, first_key(n));
    copy_commit();
  }
  __device__ __forceinline__ void load_values(int n) const {
    load_own_tile<T, D, kKeys>(Memory::values(n), v, first_key(n));
  }

  __device__ __forceinline__ void start(int end) const {
    load_keys(0, end);
    if (dense && end > 0) load_values(0);
    copy_commit();
    load_keys(1, end);
  }

  __device__ __forceinline__ void step(int n, int end) {
    copy_wait<2>();
    __syncwarp();  // K has landed for all lanes
    float s[1][kKeys / 8][4], rescale[1][2];
    score(s, Memory::keys(n), first_key(n));
    state.absorb(s, rescale);
    const bool used = dense || !__all_sync(kAllLanes, all_negligible(s, rows));
    const bool late = used && !loaded;
    __syncwarp();  // all lanes have read K, and V of the step before
    if (late) load_values(n);
    if (used && n + 1 < end) load_values(n + 1);
    copy_commit();
    loaded = used;
    load_keys(n + 2, end);
    rescale_rows(o, rescale);
    if (!used) return;
    late ? copy_wait<1>() : copy_wait<3>();
    __syncwarp();  // V has landed for all lanes
    multiply_registers<T, D>(o, s, Memory::values(n));
  }

  // Leaves O, row_max and row_sum where the other warps find them.
  __device__ __forceinline__ void publish() {
    copy_wait<0>();  // of a V that nobody waited for
    __syncwarp();    // and all lanes have read the last one
    state.finish();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 8 * i + lane_id() / 4;
      if (task.rows.begin + row >= task.rows.end) continue;
#pragma unroll
      for (int c = 0; c < D / 4; ++c) {
        const int column = c / 2 * 8 + lane_id() % 4 * 2 + c % 2;
        store_shared(Memory::out(warp_id(), row, column), o[0][c / 2][2 * i + c % 2]);
      }
      if (lane_id() % 4 != 0) continue;
      store_shared(Memory::sums(warp_id(), row), state.row_max[0][i]);
      store_shared(Memory::sums(warp_id(), row) + 4, state.row_sum[0][i]);
    }
  }
};

// Adds up what the warps have published: out and lse, or the part of them that comes from this
// block's keys.
template <class T, int D, Gpu kGpu>
__device__ __forceinline__ void store_decoded(const ForwardParams& params, const DecodeTask& task,
                                              int split) {
  using Memory = DecodeMemory<T, D, kGpu>;
  constexpr int kWarps = Memory::kTile.warps;
  const ProblemView& problem = params.problem;
  const int count = (task.rows.end - task.rows.begin) * D;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kWarps * 32) {
    const int own = i / D, x = i % D;
    if (x >= problem.head_dim) continue;
    float sums[kWarps][2], top = -INFINITY, sum = 0.0f, value = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      load_shared(sums[w], Memory::sums(w, own));
      top = fmaxf(top, sums[w][0]);
    }
    const float anchor = top == -INFINITY ? 0.0f : top;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = exp2_fast(sums[w][0] - anchor);
      float part;
      load_shared(part, Memory::out(w, own, x));
      sum = fmaf(weight, sums[w][1], sum);
      value = fmaf(weight, part, value);
    }
    // A sum of zero: no key, or all of them too far for float32.
    value = sum == 0.0f ? 0.0f : value / sum;
    const float lse2 = sum == 0.0f ? -INFINITY : top + log2f(sum);
    const PackedRow row = packed_row(task.rows.begin + own, problem.len_q);
    const int head = query_head(task, row);
    const int64_t index = row_index(problem, task.place.batch, head, row.query);
    if (params.splits > 1) {
      const int64_t rows = static_cast<int64_t>(problem.batch) * problem.heads_q * problem.len_q;
      const int64_t part = split * rows + index;
      params.split_out[part * problem.head_dim + x] = value;
      if (x == 0) params.split_lse[part] = lse2;
    } else {
      T* out = head_data<T>(params.out, task.place.batch, head) + row.query * params.out.stride_s;
      from_float(out[x], value);
      if (x == 0) params.lse[index] = lse2 * kLn2;
    }
  }
}

template <class T, int D, Gpu kGpu>
__global__ void __launch_bounds__(kDecodeThreads<T, D, kGpu>, kDecodeResident<T, D, kGpu>)
    attention_decode(const ForwardParams params) {
  if (!runs_here<T>(kGpu, kDecodeTile<T, D, kTuring>.gpu)) return wrong_gpu();
  using Walk = DecodeWalk<T, D, kGpu>;
  using Memory = DecodeMemory<T, D, kGpu>;
  constexpr DecodeTile kTile = Memory::kTile;
  const ProblemView& problem = params.problem;
  const unsigned splits = static_cast<unsigned>(params.splits);
  const int split = static_cast<int>(blockIdx.x % splits);
  const DecodeTask task = decode_task(problem, blockIdx.x / splits);
  Walk walk(params, task, split);

  const int end = walk.count(), last = task.span.q_start + problem.len_q - 1;
  const int near = nearest_keys(task.visible, last, kTile.keys).begin;
  load_packed_queries<T, D, kTile.threads()>(Memory::queries(), params, task);
  if (!walk.dense) load_own_tile<T, D, kTile.keys>(Memory::values(0), walk.k, near);
  copy_commit();
  walk.start(end);
  copy_wait<3>();
  __syncthreads();  // the queries have landed for everyone
  if (!walk.dense) walk.start_from(Memory::values(0), near);
#pragma unroll 1
  for (int n = 0; n < end; ++n) walk.step(n, end);
  walk.publish();
  __syncthreads();
  store_decoded<T, D, kGpu>(params, task, split);
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_DECODE_CUH_
