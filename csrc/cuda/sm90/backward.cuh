// Backward pass for Hopper GPUs: one kernel for dq, dk, dv and dslopes, five products per tile. The
// formulas are those of sm80/backward_query.cuh and backward_key.cuh.
//
// A task is a tile of keys of one key head; K and V stay, Q, dO and the row statistics pass by. Scores
// are computed transposed, so that P^T and dS^T are left operands as they lie in registers:
//
//   S^T = K Q^T    dP^T = V dO^T    dV += P^T dO    dK += dS^T Q    dQ_part = dS K
//
// The first four concern the 64 keys of one warpgroup. dQ_part sums over the keys of both: they
// exchange dS through shared memory, and each multiplies one piece of 64 rows and 64 columns. It does
// so one pair late: by then the other group has long stored its part, nobody waits for it, and the
// softmax of one group runs below the products of the other.
//
// What the tasks of a head find for the same query rows is added up in device memory, in float32,
// by the copy engine. The order is fixed, so that results are the same bit for bit on every run: every
// piece of dq has a turn, which counts the additions, and the tiles of keys that work on the same rows
// take turns from the first to the last; the first to come stores instead of adding, so nothing needs
// clearing. A block draws tickets for its tasks, and tickets lead through the tiles of a head from the
// first to the last, too: whoever waits, waits for tasks with smaller tickets, and the smallest of
// those that are not done has a block that works on it. Under a causal mask that puts the long tasks
// first. All of them begin with the last query rows, which see most: in any other order a task would
// come to a tile of rows before its turn.
//
//   producer warp      for each task: draw a ticket; wait until V of the task before is done with; say
//                      what the task is and copy K there; copy the first pair; copy V to where K was
//                      for each pair: wait empty; copy Q, dO and the row statistics
//   writer warps       for each piece of dq, one of them: wait until it is there, then for the turn;
//                      add it; pass the turn
//   consumer           for each pair: wait full; start S, dP
//                      P = exp2(S); start dV += P dO
//                      dS = P (dP - delta); store dS
//                      start dQ_part of the pair before = dS K, dK += dS Q; hand over dQ_part;
//                      release the pair
//                      after the last: its dQ_part; release K; store dk, dv
//
// Which tiles of keys matter to a tile of query rows is found before (backward_ends.cuh), from the
// pruning bound and the masks: `reaches`. Rounding to the type of dq comes after.
#ifndef ALIBI_CUDA_SM90_BACKWARD_CUH_
#define ALIBI_CUDA_SM90_BACKWARD_CUH_

#include "../sm80/backward_key.cuh"
#include "backward_copies.cuh"
#include "output.cuh"

namespace alibi {
namespace cuda {

// 64 keys of the task, 16 per warp, and the rows of a pair in parts of 64.
template <class T, int D>
struct KeyConsumer {
  static constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  static constexpr int kRows = kTile.rows(), kColumns = kTile.columns, kParts = kColumns / 64;
  // Whether registers have room for K and V: scores then read one operand from shared memory, not two.
  static constexpr bool kHeld = D == 64;

  const BackwardParams& params;
  BackwardMemory<D> memory;
  int group;
  int tasks = 0;  // done so far
  int pairs = 0;
  int row0 = 0;  // first key of the warp
  float dk[1][D / 8][4], dv[1][D / 8][4], s[1][8][4], dp[1][8][4];
  uint32_t k_rows[kHeld ? D / 16 : 1][4], v_rows[kHeld ? D / 16 : 1][4];
  uint32_t p[4][4], ds[4][4];
  float dq[8][4];

  __device__ __forceinline__ KeyConsumer(const BackwardParams& params_,
                                         const BackwardMemory<D>& memory_, int group_)
      : params(params_), memory(memory_), group(group_) {}

  // All lanes of the warp have done with something.
  __device__ __forceinline__ void release(uint32_t barrier) const {
    if (lane_id() == 0) barrier_arrive(barrier);
  }

  __device__ __forceinline__ static constexpr int stage(int pair) {
    return stage_of<kTile.stages>(pair);
  }
  __device__ __forceinline__ static constexpr int parity(int pair) {
    return parity_of<kTile.stages>(pair);
  }
  __device__ __forceinline__ TaskNote task() const { return {memory.task(tasks)}; }
  __device__ __forceinline__ PairNote note() const { return {memory.note(stage(pairs))}; }

