// Backward pass for Hopper GPUs: the two kernels of sm80/backward_query.cuh and backward_key.cuh,
// with the copy engine and the warpgroup products. The formulas are told there.
//
//   dq       a block owns query rows (Q and dO stay), K and V pass by
//            S = Q K^T    dP = dO V^T    dS = P (dP - delta)    dQ += dS K
//   dk, dv   a block owns keys (K and V stay), Q, dO and the row statistics pass by
//            S^T = K Q^T  dP^T = V dO^T                         dV += P^T dO    dK += dS^T Q
//
// Either way the scores have the owned rows as rows, so that what follows from them is the left
// operand of the last products as it lies in registers, and every sum belongs to one block and has
// one order. P is computed in both kernels: 7 products instead of 5, and no addition between blocks.
//
// One warp copies, two warpgroups compute 64 rows each. A pair of tiles passes by in one buffer with
// one barrier for "full" and one for "empty". The last products of a pair run on while the scores
// of the next are computed, where registers allow it; its buffer is released when they are known to
// have ended. The compiler gives that up, and says so, when another way leads to the wait that ends
// a product: loops with products in flight are entered only when they have work.
#ifndef ALIBI_CUDA_SM90_BACKWARD_CUH_
#define ALIBI_CUDA_SM90_BACKWARD_CUH_

#include "../sm80/backward_key.cuh"
#include "matrix.cuh"

namespace alibi {
namespace cuda {

// Of one kernel: the boxes of the maps are tiles of rows for two tensors, of columns for the others.
struct HopperBackwardParams {
  BackwardParams backward;
  CUtensorMap q_map;
  CUtensorMap dout_map;
  CUtensorMap k_map;
  CUtensorMap v_map;
  int together;  // heads whose blocks run at a time, see longest_first
};

// Addresses in shared memory: two tiles that stay, a ring of pairs that pass by.
template <int kRows, int kColumns, int kStages, int D>
struct PairMemory {
  static constexpr int kOwnBytes = kTileBytes<kRows, D>;
  static constexpr int kPassingBytes = kTileBytes<kColumns, D>;
  static constexpr int kStatBytes = 2 * kColumns * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kEightRows + 2 * kOwnBytes + 2 * kStages * kPassingBytes +
                                kStages * kStatBytes + 8 * (2 + 2 * kStages);

  uint32_t base;

  __device__ __forceinline__ uint32_t own(int which) const { return base + which * kOwnBytes; }
  __device__ __forceinline__ uint32_t passing(int which, int stage) const {
    return own(2) + (2 * stage + which) * kPassingBytes;
  }
  __device__ __forceinline__ uint32_t stats(int stage) const {
    return passing(0, kStages) + stage * kStatBytes;
  }
  __device__ __forceinline__ uint32_t own_full() const { return stats(kStages); }
  __device__ __forceinline__ uint32_t raw() const { return own_full() + 8; }
  __device__ __forceinline__ uint32_t full(int stage) const { return own_full() + 16 + 8 * stage; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(kStages + stage); }

  // One thread; a barrier of the block must follow.
  __device__ __forceinline__ void init_barriers(int full_arrivals, int consumer_warps) const {
    barrier_init(own_full(), 1);
    barrier_init(raw(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(full(stage), full_arrivals);
      barrier_init(empty(stage), consumer_warps);
    }
    barrier_init_fence();
  }
};

__device__ __forceinline__ uint32_t hopper_shared_base() {
  return (shared_base() + kEightRows - 1) & ~(kEightRows - 1u);
}

// Index of this thread's warpgroup, known to be the same in a warp.
__device__ __forceinline__ int warpgroup_id() {
  return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
}

// What a consumer warpgroup keeps of the pair before: its buffer, until its products have ended.
template <class Memory>
struct HeldBuffer {
  int stage = -1;

