// Forward pass of fused ALiBi attention for Hopper GPUs: what sm80/forward.cuh computes, with the
// copy engine and the warpgroup products of that architecture.
//
// A block works on 64 query rows per warpgroup of "consumers"; one more warpgroup, the "producer",
// only starts copies. They meet in a ring of `stages` buffers, each with a barrier that says "full"
// (the copy engine has delivered) and one that says "empty" (every consumer warp has done with it):
//
//   producer   for each key tile:   wait empty K; copy K      wait empty V; copy V
//   consumer   S = Q K_last^T; softmax; P = exp2(S)
//              for each further key tile n, from the last to the first:
//                wait full K, V; take the turn
//                start S = Q K_n^T          both run on the tensor cores ...
//                start O += P V_n+1
//                pass the turn
//                wait for S; release K
//                softmax of S               ... the second one below the softmax
//                wait for O; release V; rescale O; P = exp2(S)
//              O += P V_first
//
// The warpgroups take turns in starting products, so that the softmax of one runs below the
// products of the others. Tiles that are wholly visible and lie left of the diagonal, which are
// nearly all, have a softmax of their own, without tests and with a bias that all rows share:
//
//   y_ij = c s_ij + slope2 (j - j_end)      x_ij = y_ij + slope2 (j_end - p_i)
//
// where j_end is the tile's last key. Both parts of the bias are negative: nothing cancels.
//
// Which tiles the pruning bound leaves is known before the first one is read, from the largest
// norms of the keys and of the query tile (geometry.h, pruning_reach): producer and consumers then
// need not agree on anything while they run.
//
// Rows of V that no row of the block may see may hold anything, and 0 * NaN is NaN: where a tile
// reaches beyond the visible keys, the producer overwrites such rows with zeros before it declares
// the buffer full. K needs no such care: masked scores are replaced, not multiplied.
#ifndef ALIBI_CUDA_SM90_FORWARD_CUH_
#define ALIBI_CUDA_SM90_FORWARD_CUH_

#include "../sm80/block.cuh"
#include "../sm80/output.cuh"
#include "../sm80/softmax.cuh"
#include "matrix.cuh"

namespace alibi {
namespace cuda {

struct HopperForwardParams {
  ForwardParams forward;
  CUtensorMap q_map;
  CUtensorMap k_map;
  CUtensorMap v_map;
  const float* query_norms;  // [B, Hq, query tiles] largest |q_i|, null unless problem.prune
  int together;              // heads whose blocks run at a time, see longest_first
};

// Addresses in shared memory.
template <int D>
struct ForwardMemory {
  static constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  static constexpr int kQueryBytes = kTileBytes<kTile.rows(), D>;
  static constexpr int kKeyBytes = kTileBytes<kTile.columns, D>;
  static constexpr int kBarriers = 2 + 4 * kTile.stages;
  // The first multiple of 1024 may be 1008 bytes away.
  static constexpr int kBytes =
      kEightRows + kQueryBytes + 2 * kTile.stages * kKeyBytes + 8 * kBarriers;

  uint32_t base;

  __device__ __forceinline__ uint32_t q() const { return base; }
  __device__ __forceinline__ uint32_t k(int stage) const {
    return base + kQueryBytes + stage * kKeyBytes;
  }
  __device__ __forceinline__ uint32_t v(int stage) const { return k(kTile.stages + stage); }

  __device__ __forceinline__ uint32_t barrier(int index) const {
    return k(2 * kTile.stages) + 8 * index;
  }
  __device__ __forceinline__ uint32_t q_full() const { return barrier(0); }
  __device__ __forceinline__ uint32_t v_raw() const { return barrier(1); }
  __device__ __forceinline__ uint32_t k_full(int stage) const { return barrier(2 + stage); }
  __device__ __forceinline__ uint32_t v_full(int stage) const {
    return barrier(2 + kTile.stages + stage);
  }
  __device__ __forceinline__ uint32_t k_empty(int stage) const {
    return barrier(2 + 2 * kTile.stages + stage);
  }
  __device__ __forceinline__ uint32_t v_empty(int stage) const {
    return barrier(2 + 3 * kTile.stages + stage);
  }