  // K (0) or V (1) of the task has come.
  __device__ __forceinline__ void meet_own(int which) {
    barrier_wait(memory.own_full(tasks, which), parity_of<1>(tasks));
    if constexpr (kHeld) {
      const int row = 64 * group + warp_id() % 4 * 16;
      load_rows<D, kRows>(which == 0 ? k_rows : v_rows, memory.own(tasks, which), row);
      __syncwarp();
      if (which == 1) release(memory.own_empty(tasks, 1));
    } else {
      __syncwarp();
    }
  }

  // x = own rows (K: 0, V: 1) times 64 rows of a tile that passes by (Q, dO).
  __device__ __forceinline__ void start_scores_of(int part, int which, float (&x)[8][4]) {
    const uint32_t passing = memory.passing(which, stage(pairs)) + part * kPanelBytes<64>;
    pin_registers(x);
    products_fence();
    if constexpr (kHeld) {
      start_scores<T, D, kColumns>(x, which == 0 ? k_rows : v_rows, passing);
    } else {
      const uint32_t own = compute_anew(memory.own(tasks, which) + group * kPanelBytes<64>);
      start_scores<T, D, kRows, kColumns>(x, own, passing);
    }
    products_commit();
  }

  // d += x (64 x 64, in registers) times 64 rows of a tile that passes by.
  __device__ __forceinline__ void start_sum_of(int part, int which, float (&d)[D / 8][4],
                                               const uint32_t (&x)[4][4]) {
    pin_registers(d);
    products_fence();
    start_sum<T, D, kColumns>(d, x, memory.passing(which, stage(pairs)) + part * kPanelBytes<64>);
    products_commit();
  }

  // lse (0) or delta (1) of this thread's columns 8t + {0, 1}.
  __device__ __forceinline__ void load_stats(float (&x)[2], int which, int part, int t) const {
    const int column = 64 * part + 8 * t + lane_id() % 4 * 2;
    load_shared(x, memory.stats(stage(pairs)) + (which * kColumns + column) * 4);
  }

  // s: products become weights, exp2(c s_ij + bias_ij - lse_i).
  __device__ __forceinline__ void weigh(const HeadView& head, int row, int part) {
    const Range queries = {row, row + 64}, keys = {row0, row0 + 16};
    const int side = side_of_diagonal(head.span, queries, keys);
    if (all_allowed(head.span, queries, keys, head.causal) && (side != 0 || !head.symmetric)) {
      weigh_plain(head, row, part, head.symmetric && side > 0 ? -head.slope2 : head.slope2);
      return;
    }
    add_bias_and_mask<true>(s, head, row0, row);
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      float lse2[2];
      load_stats(lse2, 0, part, t);
#pragma unroll
      for (int e = 0; e < 4; ++e) s[0][t][e] = exp2_fast(s[0][t][e] - lse2[e % 2]);
    }
  }

