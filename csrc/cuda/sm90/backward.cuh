// Backward pass for Hopper GPUs: one kernel for dq, dk, dv and dslopes, five products per tile. The
// formulas are those of sm80/backward_query.cuh and backward_key.cuh.
//
// A block owns a tile of keys; K and V stay, Q, dO and the row statistics pass by. Scores are
// computed transposed, so that P^T and dS^T are left operands as they lie in registers:
//
//   S^T = K Q^T    dP^T = V dO^T    dV += P^T dO    dK += dS^T Q    dQ_part = dS K
//
// The first four concern the 64 keys of one warpgroup. dQ_part sums over the keys of both: they
// exchange dS through shared memory, and each multiplies one piece of 64 rows and 64 columns.
//
// What the blocks of a head find for the same query rows is added up in device memory, in float32,
// by the copy engine. The order is fixed, so that results are the same bit for bit on every run: a
// tile of rows has a turn, which counts the additions, and the tiles of keys that work on the same
// rows take turns from the last to the first. A block takes its task by drawing a ticket, and tickets
// lead through the tiles of a head from the last to the first, too: whoever waits, waits for blocks
// that have begun before. The first to come stores instead of adding, so nothing needs clearing.
//
//   producer warp      for each pair: wait empty; copy Q, dO and the row statistics
//   writer warps       for each pair, one of them: wait for the pieces of dq; wait for the turn; add
//                      them; pass the turn
//   consumer           wait full; start S, dP
//                      P = exp2(S); start dV += P dO        ... below the softmax of the other group
//                      dS = P (dP - delta); store dS; meet the other group
//                      start dQ_part = dS K, dK += dS Q; hand over dQ_part; release the pair
//
// Which tiles of keys matter to a tile of query rows is found before (backward_ends.cuh), from the
// pruning bound and the masks: `reaches`. Rounding to the type of dq comes after.
#ifndef ALIBI_CUDA_SM90_BACKWARD_CUH_
#define ALIBI_CUDA_SM90_BACKWARD_CUH_

#include "../sm80/backward_key.cuh"
#include "backward_ends.cuh"
#include "matrix.cuh"

namespace alibi {
namespace cuda {

// Warps that hand the pieces over to device memory, pair by pair in rotation: for most of the time
// that takes, the first lane of one waits, for the turn or for the additions to arrive. There are no
// fewer barriers than writers: one that was a round ahead would take the last phase for its own.
constexpr int kWriters = 3;
constexpr int kPieceRing = 4;

// Addresses in shared memory: the tiles that stay, a ring of pairs that pass by, dS, pieces of dq.
template <int D>
struct BackwardMemory {
  static constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  static constexpr int kOwnBytes = kTileBytes<kTile.rows(), D>;
  static constexpr int kPassingBytes = kTileBytes<kTile.columns, D>;
  static constexpr int kScoreBytes = kTileBytes<kTile.rows(), kTile.columns>;
  static constexpr int kStatBytes = kStatFloats<kTile.columns> * 4 + 16;
  static constexpr int kPieces = kTile.groups * kTile.piece_stages;
  static constexpr int kPieceBarriers = kTile.groups * kPieceRing;
  static constexpr int kBarriers = 2 + 2 * kTile.stages + 2 * kPieceBarriers;
  static constexpr int kSmallBytes =
      kTile.stages * kStatBytes + 8 * kBarriers + 32 + 32 * kTile.groups;
  static constexpr int kBigBytes =
      2 * kOwnBytes + kTile.stages * (2 * kPassingBytes + kScoreBytes) + kPieces * kPieceBytes;
  // Shared memory starts at a multiple of 1024 bytes (shared_base); a few hundred more would do, too.
  static constexpr int kBytes = ceil_div(kSmallBytes, kEightRows) * kEightRows + kBigBytes;

  uint32_t small;  // statistics, barriers, notes
  uint32_t base;   // tiles: the multiple of 1024 after them

