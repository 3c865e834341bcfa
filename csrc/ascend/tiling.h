// What host, kernel and tests share: tile sizes, memory budgets, the plain struct that travels from
// the host tiling function to the kernel, and the arithmetic that decides which key tiles a query
// tile has to visit.
//
// A task is one query tile of one head of one batch item; task t goes to AI Core t % blocks. Each
// task visits a contiguous range of key tiles, found by key_tiles(): causality, the padding spans
// and the pruning reach cut it, nothing else does. Where there are fewer query tiles than AI Cores
// (decode), the range of each is cut into parts, a task each, and a second step combines them.
#ifndef ALIBI_ASCEND_TILING_H_
#define ALIBI_ASCEND_TILING_H_

#include <cstdint>

#ifndef ALIBI_DEVICE  // the kernel sources define it as __aicore__
#define ALIBI_DEVICE
#endif

namespace alibi {
namespace ascend {

// Atlas A2, bytes.
constexpr int32_t kUbBytes = 192 << 10;
constexpr int32_t kL1Bytes = 512 << 10;
constexpr int32_t kL0Bytes = 64 << 10;  // each of L0A and L0B
constexpr int32_t kL0cBytes = 128 << 10;

constexpr int32_t kTileQ = 128;        // query rows per task; each vector core takes half
constexpr int32_t kTileK = 128;        // keys per tile
constexpr int32_t kRows = kTileQ / 2;  // query rows per vector core
constexpr int32_t kStep = 128;         // largest m, n and k of one pass through L0
constexpr int32_t kFractal = 16;       // the cube unit works on 16x16 fractals
constexpr int32_t kMaxHeadDim = 256;
constexpr int32_t kMaxRowStride =
    65535;                             // elements between rows that the ND -> NZ copy can address
constexpr int32_t kNoReach = 1 << 30;  // prune nothing
// Of a sequence: positions and reaches add up in 32 bits.
constexpr int32_t kMaxLength = kNoReach / 2;
constexpr int32_t kSlots = 2;         // double buffering, everywhere
constexpr int32_t kMinPartTiles = 2;  // key tiles that make a part worth its share of combining

constexpr int32_t kHalfBytes = 2;  // float16, bfloat16
constexpr int32_t kFloatBytes = 4;

// Buffers of the forward kernel at the largest head_dim. README.md prints this table.
constexpr int32_t kFwdL1Query = kSlots * kTileQ * kMaxHeadDim * kHalfBytes;
constexpr int32_t kFwdL1Key = kSlots * kTileK * kMaxHeadDim * kHalfBytes;
constexpr int32_t kFwdL1Value = kSlots * kTileK * kMaxHeadDim * kHalfBytes;
constexpr int32_t kFwdL1Weights = kSlots * kTileQ * kTileK * kHalfBytes;
constexpr int32_t kFwdL1 = kFwdL1Query + kFwdL1Key + kFwdL1Value + kFwdL1Weights;
static_assert(kFwdL1 <= kL1Bytes, "L1");
static_assert(kSlots * kStep * kStep * kHalfBytes <= kL0Bytes, "L0A, L0B");
static_assert(kSlots * kStep * kStep * kFloatBytes <= kL0cBytes, "L0C");

constexpr int32_t kStatRows = 11;  // vectors of one float per query row
constexpr int32_t kFwdUbScores = kSlots * kRows * kTileK * kFloatBytes;
constexpr int32_t kFwdUbWeights = kRows * kTileK * kHalfBytes;
constexpr int32_t kFwdUbOut = kRows * kMaxHeadDim * kFloatBytes;
constexpr int32_t kFwdUbProduct = kRows * kStep * kFloatBytes;
constexpr int32_t kFwdUbStats = kStatRows * kRows * kFloatBytes;
constexpr int32_t kFwdUbBroadcast = 2 * kRows * 32;  // row values, a 32-byte block each
constexpr int32_t kFwdUbRamp = 2 * kTileK * kFloatBytes;
constexpr int32_t kFwdUb = kFwdUbScores + kFwdUbWeights + kFwdUbOut + kFwdUbProduct + kFwdUbStats +
                           kFwdUbBroadcast + kFwdUbRamp;
static_assert(kFwdUb <= kUbBytes, "UB");
static_assert(kRows * kMaxHeadDim * kHalfBytes <= kFwdUbScores / kSlots,
              "the rounded output borrows a score slot");
static_assert(kRows / 2 * kTileK * kFloatBytes <= kFwdUbWeights,
              "distances borrow the weights buffer, half the rows at a time");

// Buffers of the weights kernel. The cube core's are a subset of the forward kernel's.
constexpr int32_t kWeightsUbScores = kSlots * kRows * kTileK * kFloatBytes;
constexpr int32_t kWeightsUbWeights = kSlots * kRows * kTileK * kHalfBytes;
constexpr int32_t kWeightsUbZeros = kRows * kTileK * kHalfBytes;
constexpr int32_t kWeightsUbDistances = kRows / 2 * kTileK * kFloatBytes;
constexpr int32_t kWeightsL1 = kFwdL1Query + kFwdL1Key;
constexpr int32_t kWeightsUb = kWeightsUbScores + kWeightsUbWeights + kWeightsUbZeros +
                               kWeightsUbDistances + kFwdUbStats + kFwdUbBroadcast + kFwdUbRamp;
static_assert(kWeightsL1 <= kL1Bytes && kWeightsUb <= kUbBytes, "L1, UB");

// Buffers of the backward kernel. "Fixed" operands stay for a whole task, "moving" ones for one
// pair of tiles.
constexpr int32_t kGradL1Fixed = 2 * kTileQ * kMaxHeadDim * kHalfBytes;
constexpr int32_t kGradL1Moving = kSlots * 2 * kTileQ * kMaxHeadDim * kHalfBytes;
constexpr int32_t kGradL1Weights = 2 * kTileQ * kTileK * kHalfBytes;
constexpr int32_t kGradL1 = kGradL1Fixed + kGradL1Moving + kGradL1Weights;
static_assert(kGradL1 <= kL1Bytes, "L1");

constexpr int32_t kGradStatRows = 11;
constexpr int32_t kGradUbScores =
    kSlots * kRows * kTileK * kFloatBytes;  // and as much for the gradients of the weights
constexpr int32_t kGradUbWeights =
    kRows * kTileK * kHalfBytes;  // and as much for the gradients of the scores
constexpr int32_t kGradUbStats = kGradStatRows * kRows * kFloatBytes;
constexpr int32_t kGradUbBroadcast = 2 * kRows * 32;
constexpr int32_t kGradUb =
    2 * kGradUbScores + 2 * kGradUbWeights + kGradUbStats + kGradUbBroadcast + kFwdUbRamp;
static_assert(kGradUb <= kUbBytes, "UB");

// Buffers of the gradient of the weights: 16-bit P and dP as they arrive, both as floats, dS.
constexpr int32_t kWeightsGradL1Moving = kSlots * kTileQ * kMaxHeadDim * kHalfBytes;
constexpr int32_t kWeightsGradL1Grads = kSlots * kTileQ * kTileK * kHalfBytes;
constexpr int32_t kWeightsGradUbLoads = 2 * kSlots * kRows * kTileK * kHalfBytes;
constexpr int32_t kWeightsGradUbFloats = 2 * kRows * kTileK * kFloatBytes;
constexpr int32_t kWeightsGradUbGrads = kRows * kTileK * kHalfBytes;
constexpr int32_t kWeightsGradL1 = kWeightsGradL1Moving + kWeightsGradL1Grads;
constexpr int32_t kWeightsGradUb = kWeightsGradUbLoads + kWeightsGradUbFloats +
                                   kWeightsGradUbGrads + kWeightsUbDistances + kGradUbStats +
                                   kGradUbBroadcast + kFwdUbRamp;
static_assert(kWeightsGradL1 <= kL1Bytes && kWeightsGradUb <= kUbBytes, "L1, UB");

ALIBI_DEVICE constexpr int32_t round_up(int32_t value, int32_t unit) {
  return (value + unit - 1) / unit * unit;
}
ALIBI_DEVICE constexpr int32_t min_of(int32_t a, int32_t b) { return a < b ? a : b; }
ALIBI_DEVICE constexpr int32_t max_of(int32_t a, int32_t b) { return a > b ? a : b; }

// Element strides of a [batch, head, sequence, head_dim] tensor whatever its layout.
struct Strides {
  int64_t batch;
  int64_t head;
  int64_t row;
};

// A decode step (one query row) of a model with grouped heads is a problem of its own: all heads of
// a group read the same keys, so make_tiling() presents them to the kernel as the rows of one head.
// heads_q is then heads_kv and len_q the group; the rows share one position and differ in slope.
struct AttentionTiling {
  int32_t batch;
  int32_t heads_q;
  int32_t heads_kv;
  int32_t len_q;
  int32_t len_k;
  int32_t head_dim;
  int32_t causal;     // 0 or 1
  int32_t symmetric;  // 1: -slope |p - j|, 0: slope (j - p)
  int32_t has_spans;  // 0: (0, len_k, len_k - len_q) for every batch item
  int32_t has_reach;  // 0: no pruning
  int32_t q_start;    // without spans: position of query row 0
  int32_t row_step;   // positions from one query row to the next: 1, or 0 when rows are heads
  int32_t tiles_q;    // query tiles per head
  int32_t tiles_k;    // key tiles per head
  int32_t parts;      // of the key tiles of a query tile
  int32_t tasks;      // batch * heads_q * tiles_q * parts
  int32_t key_tasks;  // batch * heads_kv * tiles_k, of the backward
  float scale;
  int32_t blocks;  // AI Cores launched
  Strides q;       // of q and out
  Strides kv;      // of k and v
};

// One row of `spans`.
struct KeySpan {
  int32_t kv_start;
  int32_t kv_end;
  int32_t q_start;
};

// Spans lie in device memory, where the host cannot check them: whatever they hold, keys stay inside
// the tensors and positions add up in 32 bits.
ALIBI_DEVICE inline KeySpan safe_span(const KeySpan& span, int32_t len_k) {
  const int32_t start = max_of(0, min_of(span.kv_start, len_k));
  return {start, max_of(start, min_of(span.kv_end, len_k)),
          max_of(1 - kMaxLength, min_of(span.q_start, kMaxLength - 1))};
}

// Key tiles [first, end); empty when first == end.
struct TileRange {
  int32_t first;
  int32_t end;
};

// Key tiles that hold a key some row of query rows [row, row + rows) may see. `reach` is the
// pruning distance beyond the nearest allowed key (pruning.h of the host derives it); kNoReach
// keeps everything.
ALIBI_DEVICE inline TileRange key_tiles(const AttentionTiling& t, const KeySpan& span, int32_t row,
                                        int32_t rows, int32_t reach) {
  const int32_t first_position = span.q_start + row * t.row_step;
  const int32_t last_position = first_position + (rows - 1) * t.row_step;
  int32_t low = max_of(span.kv_start, min_of(first_position, span.kv_end - 1) - reach);
  int32_t high = span.kv_end;
  if (t.causal) high = min_of(high, last_position + 1);
  if (!t.causal && t.symmetric)
    high = min_of(high, max_of(last_position, span.kv_start) + reach + 1);
  if (low >= high) return {0, 0};
  return {low / kTileK, (high + kTileK - 1) / kTileK};
}

// Part `part` of `parts` of a range: the parts differ by at most one tile and some may be empty.
ALIBI_DEVICE inline TileRange part_of(const TileRange& range, int32_t part, int32_t parts) {
  const int64_t tiles = range.end - range.first;
  return {static_cast<int32_t>(range.first + tiles * part / parts),
          static_cast<int32_t>(range.first + tiles * (part + 1) / parts)};
}

// Two slots of a [kTileQ, kTileK] tile.
constexpr int64_t kFloatTiles = int64_t{kSlots} * kTileQ * kTileK * kFloatBytes;
constexpr int64_t kHalfTiles = kFloatTiles / 2;

// Bytes of a [kTileQ, head_dim rounded up] tile of floats.
ALIBI_DEVICE inline int64_t wide_tile(int32_t head_dim) {
  return int64_t{kTileQ} * round_up(head_dim, kFractal) * kFloatBytes;
}

// Global workspace per AI Core: two slots each of scores [kTileQ, kTileK] float, weights [kTileQ,
// kTileK] 16-bit and weights times values [kTileQ, head_dim rounded up] float. Where the keys are
// split, the result of each task follows behind those of all cores: the accumulator, then maximum
// and sum of each row.
struct Workspace {
  int64_t scores;
  int64_t weights;
  int64_t product;
  int64_t bytes;
  int64_t part_bytes;
};
ALIBI_DEVICE inline Workspace fwd_workspace(int32_t head_dim) {
  const int64_t wide = wide_tile(head_dim), before = kFloatTiles + kHalfTiles;
  return {0, kFloatTiles, before, before + kSlots * wide, wide + 2 * kTileQ * kFloatBytes};
}

// Backward: two slots each of scores and weight gradients (float), weights and score gradients
// (16-bit), and the sums of one task, [kTileK, head_dim rounded up] float, of dk and dv (or of dq
// alone).
struct GradWorkspace {
  int64_t scores;
  int64_t weight_grads;
  int64_t weights;
  int64_t score_grads;
  int64_t sums;
  int64_t bytes;
};
ALIBI_DEVICE inline GradWorkspace grad_workspace(int32_t head_dim) {
  const int64_t before = 2 * kFloatTiles + 2 * kHalfTiles;
  return {0,
          kFloatTiles,
          2 * kFloatTiles,
          2 * kFloatTiles + kHalfTiles,
          before,
          before + 2 * wide_tile(head_dim)};
}

// Gradient of the weights: two slots of score gradients and the sums of one task (dq or dk) per AI
// Core; behind those of all cores sum_j p dp of every query row, kTileQ floats per query tile.
struct WeightsGradWorkspace {
  int64_t score_grads;
  int64_t sums;
  int64_t bytes;
};
ALIBI_DEVICE inline WeightsGradWorkspace weights_grad_workspace(int32_t head_dim) {
  return {0, kHalfTiles, kHalfTiles + wide_tile(head_dim)};
}

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_TILING_H_