  // Where every pair is allowed and the bias is slope2 (j - p_i): in a part of the key and one of the
  // query, which have the same sign, counted from the first query.
  __device__ __forceinline__ void weigh_plain(const HeadView& head, int row, int part,
                                              float slope2) {
    float of_key[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int position = head.span.q_start + row + lane_id() % 4 * 2;
      of_key[i] = slope2 * static_cast<float>(row0 + 8 * i + lane_id() / 4 - position);
    }
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      float lse2[2];
      load_stats(lse2, 0, part, t);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float of_query = fmaf(-slope2, static_cast<float>(8 * t + e % 2), -lse2[e % 2]);
        s[0][t][e] = exp2_fast(fmaf(s[0][t][e], head.scale2, of_key[e / 2] + of_query));
      }
    }
  }

  // dp becomes dS.
  __device__ __forceinline__ void differentiate(int part) {
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      float delta[2];
      load_stats(delta, 1, part, t);
#pragma unroll
      for (int e = 0; e < 4; ++e) dp[0][t][e] = s[0][t][e] * (dp[0][t][e] - delta[e % 2]);
    }
  }

  // Adds the share of dslope that lies in dS to this warp's part for the head.
  __device__ __forceinline__ void add_slope_share(const HeadView& head, int row) const {
    float share = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int position = head.span.q_start + row + lane_id() % 4 * 2;
      const float first = static_cast<float>(row0 + 8 * i + lane_id() / 4 - position);
#pragma unroll
      for (int c = 0; c < 16; ++c) {
        const float distance = first - static_cast<float>(c / 2 * 8 + c % 2);
        share = fmaf(dp[0][c / 2][i * 2 + c % 2], bias_factor(head, distance), share);
      }
    }
    share = warp_sum(share);
    const int warps = ceil_div(params.problem.len_k, kRows) * 4 * kTile.groups;
    if (lane_id() == 0)
      add_float(params.slope_parts + int64_t{note().sequence()} * warps + row0 / 16, share);
  }

  // dS^T as it lies in registers, to shared memory: rows are keys, panels of 64 queries. Piece t of
  // row r lies at t ^ (r % 8), which is an exclusive-or of the address, too.
  __device__ __forceinline__ void store_scores(int part) const {
    const int line = lane_id() / 4, row = 64 * group + warp_id() % 4 * 16 + line;
    const uint32_t at = memory.scores(stage(pairs)) + part * kPanelBytes<kRows> +
                        row * kPanelRowBytes + line * 16 + lane_id() % 4 * 4;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      const uint32_t there = at ^ static_cast<uint32_t>(t * 16);
      store_shared(there, ds[t / 2][t % 2 * 2]);
      store_shared(there + kEightRows, ds[t / 2][t % 2 * 2 + 1]);
    }
  }

  // The piece of dq of this group for a pair: 64 rows and 64 columns, sums over all keys of the task.
  __device__ __forceinline__ void start_piece(int pair) {
    constexpr int kColumnPieces = D / 64, kPanel = kPanelBytes<kRows>;
    barrier_wait(memory.scores_full(stage(pair)), parity(pair));
    const uint32_t scores = memory.scores(stage(pair)) + group / kColumnPieces * kPanel;
    const uint64_t left = matrix_descriptor(scores, kPanel, kEightRows);
    const uint64_t right = matrix_descriptor(
        compute_anew(memory.own(tasks, 0) + group % kColumnPieces * kPanel), kPanel, kEightRows);
    pin_registers(dq);
    products_fence();
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k) {
      multiply_shared<true, true>(dq, advance(left, k * 2 * kEightRows),
                                  advance(right, k * 2 * kEightRows), k != 0, T{});
    }
    products_commit();
  }

  // Hands the piece over to a writer, as the accumulators lie: four floats per thread and step.
  __device__ __forceinline__ void hand_over_piece(int pair) {
    pin_registers(dq);
    release(memory.scores_empty(stage(pair)));
    const int last = pair + kPieceRing - kTile.piece_stages;  // the pair that had this buffer
    if (lane_id() == 0) barrier_wait(memory.piece_empty(group, last), last / kPieceRing % 2 ^ 1);
    __syncwarp();
    const uint32_t at = memory.piece(group, pair % kTile.piece_stages) + threadIdx.x % 128 * 16;
#pragma unroll
    for (int t = 0; t < 8; ++t) store_shared(at + t * 128 * 16, dq[t]);
    fence_async_proxy();
    __syncwarp();
    release(memory.piece_full(group, pair));
  }

  __device__ __forceinline__ HeadView head_view() const {
    const float slope = note().slope();
    const ProblemView& problem = params.problem;
    return {task().span(),          problem.causal, problem.symmetric,
            problem.scale * kLog2E, slope,          slope * kLog2E};
  }

  // 64 rows of the pair: all products but dS K. Those with dS may still run at the end.
  template <bool kFirst>
  __device__ __forceinline__ void work_on_part(const HeadView& head, int row, int part, bool last) {
    start_scores_of(part, 0, s[0]);
    if constexpr (kFirst) {
      products_wait<0>();
    } else {
      start_scores_of(part, 1, dp[0]);
      products_wait<1>();
    }
    pin_registers(s[0]);
    weigh(head, row, part);
    pack_tile<T>(p, s[0]);
    if constexpr (kFirst) {
      if (part == 0) meet_own(1);
      start_scores_of(part, 1, dp[0]);
    }
    start_sum_of(part, 1, dv[0], p);
    products_wait<1>();
    pin_registers(dp[0]);
    if (!kHeld && last && part + 1 == kParts) release(memory.own_empty(tasks, 1));
    differentiate(part);
    if (params.slope_parts != nullptr) add_slope_share(head, row);
    pack_tile<T>(ds, dp[0]);
  }

  // Stores dS of 64 rows for the products with K.
  __device__ __forceinline__ void publish_scores(int part) const {
    if (part == 0) barrier_wait(memory.scores_empty(stage(pairs)), parity(pairs) ^ 1);
    store_scores(part);
    fence_async_proxy();
    if (part + 1 < kParts) return;
    __syncwarp();
    release(memory.scores_full(stage(pairs)));
  }

  template <bool kFirst>
  __device__ __forceinline__ void work_on_pair(bool last) {
    const HeadView head = head_view();
    const int row = note().row();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      work_on_part<kFirst>(head, row + 64 * part, part, last);
      publish_scores(part);
      if (part + 1 < kParts) start_sum_of(part, 0, dk[0], ds);
    }
    if constexpr (!kFirst) start_piece(pairs - 1);
    start_sum_of(kParts - 1, 0, dk[0], ds);
    if constexpr (!kFirst) {
      products_wait<1>();
      hand_over_piece(pairs - 1);
    }
    products_wait<0>();
    pin_registers(dv[0]);
    pin_registers(dk[0]);
    release(memory.empty(stage(pairs)));
    ++pairs;
  }

  // The pair to come is there; whether it is the last one.
  __device__ __forceinline__ bool meet_pair() const {
    barrier_wait(memory.full(stage(pairs)), parity(pairs));
    return note().last();
  }

  __device__ __forceinline__ void walk() {
    bool last = meet_pair();
    work_on_pair<true>(last);
    while (!last) {
      last = meet_pair();
      work_on_pair<false>(last);
    }
    start_piece(pairs - 1);
    products_wait<0>();
    hand_over_piece(pairs - 1);
  }

  __device__ __forceinline__ void store_grads(const TensorView& grad, const float (&x)[D / 8][4],
                                              float factor) const {
    const BlockPlace place = task().place();
    const float factors[2] = {factor, factor};
    store_rows<T, D>(head_data<T>(grad, place.batch, place.head), grad.stride_s, row0,
                     params.problem.len_k, x, factors);
  }

  __device__ __forceinline__ void run() {
    for (;; ++tasks) {
      meet_own(0);
      const int kind = task().kind();
      if (kind == TaskNote::kEnd) break;
      row0 = task().place().tile * kRows + 64 * group + warp_id() % 4 * 16;
      set_zero(dk);
      set_zero(dv);
      if (kind == TaskNote::kSeen) {
        walk();
      } else {
        meet_own(1);
        if (!kHeld) release(memory.own_empty(tasks, 1));
      }
      release(memory.own_empty(tasks, 0));
      store_grads(params.dk, dk[0], params.problem.scale);
      store_grads(params.dv, dv[0], 1.0f);
    }
  }
};

template <class T, int D>
__global__ void __launch_bounds__(kHopperBackwardTile<D>.threads(), 1)
    attention_backward_hopper(const __grid_constant__ HopperBackwardParams params) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  static_assert(kTile.stages > 1, "dS of a pair is multiplied by K after the next is stored");
  const BackwardMemory<D> memory;
  if (threadIdx.x == 0) {
    prefetch_map(params.q_map);
    prefetch_map(params.dout_map);
    prefetch_map(params.k_map);
    prefetch_map(params.v_map);
    memory.init_barriers();
  }
  __syncthreads();
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == kTile.groups) {
    release_registers<kTile.producer_registers>();
    const int role = warp_id() % 4;
    if (role == kWriters) {
      BackwardProducer<D>{params, memory}.run();
    } else if (lane_id() == 0) {
      write_pieces<D>(params, memory, role);
    }
  } else {
    acquire_registers<kTile.consumer_registers>();
    KeyConsumer<T, D>(params.backward, memory, group).run();
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_BACKWARD_CUH_