  // One thread; a barrier of the block must follow.
  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < kBarriers; ++i) {
      const bool empty = i >= 2 + 2 * kTile.stages;
      barrier_init(barrier(i), empty ? 4 * kTile.groups : 1);
    }
    barrier_init_fence();
  }
};

// Keys that the pruning bound leaves to a query tile.
template <int kRows>
__device__ __forceinline__ Range keys_in_reach(const HopperForwardParams& params,
                                               const QueryTask& task) {
  const ProblemView& problem = params.forward.problem;
  const HeadView& head = task.head;
  if (task.keys.empty() || !can_prune(problem.prune, head.slope, head.causal, head.symmetric)) {
    return task.keys;
  }
  const int query_head = task.place.batch * problem.heads_q + task.place.head;
  const float q_norm =
      params.query_norms[query_head * ceil_div(problem.len_q, kRows) + task.place.tile];
  const float k_norm = params.forward.key_norms[task.place.batch * problem.heads_kv + task.kv_head];
  const float ceiling = score_ceiling(problem.scale, q_norm, k_norm);
  const Range held = {head.span.kv_start, head.span.kv_end};
  const int first = head.span.q_start + task.rows.begin,
            last = head.span.q_start + task.rows.end - 1;
  const int nearest = most(distance_to(first, held), distance_to(last, held));
  const int reach =
      pruning_reach(ceiling, ceiling + tail_bits(head.slope, problem.len_k), head.slope2, nearest);
  return within_reach(task.keys, {first, last + 1}, reach);
}

// ---- producer

// Copies a V tile of which only rows within task.keys may be used, and clears the others. All lanes.
template <int D>
__device__ __forceinline__ void produce_edge_values(const HopperForwardParams& params,
                                                    const QueryTask& task,
                                                    const ForwardMemory<D>& memory, int tile,
                                                    int stage, int parity) {
  constexpr int kColumns = kHopperForwardTile<D>.columns;
  if (lane_id() == 0) {
    barrier_arrive_expect(memory.v_raw(), kTileBytes<kColumns, D>);
    copy_tile<kColumns, D>(memory.v(stage), params.v_map, memory.v_raw(), tile * kColumns,
                           task.kv_head, task.place.batch);
  }
  __syncwarp();
  barrier_wait(memory.v_raw(), parity);
  clear_rows<kColumns, D>(memory.v(stage), tile * kColumns, task.keys);
  if (lane_id() == 0) barrier_arrive(memory.v_full(stage));
}

// One warp. Its first lane waits and starts the copies; the others only help to clear. (Were they
// to wait for the same barriers, a late one could find that a phase has passed, and the next too:
// the parity would say that it had not.)
template <int D>
__device__ __forceinline__ void produce(const HopperForwardParams& params, const QueryTask& task,
                                        const ForwardMemory<D>& memory, Range tiles) {
  constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  constexpr int kColumns = kTile.columns, kBytes = kTileBytes<kColumns, D>;
  const bool leader = lane_id() == 0;
  if (leader) {
    barrier_arrive_expect(memory.q_full(), kTileBytes<kTile.rows(), D>);
    copy_tile<kTile.rows(), D>(memory.q(), params.q_map, memory.q_full(), task.rows.begin,
                               task.place.head, task.place.batch);
  }
  RingPlace<kTile.stages> place;
  int edge_parity = 0;
  for (int tile = tiles.end - 1; tile >= tiles.begin; --tile, place.advance()) {
    const int key = tile * kColumns;
    if (leader) {
      barrier_wait(memory.k_empty(place.stage), place.parity ^ 1);
      barrier_arrive_expect(memory.k_full(place.stage), kBytes);
      copy_tile<kColumns, D>(memory.k(place.stage), params.k_map, memory.k_full(place.stage), key,
                             task.kv_head, task.place.batch);
      barrier_wait(memory.v_empty(place.stage), place.parity ^ 1);
    }
    if (needs_clearing<kColumns>(key, task.keys)) {
      produce_edge_values(params, task, memory, tile, place.stage, edge_parity);
      edge_parity ^= 1;
    } else if (leader) {
      barrier_arrive_expect(memory.v_full(place.stage), kBytes);
      copy_tile<kColumns, D>(memory.v(place.stage), params.v_map, memory.v_full(place.stage), key,
                             task.kv_head, task.place.batch);
    }
  }
}