  __device__ __forceinline__ BackwardMemory()
      : small(shared_base()), base((small + kSmallBytes + kEightRows - 1) & ~(kEightRows - 1u)) {}

  __device__ __forceinline__ uint32_t own(int which) const { return base + which * kOwnBytes; }
  __device__ __forceinline__ uint32_t passing(int which, int stage) const {
    return own(2) + (2 * stage + which) * kPassingBytes;
  }
  __device__ __forceinline__ uint32_t scores(int stage) const {
    return passing(0, kTile.stages) + stage * kScoreBytes;
  }
  __device__ __forceinline__ uint32_t piece(int group, int stage) const {
    return scores(kTile.stages) + (group * kTile.piece_stages + stage) * kPieceBytes;
  }
  __device__ __forceinline__ uint32_t stats(int stage) const { return small + stage * kStatBytes; }
  // What the consumers must know of a pair, beside its statistics: the first row; the number of the
  // head and batch item; the slope.
  __device__ __forceinline__ uint32_t note(int stage) const {
    return stats(stage) + kStatFloats<kTile.columns> * 4;
  }
  __device__ __forceinline__ uint32_t barrier(int index) const {
    return stats(kTile.stages) + 8 * index;
  }
  __device__ __forceinline__ uint32_t own_full() const { return barrier(0); }
  __device__ __forceinline__ uint32_t raw() const { return barrier(1); }
  __device__ __forceinline__ uint32_t full(int stage) const { return barrier(2 + stage); }
  __device__ __forceinline__ uint32_t empty(int stage) const {
    return barrier(2 + kTile.stages + stage);
  }
  // Of pair number `pair` of the block.
  __device__ __forceinline__ uint32_t piece_full(int group, int pair) const {
    return barrier(2 + 2 * kTile.stages + group * kPieceRing + pair % kPieceRing);
  }
  __device__ __forceinline__ uint32_t piece_empty(int group, int pair) const {
    return piece_full(kTile.groups + group, pair);
  }
  __device__ __forceinline__ uint32_t ticket() const { return barrier(kBarriers); }
  __device__ __forceinline__ uint32_t span() const { return ticket() + 16; }
  // What a warp has found for the slope of a head so far, and of which head.
  __device__ __forceinline__ uint32_t slope_share(int warp) const { return span() + 16 + 8 * warp; }

  // One thread; a barrier of the block must follow.
  __device__ __forceinline__ void init_barriers() const {
    barrier_init(own_full(), 1);
    barrier_init(raw(), 1);
    for (int stage = 0; stage < kTile.stages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), 4 * kTile.groups);
    }
    for (int i = 0; i < kPieceBarriers; ++i) {
      barrier_init(piece_full(0, 0) + 8 * i, 4);
      barrier_init(piece_empty(0, 0) + 8 * i, 1);
    }
    barrier_init_fence();
  }
};

// A number that another thread has left in shared memory, before a barrier.
__device__ __forceinline__ int load_note(uint32_t address) {
  float bits;
  load_shared(bits, address);
  return __float_as_int(bits);
}

__device__ __forceinline__ void store_note(uint32_t address, int row, int sequence, float slope) {
  store_shared(address, static_cast<uint32_t>(row));
  store_shared(address + 4, static_cast<uint32_t>(sequence));
  store_shared(address + 8, slope);
}
__device__ __forceinline__ void store_span(uint32_t address, const Span& span) {
  store_shared(address, static_cast<uint32_t>(span.kv_start));
  store_shared(address + 4, static_cast<uint32_t>(span.kv_end));
  store_shared(address + 8, static_cast<uint32_t>(span.q_start));
}
__device__ __forceinline__ HeadView load_view(const ProblemView& problem, uint32_t span,
                                              uint32_t slope) {
  float x;
  load_shared(x, slope);
  return {{load_note(span), load_note(span + 4), load_note(span + 8)},
          problem.causal,
          problem.symmetric,
          problem.scale * kLog2E,
          x,
          x * kLog2E};
}