  __device__ __forceinline__ void release(const Memory& memory) const {
    if (stage >= 0 && lane_id() == 0) barrier_arrive(memory.empty(stage));
  }
};

// ---- dq and dslopes

template <int D>
using QueryGradMemory = PairMemory<kHopperQueryGradTile<D>.rows(), kHopperQueryGradTile<D>.columns,
                                   kHopperQueryGradTile<D>.stages, D>;

// Keys that the pruning bound leaves to a query tile. Every warp finds the same.
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

template <int D>
__device__ __forceinline__ void produce_keys(const HopperBackwardParams& params,
                                             const QueryTask& task,
                                             const QueryGradMemory<D>& memory, Range tiles) {
  constexpr WarpgroupTile kTile = kHopperQueryGradTile<D>;
  constexpr int kRows = kTile.rows(), kColumns = kTile.columns;
  const bool leader = lane_id() == 0;
  const int batch = task.place.batch, head = task.place.head, kv_head = task.kv_head;
  if (leader) {
    barrier_arrive_expect(memory.own_full(), 2 * kTileBytes<kRows, D>);
    copy_tile<kRows, D>(memory.own(0), params.q_map, memory.own_full(), task.rows.begin, head,
                        batch);
    copy_tile<kRows, D>(memory.own(1), params.dout_map, memory.own_full(), task.rows.begin, head,
                        batch);
  }
  RingPlace<kTile.stages> place;
  int raw_parity = 0;
  for (int tile = tiles.end - 1; tile >= tiles.begin; --tile, place.advance()) {
    const int key = tile * kColumns;
    const bool clear = needs_clearing<kColumns>(key, task.keys);
    const uint32_t k_tile = memory.passing(0, place.stage), v_tile = memory.passing(1, place.stage);
    if (leader) {
      const uint32_t landed = clear ? memory.raw() : memory.full(place.stage);
      barrier_wait(memory.empty(place.stage), place.parity ^ 1);
      barrier_arrive_expect(landed, 2 * kTileBytes<kColumns, D>);
      copy_tile<kColumns, D>(k_tile, params.k_map, landed, key, kv_head, batch);
      copy_tile<kColumns, D>(v_tile, params.v_map, landed, key, kv_head, batch);
    }
    if (!clear) continue;
    __syncwarp();
    barrier_wait(memory.raw(), raw_parity);
    raw_parity ^= 1;
    clear_rows<kColumns, D>(k_tile, key, task.keys);
    clear_rows<kColumns, D>(v_tile, key, task.keys);
    if (leader) barrier_arrive(memory.full(place.stage));
  }
}

template <class T, int D>
__device__ __forceinline__ void consume_keys(const HopperBackwardParams& params,
                                             const QueryTask& task,
                                             const QueryGradMemory<D>& memory, Range tiles,
                                             int group) {
  constexpr WarpgroupTile kTile = kHopperQueryGradTile<D>;
  constexpr int kColumns = kTile.columns, kN = kColumns / 8, kRows = kTile.rows();
  constexpr int kThreads = 128 * kTile.groups;
  const ProblemView& problem = params.backward.problem;
  const int row0 = task.rows.begin + 64 * group + warp_id() % 4 * 16;
  const uint32_t q_rows = memory.own(0) + group * kPanelBytes<64>;
  const uint32_t dout_rows = memory.own(1) + group * kPanelBytes<64>;
  float dq[1][D / 8][4], s[1][kN][4], dp[1][kN][4];
  uint32_t ds[kN / 2][4];
  set_zero(dq);
  float slope_sum = 0.0f;
  if (!tiles.empty()) {
    RowGradState<1> state;
    state.load(params.backward, task.place, row0);
    RingPlace<kTile.stages> place;
    HeldBuffer<QueryGradMemory<D>> held;
    barrier_wait(memory.own_full(), 0);
    for (int tile = tiles.end - 1; tile >= tiles.begin; --tile, place.advance()) {
      const uint32_t k_tile = memory.passing(0, place.stage);
      barrier_wait(memory.full(place.stage), place.parity);
      pin_registers(s[0]);
      pin_registers(dp[0]);
      products_fence();
      start_scores<T, D, kRows>(s[0], q_rows, k_tile);
      products_commit();
      start_scores<T, D, kRows>(dp[0], dout_rows, memory.passing(1, place.stage));
      products_commit();
      products_wait<1>();
      pin_registers(s[0]);
      held.release(memory);
      held.stage = place.stage;
      add_bias_and_mask<false>(s, task.head, row0, tile * kColumns);
      products_wait<0>();
      pin_registers(dp[0]);
      slope_sum += state.score_grads(s, dp, task.head, row0, tile * kColumns);
      pack_tile<T>(ds, s[0]);
      pin_registers(dq[0]);
      products_fence();
      start_sum<T, D>(dq[0], ds, k_tile);
      products_commit();
    }
    products_wait<0>();
    pin_registers(dq[0]);
  }
  store_grad_rows<T>(params.backward.dq, task.place, row0, problem.len_q, problem.head_dim, dq,
                     problem.scale);
  store_slope_part<kRows>(params.backward.slope_parts, problem, task.place, slope_sum,
                          memory.stats(0), kThreads / 32, [] { named_sync(1, kThreads); });
}

template <class T, int D>
__global__ void __launch_bounds__(kHopperQueryGradTile<D>.threads(), 1)
    attention_query_grad_hopper(const __grid_constant__ HopperBackwardParams params) {
  constexpr WarpgroupTile kTile = kHopperQueryGradTile<D>;
  const ProblemView& problem = params.backward.problem;
  const QueryGradMemory<D> memory = {hopper_shared_base()};
  if (threadIdx.x == 0) memory.init_barriers(1, 4 * kTile.groups);
  const TilePlace work = longest_first(blockIdx.x, ceil_div(problem.len_q, kTile.rows()),
                                       problem.batch * problem.heads_q, params.together);
  const QueryTask task = query_task<kTile.rows()>(
      problem, {work.sequence / problem.heads_q, work.sequence % problem.heads_q, work.tile});
  const Range tiles = covering_tiles(keys_in_reach(params.backward, task), kTile.columns);
  __syncthreads();
  const int group = warpgroup_id();
  if (group == kTile.groups) {
    release_registers<kTile.producer_registers>();
    if (warp_id() % 4 == 0 && !tiles.empty()) produce_keys<D>(params, task, memory, tiles);
  } else {
    acquire_registers<kTile.consumer_registers>();
    consume_keys<T, D>(params, task, memory, tiles, group);
  }
}

// ---- dk and dv

template <int D>
using KeyGradMemory = PairMemory<kHopperKeyGradTile<D>.rows(), kHopperKeyGradTile<D>.columns,
                                 kHopperKeyGradTile<D>.stages, D>;

// A tile of keys of one key head, and the query tiles that see them.
struct KeyTask {
  BlockPlace place;
  Range keys;
  Range held;  // keys that the span holds
  PairWalk walk;
};

template <int D>
__device__ __forceinline__ KeyTask key_task(const HopperBackwardParams& params) {
  constexpr WarpgroupTile kTile = kHopperKeyGradTile<D>;
  constexpr int kRows = kTile.rows();
  const ProblemView& problem = params.backward.problem;
  const int tiles = ceil_div(problem.len_k, kRows), group = problem.heads_q / problem.heads_kv;
  const TilePlace work =
      longest_first(blockIdx.x, tiles, problem.batch * problem.heads_kv, params.together);
  // Under a causal mask the first keys are seen by most rows.
  const BlockPlace place = {work.sequence / problem.heads_kv, work.sequence % problem.heads_kv,
                            tiles - 1 - work.tile};
  const Span span = load_span(problem, place.batch);
  const Range keys = {place.tile * kRows, least(place.tile * kRows + kRows, problem.len_k)};
  const Range seeing = seeing_rows(span, keys, problem.causal, problem.len_q);
  return {place,
          keys,
          {span.kv_start, span.kv_end},
          {params.backward, place.batch, place.head * group, group, keys,
           covering_tiles(seeing, kTile.columns)}};
}

// All lanes of one warp. The lanes store the row statistics, each arriving for its own; only the
// first one waits and copies.
template <int D>
__device__ __forceinline__ void produce_queries(const HopperBackwardParams& params,
                                                const KeyTask& task,
                                                const KeyGradMemory<D>& memory) {
  constexpr WarpgroupTile kTile = kHopperKeyGradTile<D>;
  constexpr int kRows = kTile.rows(), kColumns = kTile.columns;
  const bool leader = lane_id() == 0;
  const int batch = task.place.batch, first_key = task.keys.begin;
  int pair = task.walk.template from<kColumns>(0);
  if (pair == PairWalk::kEnd) return;
  const bool clear = needs_clearing<kRows>(first_key, task.held);
  if (leader) {
    const uint32_t landed = clear ? memory.raw() : memory.own_full();
    barrier_arrive_expect(landed, 2 * kTileBytes<kRows, D>);
    copy_tile<kRows, D>(memory.own(0), params.k_map, landed, first_key, task.place.head, batch);
    copy_tile<kRows, D>(memory.own(1), params.v_map, landed, first_key, task.place.head, batch);
  }
  if (clear) {
    __syncwarp();
    barrier_wait(memory.raw(), 0);
    clear_rows<kRows, D>(memory.own(0), first_key, task.held);
    clear_rows<kRows, D>(memory.own(1), first_key, task.held);
    if (leader) barrier_arrive(memory.own_full());
  }
  RingPlace<kTile.stages> place;
  for (; pair != PairWalk::kEnd; place.advance()) {
    const uint32_t full = memory.full(place.stage);
    const int head = task.walk.head(pair), row = task.walk.tile(pair) * kColumns;
    if (leader) {
      barrier_wait(memory.empty(place.stage), place.parity ^ 1);
      barrier_arrive_expect(full, 2 * kTileBytes<kColumns, D>);
      copy_tile<kColumns, D>(memory.passing(0, place.stage), params.q_map, full, row, head, batch);
      copy_tile<kColumns, D>(memory.passing(1, place.stage), params.dout_map, full, row, head,
                             batch);
    }
    __syncwarp();
    for (int c = lane_id(); c < kColumns; c += 32) {
      load_row_stats<kColumns>(memory.stats(place.stage), params.backward, batch, head, row, c);
    }
    barrier_arrive(full);
    pair = task.walk.template from<kColumns>(pair + 1);
  }
}

template <class T, int D>
__device__ __forceinline__ void consume_queries(const HopperBackwardParams& params,
                                                const KeyTask& task, const KeyGradMemory<D>& memory,
                                                int group) {
  constexpr WarpgroupTile kTile = kHopperKeyGradTile<D>;
  constexpr int kRows = kTile.rows(), kColumns = kTile.columns, kN = kColumns / 8;
  const BackwardParams& out = params.backward;
  const ProblemView& problem = out.problem;
  const int row0 = task.keys.begin + 64 * group + warp_id() % 4 * 16;
  const uint32_t k_rows = memory.own(0) + group * kPanelBytes<64>;
  const uint32_t v_rows = memory.own(1) + group * kPanelBytes<64>;
  float dk[1][D / 8][4], dv[1][D / 8][4], s[1][kN][4], dp[1][kN][4];
  uint32_t p[kN / 2][4], ds[kN / 2][4];
  set_zero(dk);
  set_zero(dv);
  int pair = task.walk.template from<kColumns>(0);
  if (pair != PairWalk::kEnd) {
    RingPlace<kTile.stages> place;
    HeldBuffer<KeyGradMemory<D>> held;
    barrier_wait(memory.own_full(), 0);
    do {
      const uint32_t q_tile = memory.passing(0, place.stage);
      const uint32_t dout_tile = memory.passing(1, place.stage);
      barrier_wait(memory.full(place.stage), place.parity);
      pin_registers(s[0]);
      pin_registers(dp[0]);
      products_fence();
      start_scores<T, D, kRows>(s[0], k_rows, q_tile);
      products_commit();
      start_scores<T, D, kRows>(dp[0], v_rows, dout_tile);
      products_commit();
      products_wait<1>();
      pin_registers(s[0]);
      held.release(memory);
      held.stage = place.stage;
      add_bias_and_mask<true>(s, load_head(problem, task.place.batch, task.walk.head(pair)), row0,
                              task.walk.tile(pair) * kColumns);
      products_wait<0>();
      pin_registers(dp[0]);
      weights_and_grads(s, dp, memory.stats(place.stage));
      pack_tile<T>(p, s[0]);
      pack_tile<T>(ds, dp[0]);
      pin_registers(dv[0]);
      pin_registers(dk[0]);
      products_fence();
      start_sum<T, D>(dv[0], p, dout_tile);
      start_sum<T, D>(dk[0], ds, q_tile);
      products_commit();
      // All accumulators at once would not fit the registers of the wider heads.
      if (D > 64) products_wait<0>();
      place.advance();
      pair = task.walk.template from<kColumns>(pair + 1);
    } while (pair != PairWalk::kEnd);
    products_wait<0>();
    pin_registers(dv[0]);
    pin_registers(dk[0]);
  }
  store_grad_rows<T>(out.dk, task.place, row0, problem.len_k, D, dk, problem.scale);
  store_grad_rows<T>(out.dv, task.place, row0, problem.len_k, D, dv, 1.0f);
}

template <class T, int D>
__global__ void __launch_bounds__(kHopperKeyGradTile<D>.threads(), 1)
    attention_key_grad_hopper(const __grid_constant__ HopperBackwardParams params) {
  constexpr WarpgroupTile kTile = kHopperKeyGradTile<D>;
  const KeyGradMemory<D> memory = {hopper_shared_base()};
  if (threadIdx.x == 0) memory.init_barriers(1 + 32, 4 * kTile.groups);
  const KeyTask task = key_task<D>(params);
  __syncthreads();
  const int group = warpgroup_id();
  if (group == kTile.groups) {
    release_registers<kTile.producer_registers>();
    if (warp_id() % 4 == 0) produce_queries<D>(params, task, memory);
  } else {
    acquire_registers<kTile.consumer_registers>();
    consume_queries<T, D>(params, task, memory, group);
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_BACKWARD_CUH_
