// Forward pass of fused ALiBi attention for Hopper GPUs: what sm80/forward.cuh computes, with the
// copy engine and the warpgroup products of that architecture.
//
// A task is a tile of query rows, 64 of them per warpgroup of "consumers"; one more warpgroup, the
// "producer", only starts copies. They meet in a ring of `stages` buffers, each with a barrier that
// says "full" (the copy engine has delivered) and one that says "empty" (every consumer warp has
// done with it):
//
//   producer   for each key tile:   wait empty K; copy K      wait empty V; copy V
//              with the first:      wait empty Q; copy Q
//   consumer   S = Q K_last^T; softmax; P = exp2(S)
//              for each further key tile n, from the last to the first:
//                wait full K; take the turn
//                start S = Q K_n^T          both run on the tensor cores ...
//                start O += P V_n+1
//                pass the turn
//                wait for S; release K
//                softmax of S               ... the second one below the softmax
//                wait full V_n; wait for O; release V_n+1; rescale O; P = exp2(S)
//              O += P V_first
//
// A block stays on its multiprocessor and takes task after task. The producer runs ahead: it fetches
// the first tiles of a task, and says in shared memory what the task is, while the consumers are
// still about the last products and the output of the one before.
//
// The warpgroups take turns in starting products, so that the softmax of one runs below the
// products of the others. Tiles that are wholly visible and lie on one side of the diagonal, which
// are nearly all, have a softmax of their own, without tests and with a linear bias. With j0
// the tile's key nearest to the rows, here left of them:
//
//   x_ij - max_i = c s_ij + (slope2 (j - j0) + (slope2 (j0 - p_i) - max_i))
//
// Both parts of the bias are negative: nothing cancels. The maxima need not be those of the scores so
// far: as long as none exceeds them by more than a few bits they stay as they are, and with them O.
// Otherwise the warp takes the way that moves them.
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
#include "../sm80/softmax.cuh"
#include "matrix.cuh"
#include "output.cuh"

namespace alibi {
namespace cuda {

struct HopperForwardParams {
  ForwardParams forward;
  CUtensorMap q_map;
  CUtensorMap k_map;
  CUtensorMap v_map;
  const float* query_norms;  // [B, Hq, query tiles] largest |q_i|, null unless problem.prune
  int together;              // heads whose tasks run at a time, see longest_first
  int tasks;                 // query tiles of all heads
  int* tickets;              // how many tasks have been taken, zero at the start; may be null
};

// What the consumers must know of a task. Twelve words of shared memory.
struct ForwardTask {
  BlockPlace place;  // tile: -1 when there are no more tasks
  Span span;
  Range tiles;  // of keys
  float slope2;
};

// Addresses in shared memory.
template <int D>
struct ForwardMemory {
  static constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  static constexpr int kStages = kTile.stages;
  static constexpr int kQueryBytes = kTileBytes<kTile.rows(), D>;
  static constexpr int kKeyBytes = kTileBytes<kTile.columns, D>;
  static constexpr int kTaskBytes = 48;
  // Barriers that the consumers arrive at come last.
  static constexpr int kFullBarriers = 2 + 2 * kStages, kBarriers = kFullBarriers + 1 + 2 * kStages;
  // The first multiple of 1024 may be 1008 bytes away.
  static constexpr int kBytes =
      kEightRows + kQueryBytes + 2 * kStages * kKeyBytes + kTaskBytes + 8 * kBarriers;

  uint32_t base;

  __device__ __forceinline__ uint32_t q() const { return base; }
  __device__ __forceinline__ uint32_t k(int stage) const {
    return base + kQueryBytes + stage * kKeyBytes;
  }
  __device__ __forceinline__ uint32_t v(int stage) const { return k(kStages + stage); }
  __device__ __forceinline__ uint32_t task() const { return k(2 * kStages); }

  __device__ __forceinline__ uint32_t barrier(int index) const {
    return task() + kTaskBytes + 8 * index;
  }
  __device__ __forceinline__ uint32_t q_full() const { return barrier(0); }  // and the task
  __device__ __forceinline__ uint32_t v_raw() const { return barrier(1); }
  __device__ __forceinline__ uint32_t k_full(int stage) const { return barrier(2 + stage); }
  __device__ __forceinline__ uint32_t v_full(int stage) const {
    return barrier(2 + kStages + stage);
  }
  __device__ __forceinline__ uint32_t q_empty() const { return barrier(kFullBarriers); }
  __device__ __forceinline__ uint32_t k_empty(int stage) const {
    return barrier(kFullBarriers + 1 + stage);
  }
  __device__ __forceinline__ uint32_t v_empty(int stage) const {
    return barrier(kFullBarriers + 1 + kStages + stage);
  }