// A tile of keys of one key head, and the walk over the query tiles that it matters to.
struct KeyTask {
  BlockPlace place;
  Range keys;
  Span span;
  ReachWalk walk;
};

template <int D>
__device__ __forceinline__ KeyTask key_task(const HopperBackwardParams& params, int ticket) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  constexpr int kRows = kTile.rows();
  const ProblemView& problem = params.backward.problem;
  const int tiles = ceil_div(problem.len_k, kRows), group = problem.heads_q / problem.heads_kv;
  const TilePlace work = longest_first(static_cast<unsigned>(ticket), tiles,
                                       problem.batch * problem.heads_kv, params.together);
  const BlockPlace place = {work.sequence / problem.heads_kv, work.sequence % problem.heads_kv,
                            work.tile};
  const Span span = load_span(problem, place.batch);
  const Range keys = {place.tile * kRows, least(place.tile * kRows + kRows, problem.len_k)};
  const int query_tiles = ceil_div(problem.len_q, kTile.columns);
  const int first_head = place.head * group;
  const Range* reaches =
      params.reaches +
      (static_cast<int64_t>(place.batch) * problem.heads_q + first_head) * query_tiles;
  const Range seeing = seeing_rows(span, keys, problem.causal, problem.len_q);
  return {
      place,
      keys,
      span,
      {reaches, first_head, group, query_tiles, place.tile, covering_tiles(seeing, kTile.columns)}};
}

// ---- producer

// K and V of the block, with rows that nobody may see cleared. All lanes of one warp.
template <int D>
__device__ __forceinline__ void produce_own(const HopperBackwardParams& params, const KeyTask& task,
                                            const BackwardMemory<D>& memory) {
  constexpr int kRows = kHopperBackwardTile<D>.rows();
  const bool leader = lane_id() == 0;
  const int batch = task.place.batch, head = task.place.head, first_key = task.keys.begin;
  const Range held = {task.span.kv_start, task.span.kv_end};
  const bool clear = needs_clearing<kRows>(first_key, held);
  if (leader) {
    const uint32_t landed = clear ? memory.raw() : memory.own_full();
    barrier_arrive_expect(landed, 2 * kTileBytes<kRows, D>);
    copy_tile<kRows, D>(memory.own(0), params.k_map, landed, first_key, head, batch);
    copy_tile<kRows, D>(memory.own(1), params.v_map, landed, first_key, head, batch);
  }
  if (!clear) return;
  __syncwarp();
  barrier_wait(memory.raw(), 0);
  clear_rows<kRows, D>(memory.own(0), first_key, held);
  clear_rows<kRows, D>(memory.own(1), first_key, held);
  if (leader) barrier_arrive(memory.own_full());
}

// All lanes of one warp walk; the first one waits and copies. After the last pair comes a note that
// there is none.
template <int D>
__device__ __forceinline__ void produce_pairs(const HopperBackwardParams& params,
                                              const KeyTask& task,
                                              const BackwardMemory<D>& memory) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  constexpr int kColumns = kTile.columns, kStatBytes = kStatFloats<kColumns> * 4;
  const ProblemView& problem = params.backward.problem;
  const int batch = task.place.batch;
  int pair = task.walk.from(0);
  if (pair != ReachWalk::kEnd) produce_own<D>(params, task, memory);
  if (lane_id() == 0) store_span(memory.span(), task.span);
  RingPlace<kTile.stages> place;
  for (; pair != ReachWalk::kEnd; pair = task.walk.from(pair + 1), place.advance()) {
    if (lane_id() == 0) {
      const uint32_t full = memory.full(place.stage);
      const int head = task.walk.head(pair), row = task.walk.tile(pair) * kColumns;
      barrier_wait(memory.empty(place.stage), place.parity ^ 1);
      store_note(memory.note(place.stage), row, head * problem.batch + batch, problem.slopes[head]);
      barrier_arrive_expect(full, 2 * kTileBytes<kColumns, D> + kStatBytes);
      copy_tile<kColumns, D>(memory.passing(0, place.stage), params.q_map, full, row, head, batch);
      copy_tile<kColumns, D>(memory.passing(1, place.stage), params.dout_map, full, row, head,
                             batch);
      copy_run(memory.stats(place.stage),
               params.stats + task.walk.index(pair, problem, batch) * kStatFloats<kColumns>, full,
               kStatBytes);
    }
    __syncwarp();
  }
  if (lane_id() == 0) {
    barrier_wait(memory.empty(place.stage), place.parity ^ 1);
    store_note(memory.note(place.stage), ReachWalk::kEnd, 0, 0.0f);
    barrier_arrive(memory.full(place.stage));
  }
}