// ---- consumers

// Whose turn it is to start products. Group g waits at named barrier 1 + g for the group before it.
template <int kGroups>
struct Turn {
  int group;

  __device__ __forceinline__ void take() const { named_sync(1 + group, 256); }
  __device__ __forceinline__ void pass() const { named_arrive(1 + (group + 1) % kGroups, 256); }
  __device__ __forceinline__ void open() const {
    if (group == kGroups - 1) pass();
  }
  __device__ __forceinline__ void close() const {
    if (group == 0) take();  // what the last group passed after its last tile
  }
};

// 64 rows of the block's query tile, 16 per warp.
template <class T, int D>
struct Consumer {
  static constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  static constexpr int kColumns = kTile.columns, kN = kColumns / 8;

  const HeadView& head;
  ForwardMemory<D> memory;
  Turn<kTile.groups> turn;
  int group_row;  // first row of the warpgroup
  int row0;       // first row of the warp
  RingPlace<kTile.stages> k_place, v_place;
  RowState<1> state;
  float rescale[1][2];
  float o[1][D / 8][4];
  float s[1][kN][4];      // scores of the tile in work, then its weights
  uint32_t p[kN / 2][4];  // weights of the tile before, or of this one once S is done with

  __device__ __forceinline__ Consumer(const QueryTask& task, const ForwardMemory<D>& memory_,
                                      int group)
      : head(task.head),
        memory(memory_),
        turn{group},
        group_row(task.rows.begin + 64 * group),
        row0(group_row + warp_id() % 4 * 16) {
    set_zero(o);
  }

  // Whether a tile can take the short way.
  __device__ __forceinline__ bool is_plain(int tile) const {
    const Range rows = {group_row, group_row + 64};
    const Range keys = {tile * kColumns, tile * kColumns + kColumns};
    return all_allowed(head.span, rows, keys, head.causal) &&
           side_of_diagonal(head.span, rows, keys) < 0;
  }

  __device__ __forceinline__ void release(uint32_t barrier) const {
    if (lane_id() == 0) barrier_arrive(barrier);
  }

  __device__ __forceinline__ void start_next_scores() {
    start_scores<T, D, kTile.rows()>(s[0], memory.q() + turn.group * kPanelBytes<64>,
                                     memory.k(k_place.stage));
    products_commit();
  }

  __device__ __forceinline__ void start_next_sum() {
    start_sum<T, D>(o[0], p, memory.v(v_place.stage));
    products_commit();
  }

  // s: products become weights.
  __device__ __forceinline__ void softmax(int tile, std::false_type /* plain */) {
    add_bias_and_mask<false>(s, head, row0, tile * kColumns);
    state.absorb(s, rescale);
  }
  __device__ __forceinline__ void softmax(int tile, std::true_type /* plain */) {
    const int last = tile * kColumns + kColumns - 1, lane_column = lane_id() % 4 * 2;
    float offset[1][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int distance = last - (head.span.q_start + row0 + 8 * i + lane_id() / 4);
      offset[0][i] = head.slope2 * static_cast<float>(distance);
    }
    // Column 8t + e + lane_column, counted from the last one, in two parts of the same sign.
    const float lane_bias = head.slope2 * static_cast<float>(lane_column - 6);
#pragma unroll
    for (int c = 0; c < 2 * kN; ++c) {
      const int column = c / 2 * 8 + c % 2 - (kColumns - 7);
      const float bias = fmaf(head.slope2, static_cast<float>(column), lane_bias);
      s[0][c / 2][c % 2] = fmaf(s[0][c / 2][c % 2], head.scale2, bias);
      s[0][c / 2][2 + c % 2] = fmaf(s[0][c / 2][2 + c % 2], head.scale2, bias);
    }
    state.absorb(s, rescale, offset);
  }