  // One thread; a barrier of the block must follow.
  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < kBarriers; ++i)
      barrier_init(barrier(i), i >= kFullBarriers ? 4 * kTile.groups : 1);
    barrier_init_fence();
  }

  // One thread, before it arrives at q_full.
  __device__ __forceinline__ void store_task(const ForwardTask& task) const {
    const int words[8] = {task.place.batch,   task.place.head,  task.place.tile,   task.tiles.begin,
                          task.span.kv_start, task.span.kv_end, task.span.q_start, task.tiles.end};
#pragma unroll
    for (int i = 0; i < 8; ++i) store_shared(this->task() + 4 * i, __uint_as_float(words[i]));
    // Once for each lane of four: loaded from an address that all lanes share, it would be kept
    // where they share it, and moved from there for every product with a constant.
#pragma unroll
    for (int i = 8; i < 12; ++i) store_shared(this->task() + 4 * i, task.slope2);
  }

  // All lanes of a warp, which share all but the slope.
  __device__ __forceinline__ ForwardTask load_task() const {
    float words[2][4], slope2;
    load_shared(words[0], task());
    load_shared(words[1], task() + 16);
    load_shared(slope2, task() + 32 + lane_id() % 4 * 4);
    int shared[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      shared[i] = __shfl_sync(kAllLanes, __float_as_int(words[i / 4][i % 4]), 0);
    return {{shared[0], shared[1], shared[2]},
            {shared[4], shared[5], shared[6]},
            {shared[3], shared[7]},
            slope2};
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

// One warp. Its first lane waits and starts the copies; the others only help to clear. (Were they
// to wait for the same barriers, a late one could find that a phase has passed, and the next too:
// the parity would say that it had not.)
template <int D>
struct Producer {
  static constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  static constexpr int kColumns = kTile.columns, kBytes = kTileBytes<kColumns, D>;

  const HopperForwardParams& params;
  ForwardMemory<D> memory;
  bool leader;
  RingPlace<kTile.stages> place;
  RingPlace<1> q_place, edge_place;

  __device__ __forceinline__ Producer(const HopperForwardParams& params_,
                                      const ForwardMemory<D>& memory_)
      : params(params_), memory(memory_), leader(lane_id() == 0) {}

  // Says what the next task is, and copies its rows of Q if it has any work.
  __device__ __forceinline__ void announce(const ForwardTask& task) {
    if (leader) {
      barrier_wait(memory.q_empty(), q_place.parity ^ 1);
      memory.store_task(task);
      if (task.tiles.empty()) {
        barrier_arrive(memory.q_full());
      } else {
        barrier_arrive_expect(memory.q_full(), kTileBytes<kTile.rows(), D>);
        copy_tile<kTile.rows(), D>(memory.q(), params.q_map, memory.q_full(),
                                   task.place.tile * kTile.rows(), task.place.head,
                                   task.place.batch);
      }
    }
    q_place.advance();
  }

  __device__ __forceinline__ void copy_values(const QueryTask& task, int key, uint32_t barrier) {
    barrier_arrive_expect(barrier, kBytes);
    copy_tile<kColumns, D>(memory.v(place.stage), params.v_map, barrier, key, task.kv_head,
                           task.place.batch);
  }

  // Copies a V tile of which only rows within task.keys may be used, and clears the others.
  __device__ __forceinline__ void copy_edge_values(const QueryTask& task, int key) {
    if (leader) copy_values(task, key, memory.v_raw());
    __syncwarp();
    barrier_wait(memory.v_raw(), edge_place.parity);
    edge_place.advance();
    clear_rows<kColumns, D>(memory.v(place.stage), key, task.keys);
    if (leader) barrier_arrive(memory.v_full(place.stage));
  }

  __device__ __forceinline__ void produce(const QueryTask& task) {
    const Range tiles = covering_tiles(keys_in_reach<kTile.rows()>(params, task), kTile.columns);
    const ForwardTask told = {task.place, task.head.span, tiles, task.head.slope2};
    if (tiles.empty()) announce(told);
    for (int tile = tiles.end - 1; tile >= tiles.begin; --tile, place.advance()) {
      const int key = tile * kColumns;
      if (leader) {
        barrier_wait(memory.k_empty(place.stage), place.parity ^ 1);
        barrier_arrive_expect(memory.k_full(place.stage), kBytes);
        copy_tile<kColumns, D>(memory.k(place.stage), params.k_map, memory.k_full(place.stage), key,
                               task.kv_head, task.place.batch);
      }
      if (tile == tiles.end - 1) announce(told);
      if (leader) barrier_wait(memory.v_empty(place.stage), place.parity ^ 1);
      if (needs_clearing<kColumns>(key, task.keys)) {
        copy_edge_values(task, key);
      } else if (leader) {
        copy_values(task, key, memory.v_full(place.stage));
      }
    }
  }

  // The task that follows the one of `round`. With tickets, those who are done sooner take more; the
  // next one is drawn before a task, to be there after it.
  __device__ __forceinline__ int next_index(int round) const {
    const int blocks = static_cast<int>(gridDim.x);
    if (params.tickets == nullptr)
      return serpentine(round + 1, static_cast<int>(blockIdx.x), blocks);
    return leader ? blocks + take_ticket(params.tickets) : 0;
  }

  __device__ __forceinline__ void run() {
    const ProblemView& problem = params.forward.problem;
    int index = static_cast<int>(blockIdx.x);
    for (int round = 0; index < params.tasks; ++round) {
      const int next = next_index(round);
      const TilePlace work = longest_first(index, ceil_div(problem.len_q, kTile.rows()),
                                           problem.batch * problem.heads_q, params.together);
      produce(query_task<kTile.rows()>(
          problem, {work.sequence / problem.heads_q, work.sequence % problem.heads_q, work.tile}));
      index = __shfl_sync(kAllLanes, next, 0);
    }
    announce({{0, 0, -1}, {0, 0, 0}, {0, 0}, 0.0f});
  }
};

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
template <class T, int D, bool kCausal>
struct Consumer {
  static constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  static constexpr int kColumns = kTile.columns, kN = kColumns / 8;
  static constexpr float kHeadroom = 8.0f;  // weights up to 2^8 are as good as those up to 1

  ForwardMemory<D> memory;
  Turn<kTile.groups> turn;
  HeadView head;
  int group_row;  // first row of the warpgroup
  RingPlace<kTile.stages> k_place, v_place;
  RowState<1> state;
  float rescale[1][2];
  float o[1][D / 8][4];
  float s[1][kN][4];      // scores of the tile in work, then its weights
  uint32_t p[kN / 2][4];  // weights of the tile before, or of this one once S is done with

  __device__ __forceinline__ Consumer(const ProblemView& problem, const ForwardMemory<D>& memory_,
                                      int group)
      : memory(memory_), turn{group} {
    head = {};
    head.causal = kCausal;
    head.symmetric = problem.symmetric;
    head.scale2 = problem.scale * kLog2E;
  }

  // First row of the warp.
  __device__ __forceinline__ int row0() const { return group_row + warp_id() % 4 * 16; }

  // On which side of the diagonal a tile lies that can take the short way, 0 for others. Under a
  // causal mask no tile to the right is visible.
  __device__ __forceinline__ int plain_side(int tile) const {
    const Range rows = {group_row, group_row + 64};
    const Range keys = {tile * kColumns, tile * kColumns + kColumns};
    if (!all_allowed(head.span, rows, keys, kCausal)) return 0;
    const int side = side_of_diagonal(head.span, rows, keys);
    return side > 0 && !head.symmetric ? 0 : side;
  }

  __device__ __forceinline__ void release(uint32_t barrier) const {
    if (lane_id() == 0) barrier_arrive(barrier);
  }

  __device__ __forceinline__ void start_next_scores() {
    start_scores<T, D, kTile.rows(), kColumns>(s[0], memory.q() + turn.group * kPanelBytes<64>,
                                               memory.k(k_place.stage));
    products_commit();
  }

  __device__ __forceinline__ void start_next_sum() {
    start_sum<T, D, kColumns>(o[0], p, memory.v(v_place.stage));
    products_commit();
  }

  // Minus the distance of the tile's nearest key from row i of this lane.
  template <int kSide>
  __device__ __forceinline__ int nearest(int tile, int i) const {
    const int position = head.span.q_start + row0() + 8 * i + lane_id() / 4;
    return kSide < 0 ? tile * kColumns + kColumns - 1 - position : position - tile * kColumns;
  }
  // Minus the distance of column 8t + e + lane_column from there, in two parts of the same sign.
  template <int kSide>
  __device__ __forceinline__ int lane_part() const {
    const int lane_column = lane_id() % 4 * 2;
    return kSide < 0 ? lane_column - 6 : -lane_column;
  }
  template <int kSide>
  __device__ __forceinline__ static constexpr float column_part(int t, int e) {
    return static_cast<float>(kSide < 0 ? 8 * t + e - (kColumns - 7) : -(8 * t + e));
  }

  // s: products become weights.
  template <int kSide>
  __device__ __forceinline__ void softmax(int tile) {
    if constexpr (kSide == 0) {
      add_bias_and_mask<false, true>(s, head, row0(), tile * kColumns);
      state.absorb<2>(s, rescale);
    } else if (__all_sync(kAllLanes, fits<kSide>(tile))) {
      weigh<kSide>(tile);
    } else {
      add_plain_bias<kSide>();
      const float offset[1][2] = {{head.slope2 * static_cast<float>(nearest<kSide>(tile, 0)),
                                   head.slope2 * static_cast<float>(nearest<kSide>(tile, 1))}};
      state.absorb<2>(s, rescale, offset);
    }
  }

  // Whether no score of this lane exceeds the row's maximum so far by more than the headroom: the
  // largest product, or 0, with the bias of the nearest key is at least as large as each, unless the
  // slope is negative. False where there is no maximum yet. Floats from 0 on are in the order of
  // their bit patterns, and there is an instruction for the largest of three integers.
  template <int kSide>
  __device__ __forceinline__ bool fits(int tile) const {
    bool all = head.scale2 > 0.0f && head.slope2 >= 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int top[2] = {0, 0};
#pragma unroll
      for (int t = 0; t < kN; ++t) {
        const float (&x)[4] = s[0][t];
        top[t % 2] = most(most(top[t % 2], __float_as_int(x[2 * i])), __float_as_int(x[2 * i + 1]));
      }
      const float largest = __uint_as_float(static_cast<uint32_t>(most(top[0], top[1])));
      const float offset = head.slope2 * static_cast<float>(nearest<kSide>(tile, i));
      all &= fmaf(largest, head.scale2, offset) <= state.row_max[0][i] + kHeadroom;
    }
    return all;
  }

  // The weights of a plain tile against the maxima as they are: two fused multiply-adds for each
  // score, one of them of constants.
  template <int kSide>
  __device__ __forceinline__ void weigh(int tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int distance = nearest<kSide>(tile, i) + lane_part<kSide>();
      const float start = fmaf(head.slope2, static_cast<float>(distance), -state.row_max[0][i]);
      float sums[2] = {0.0f, 0.0f};
#pragma unroll
      for (int c = 0; c < 2 * kN; ++c) {
        float& x = s[0][c / 2][2 * i + c % 2];
        const float bias = fmaf(head.slope2, column_part<kSide>(c / 2, c % 2), start);
        x = exp2_fast(fmaf(x, head.scale2, bias));
        sums[c % 2] += x;
      }
      state.row_sum[0][i] += sums[0] + sums[1];
      rescale[0][i] = 1.0f;
    }
  }

  template <int kSide>
  __device__ __forceinline__ void add_plain_bias() {
    const float lane_bias = head.slope2 * static_cast<float>(lane_part<kSide>());
#pragma unroll
    for (int c = 0; c < 2 * kN; ++c) {
      float (&x)[4] = s[0][c / 2];
      const float bias = fmaf(head.slope2, column_part<kSide>(c / 2, c % 2), lane_bias);
      x[c % 2] = fmaf(x[c % 2], head.scale2, bias);
      x[2 + c % 2] = fmaf(x[2 + c % 2], head.scale2, bias);
    }
  }

  // The products of a tile are done with its K, those of the last tile with Q.
  __device__ __forceinline__ void release_keys(bool last) {
    release(memory.k_empty(k_place.stage));
    if (last) release(memory.q_empty());
    k_place.advance();
  }

  __device__ __forceinline__ void first_tile(int tile, bool last) {
    barrier_wait(memory.k_full(k_place.stage), k_place.parity);
    turn.take();
    pin_registers(s[0]);
    products_fence();
    start_next_scores();
    turn.pass();
    products_wait<0>();
    pin_registers(s[0]);
    release_keys(last);
    softmax<0>(tile);
    barrier_wait(memory.v_full(v_place.stage), v_place.parity);
    pack_tile<T>(p, s[0]);
  }

  // Whether no row of the warp has seen its maximum move. The sums are in the condition to have
  // them made here, beside the exponentials, and not after the wait that follows.
  __device__ __forceinline__ bool same_maxima() const {
    const bool same = rescale[0][0] == 1.0f && rescale[0][1] == 1.0f;
    const bool counted = state.row_sum[0][0] >= 0.0f && state.row_sum[0][1] >= 0.0f;
    return __all_sync(kAllLanes, same && counted);
  }

  // V of the tile is waited for before O, whose products are in work, although it is needed after:
  // instructions do not move across that loop, and the wait for O would move up to the maxima.
  template <int kSide>
  __device__ __forceinline__ void next_tile(int tile, bool last) {
    barrier_wait(memory.k_full(k_place.stage), k_place.parity);
    turn.take();
    pin_registers(s[0]);
    pin_registers(o[0]);
    products_fence();
    start_next_scores();
    start_next_sum();
    turn.pass();
    products_wait<1>();
    pin_registers(s[0]);
    release_keys(last);
    softmax<kSide>(tile);
    pin_registers(s[0]);
    const bool same = same_maxima();
    RingPlace<kTile.stages> v_next = v_place;
    v_next.advance();
    barrier_wait(memory.v_full(v_next.stage), v_next.parity);
    products_wait<0>();
    pin_registers(o[0]);
    release(memory.v_empty(v_place.stage));
    v_place = v_next;
    if (!same) rescale_rows(o, rescale);
    pack_tile<T>(p, s[0]);
  }

  __device__ __forceinline__ void last_sum() {
    pin_registers(o[0]);
    products_fence();
    start_next_sum();
    products_wait<0>();
    pin_registers(o[0]);
    release(memory.v_empty(v_place.stage));
    v_place.advance();
  }

  // A tile that other warpgroups have rows for, but not this one.
  __device__ __forceinline__ void skip_tile(bool last) {
    barrier_wait(memory.k_full(k_place.stage), k_place.parity);
    turn.take();
    turn.pass();
    release_keys(last);
    barrier_wait(memory.v_full(v_place.stage), v_place.parity);
    __syncwarp();  // a late lane would miss the phase
    release(memory.v_empty(v_place.stage));
    v_place.advance();
  }

  __device__ __forceinline__ void walk(Range tiles, int len_q) {
    // Keys from here on are of no use to the warpgroup.
    const int end = group_row >= len_q ? tiles.begin * kColumns
                    : kCausal          ? head.span.q_start + group_row + 64
                                       : tiles.end * kColumns;
    int tile = tiles.end - 1;
    for (; tile >= tiles.begin && tile * kColumns >= end; --tile) skip_tile(tile == tiles.begin);
    if (tile < tiles.begin) return;
    first_tile(tile, tile == tiles.begin);
    --tile;
    while (tile >= tiles.begin) {
      if constexpr (!kCausal) {
        for (; tile >= tiles.begin && plain_side(tile) > 0; --tile)
          next_tile<1>(tile, tile == tiles.begin);
      }
      for (; tile >= tiles.begin && plain_side(tile) == 0; --tile)
        next_tile<0>(tile, tile == tiles.begin);
      for (; tile >= tiles.begin && plain_side(tile) < 0; --tile)
        next_tile<-1>(tile, tile == tiles.begin);
    }
    last_sum();
  }

  __device__ __forceinline__ void run(const ForwardParams& params) {
    turn.open();
    for (RingPlace<1> q_place;; q_place.advance()) {
      barrier_wait(memory.q_full(), q_place.parity);
      const ForwardTask task = memory.load_task();
      __syncwarp();  // before the first lane releases it for the others
      if (task.place.tile < 0) break;
      head.span = task.span;
      head.slope2 = task.slope2;
      group_row = task.place.tile * kTile.rows() + 64 * turn.group;
      state = RowState<1>();
      set_zero(o);
      if (task.tiles.empty()) {
        release(memory.q_empty());
      } else {
        walk(task.tiles, params.problem.len_q);
      }
      store_output<T, D>(params, task.place, row0(), o[0], state);
    }
    turn.close();
  }
};

template <class T, int D, bool kCausal>
__global__ void __launch_bounds__(kHopperForwardTile<D>.threads(), 1)
    attention_forward_hopper(const __grid_constant__ HopperForwardParams params) {
  constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  const ForwardMemory<D> memory = {(shared_base() + kEightRows - 1) & ~(kEightRows - 1u)};
  if (threadIdx.x == 0) {
    prefetch_map(params.q_map);
    prefetch_map(params.k_map);
    prefetch_map(params.v_map);
    memory.init_barriers();
  }
  __syncthreads();

  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == kTile.groups) {
    release_registers<kTile.producer_registers>();
    if (warp_id() % 4 == 0) Producer<D>(params, memory).run();
  } else {
    acquire_registers<kTile.consumer_registers>();
    Consumer<T, D, kCausal>(params.forward.problem, memory, group).run(params.forward);
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_FORWARD_CUH_