// ---- writers

template <int D>
__device__ __forceinline__ void write_pieces(const HopperBackwardParams& params,
                                             const KeyTask& task, const BackwardMemory<D>& memory,
                                             int writer) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  int number = 0;
  for (int pair = task.walk.from(0); pair != ReachWalk::kEnd;
       pair = task.walk.from(pair + 1), ++number) {
    if (number % kWriters == writer && lane_id() == 0) {
      const int64_t index = task.walk.index(pair, params.backward.problem, task.place.batch);
      float* target = params.pieces + index * kTile.groups * kPieceFloats;
      int* turn = params.turns + index;
      const int order = task.walk.order(pair);
      int now = load_acquire(turn);
      for (int group = 0; group < kTile.groups; ++group)
        barrier_wait(memory.piece_full(group, number), number / kPieceRing % 2);
      while (now != order) now = load_acquire(turn);
      fence_async_proxy_global();
      for (int group = 0; group < kTile.groups; ++group) {
        const uint32_t piece = memory.piece(group, number % kTile.piece_stages);
        if (order == 0) {
          store_run(target + group * kPieceFloats, piece, kPieceBytes);
        } else {
          add_run(target + group * kPieceFloats, piece, kPieceBytes);
        }
      }
      runs_commit();
      runs_wait_read<0>();
      for (int group = 0; group < kTile.groups; ++group)
        barrier_arrive(memory.piece_empty(group, number));
      runs_wait<0>();
      store_release(turn, order + 1);
    }
    __syncwarp();
  }
}

// ---- consumers

// 64 keys of the block, 16 per warp, and the rows of a pair in parts of 64.
template <class T, int D>
struct KeyConsumer {
  static constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  static constexpr int kRows = kTile.rows(), kColumns = kTile.columns, kParts = kColumns / 64;
  // Whether registers have room for K and V: scores then read one operand from shared memory, not two.
  static constexpr bool kHeld = D == 64;

  const BackwardParams& params;
  BackwardMemory<D> memory;
  int group;
  int row0;  // first key of the warp
  RingPlace<kTile.stages> place;
  int number = 0;  // of pairs worked on
  float dk[1][D / 8][4], dv[1][D / 8][4], s[1][8][4], dp[1][8][4];
  uint32_t k_rows[kHeld ? D / 16 : 1][4], v_rows[kHeld ? D / 16 : 1][4];
  uint32_t p[4][4], ds[4][4];
  float dq[8][4];

  __device__ __forceinline__ KeyConsumer(const BackwardParams& params_, const KeyTask& task,
                                         const BackwardMemory<D>& memory_, int group_)
      : params(params_),
        memory(memory_),
        group(group_),
        row0(task.keys.begin + 64 * group_ + warp_id() % 4 * 16) {
    set_zero(dk);
    set_zero(dv);
    if (lane_id() == 0) store_shared(memory.slope_share(warp_id()) + 4, static_cast<uint32_t>(-1));
  }

  // K and V have come.
  __device__ __forceinline__ void hold_own() {
    barrier_wait(memory.own_full(), 0);
    if constexpr (kHeld) {
      const int row = 64 * group + warp_id() % 4 * 16;
      load_rows<D, kRows>(k_rows, memory.own(0), row);
      load_rows<D, kRows>(v_rows, memory.own(1), row);
    }
  }