  __device__ __forceinline__ void first_tile(int tile) {
    barrier_wait(memory.k_full(k_place.stage), k_place.parity);
    turn.take();
    pin_registers(s[0]);
    products_fence();
    start_next_scores();
    turn.pass();
    products_wait<0>();
    pin_registers(s[0]);
    release(memory.k_empty(k_place.stage));
    k_place.advance();
    softmax(tile, std::false_type{});
    pack_tile<T>(p, s[0]);
  }

  template <class Plain>
  __device__ __forceinline__ void next_tile(int tile, Plain plain) {
    barrier_wait(memory.k_full(k_place.stage), k_place.parity);
    barrier_wait(memory.v_full(v_place.stage), v_place.parity);
    turn.take();
    pin_registers(s[0]);
    pin_registers(o[0]);
    products_fence();
    start_next_scores();
    start_next_sum();
    turn.pass();
    products_wait<1>();
    pin_registers(s[0]);
    release(memory.k_empty(k_place.stage));
    k_place.advance();
    softmax(tile, plain);
    products_wait<0>();
    pin_registers(o[0]);
    release(memory.v_empty(v_place.stage));
    v_place.advance();
    rescale_rows(o, rescale);
    pack_tile<T>(p, s[0]);
  }

  __device__ __forceinline__ void last_sum() {
    barrier_wait(memory.v_full(v_place.stage), v_place.parity);
    pin_registers(o[0]);
    products_fence();
    start_next_sum();
    products_wait<0>();
    pin_registers(o[0]);
  }

  __device__ __forceinline__ void walk(Range tiles) {
    turn.open();
    barrier_wait(memory.q_full(), 0);
    first_tile(tiles.end - 1);
    int tile = tiles.end - 2;
    while (tile >= tiles.begin) {
      for (; tile >= tiles.begin && !is_plain(tile); --tile) next_tile(tile, std::false_type{});
      for (; tile >= tiles.begin && is_plain(tile); --tile) next_tile(tile, std::true_type{});
    }
    last_sum();
    turn.close();
  }
};

template <class T, int D>
__global__ void __launch_bounds__(kHopperForwardTile<D>.threads(), 1)
    attention_forward_hopper(const __grid_constant__ HopperForwardParams params) {
  constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  const ProblemView& problem = params.forward.problem;
  const ForwardMemory<D> memory = {(shared_base() + kEightRows - 1) & ~(kEightRows - 1u)};
  if (threadIdx.x == 0) {
    prefetch_map(params.q_map);
    prefetch_map(params.k_map);
    prefetch_map(params.v_map);
    memory.init_barriers();
  }
  const TilePlace work = longest_first(blockIdx.x, ceil_div(problem.len_q, kTile.rows()),
                                       problem.batch * problem.heads_q, params.together);
  const QueryTask task = query_task<kTile.rows()>(
      problem, {work.sequence / problem.heads_q, work.sequence % problem.heads_q, work.tile});
  const Range tiles = covering_tiles(keys_in_reach<kTile.rows()>(params, task), kTile.columns);
  __syncthreads();

  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == kTile.groups) {
    release_registers<kTile.producer_registers>();
    if (warp_id() % 4 == 0 && !tiles.empty()) produce(params, task, memory, tiles);
  } else {
    acquire_registers<kTile.consumer_registers>();
    Consumer<T, D> consumer(task, memory, group);
    if (!tiles.empty()) consumer.walk(tiles);
    store_output<T, D, false>(params.forward, task.place, 0, consumer.row0, consumer.o,
                              consumer.state);
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_FORWARD_CUH_