  // x = own rows (K: 0, V: 1) times 64 rows of a tile that passes by (Q, dO).
  __device__ __forceinline__ void start_scores_of(int part, int which, float (&x)[8][4]) {
    const uint32_t passing = memory.passing(which, place.stage) + part * kPanelBytes<64>;
    pin_registers(x);
    products_fence();
    if constexpr (kHeld) {
      start_scores<T, D, kColumns>(x, which == 0 ? k_rows : v_rows, passing);
    } else {
      start_scores<T, D, kRows, kColumns>(x, memory.own(which) + group * kPanelBytes<64>, passing);
    }
    products_commit();
  }

  // d += x (64 x 64, in registers) times 64 rows of a tile that passes by.
  __device__ __forceinline__ void start_sum_of(int part, int which, float (&d)[D / 8][4],
                                               const uint32_t (&x)[4][4]) {
    pin_registers(d);
    products_fence();
    start_sum<T, D, kColumns>(d, x, memory.passing(which, place.stage) + part * kPanelBytes<64>);
    products_commit();
  }

  // lse (0) or delta (1) of this thread's columns 8t + {0, 1}.
  __device__ __forceinline__ void load_stats(float (&x)[2], int which, int part, int t) const {
    const int column = 64 * part + 8 * t + lane_id() % 4 * 2;
    load_shared(x, memory.stats(place.stage) + (which * kColumns + column) * 4);
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

  // Adds the share of dslope that lies in dS to what the warp has found for the head so far.
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
    if (lane_id() != 0) return;
    float before;
    load_shared(before, memory.slope_share(warp_id()));
    store_shared(memory.slope_share(warp_id()), before + share);
  }

  // Changes over to the rows of a query head of a batch item. What the warp has found for the slope of
  // the one before becomes its part.
  __device__ __forceinline__ void enter_head(int sequence) const {
    if (params.slope_parts == nullptr || lane_id() != 0) return;
    const uint32_t share = memory.slope_share(warp_id());
    const int before = load_note(share + 4);
    if (before == sequence) return;
    if (before >= 0) {
      const int warps = ceil_div(params.problem.len_k, kRows) * 4 * kTile.groups;
      load_shared(params.slope_parts[static_cast<int64_t>(before) * warps + row0 / 16], share);
    }
    store_shared(share, 0.0f);
    store_shared(share + 4, static_cast<uint32_t>(sequence));
  }

  // dS^T as it lies in registers, to shared memory: rows are keys, panels of 64 queries. Piece t of
  // row r lies at t ^ (r % 8), which is an exclusive-or of the address, too.
  __device__ __forceinline__ void store_scores(int part) const {
    const int line = lane_id() / 4, row = 64 * group + warp_id() % 4 * 16 + line;
    const uint32_t at = memory.scores(place.stage) + part * kPanelBytes<kRows> +
                        row * kPanelRowBytes + line * 16 + lane_id() % 4 * 4;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      const uint32_t there = at ^ static_cast<uint32_t>(t * 16);
      store_shared(there, ds[t / 2][t % 2 * 2]);
      store_shared(there + kEightRows, ds[t / 2][t % 2 * 2 + 1]);
    }
  }

  // The piece of dq of this group: 64 rows and 64 columns, sums over all keys of the block.
  __device__ __forceinline__ void start_piece() {
    constexpr int kColumnPieces = D / 64, kPanel = kPanelBytes<kRows>;
    const uint32_t scores = memory.scores(place.stage) + group / kColumnPieces * kPanel;
    const uint64_t left = matrix_descriptor(scores, kPanel, kEightRows);
    const uint64_t right =
        matrix_descriptor(memory.own(0) + group % kColumnPieces * kPanel, kPanel, kEightRows);
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
  __device__ __forceinline__ void hand_over_piece() {
    pin_registers(dq);
    const int last = number + kPieceRing - kTile.piece_stages;  // the pair that had this buffer
    if (lane_id() == 0) barrier_wait(memory.piece_empty(group, last), last / kPieceRing % 2 ^ 1);
    __syncwarp();
    const uint32_t at = memory.piece(group, number % kTile.piece_stages) + threadIdx.x % 128 * 16;
#pragma unroll
    for (int t = 0; t < 8; ++t) store_shared(at + t * 128 * 16, dq[t]);
    fence_async_proxy();
    __syncwarp();
    if (lane_id() == 0) barrier_arrive(memory.piece_full(group, number));
    ++number;
  }

  // 64 rows of the pair: all products but dS K. Those with dS may still run at the end.
  __device__ __forceinline__ void work_on_part(int first_row, int part) {
    const HeadView head = load_view(params.problem, memory.span(), memory.note(place.stage) + 8);
    const int row = first_row + 64 * part;
    start_scores_of(part, 0, s[0]);
    start_scores_of(part, 1, dp[0]);
    products_wait<1>();
    pin_registers(s[0]);
    weigh(head, row, part);
    pack_tile<T>(p, s[0]);
    start_sum_of(part, 1, dv[0], p);
    products_wait<1>();
    pin_registers(dp[0]);
    differentiate(part);
    if (params.slope_parts != nullptr) add_slope_share(head, row);
    pack_tile<T>(ds, dp[0]);
    store_scores(part);
    fence_async_proxy();
    if (part + 1 < kParts) start_sum_of(part, 0, dk[0], ds);
  }

  __device__ __forceinline__ void work_on_pair(int first_row) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) work_on_part(first_row, part);
    named_sync(1, 128 * kTile.groups);
    start_piece();
    start_sum_of(kParts - 1, 0, dk[0], ds);
    products_wait<1>();
    hand_over_piece();
    products_wait<0>();
    pin_registers(dv[0]);
    pin_registers(dk[0]);
    if (lane_id() == 0) barrier_arrive(memory.empty(place.stage));
    place.advance();
  }

  __device__ __forceinline__ void walk() {
    bool first = true;
    while (true) {
      barrier_wait(memory.full(place.stage), place.parity);
      const int row = load_note(memory.note(place.stage));
      if (row == ReachWalk::kEnd) break;
      if (first) hold_own();
      first = false;
      enter_head(load_note(memory.note(place.stage) + 4));
      work_on_pair(row);
    }
    enter_head(-1);
  }
};

template <class T, int D>
__global__ void __launch_bounds__(kHopperBackwardTile<D>.threads(), 1)
    attention_backward_hopper(const __grid_constant__ HopperBackwardParams params) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  static_assert(kTile.stages > 1, "with one buffer for dS, the groups would have to meet twice");
  const BackwardMemory<D> memory;
  if (threadIdx.x == 0) {
    memory.init_barriers();
    store_shared(memory.ticket(), static_cast<uint32_t>(take_ticket(params.ticket)));
  }
  __syncthreads();
  const KeyTask task = key_task<D>(params, load_note(memory.ticket()));
  const int group = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 128, 0);
  if (group == kTile.groups) {
    release_registers<kTile.producer_registers>();
    const int role = warp_id() % 4;
    if (role == 0) produce_pairs<D>(params, task, memory);
    if (role > 0) write_pieces<D>(params, task, memory, role - 1);
  } else {
    acquire_registers<kTile.consumer_registers>();
    KeyConsumer<T, D> consumer(params.backward, task, memory, group);
    consumer.walk();
    const BackwardParams& out = params.backward;
    const BlockPlace place = key_task<D>(params, load_note(memory.ticket())).place;
    store_grad_rows<T>(out.dk, place, consumer.row0, out.problem.len_k, D, consumer.dk,
                       out.problem.scale);
    store_grad_rows<T>(out.dv, place, consumer.row0, out.problem.len_k, D, consumer.dv, 1.0f);
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_BACKWARD_CUH_
