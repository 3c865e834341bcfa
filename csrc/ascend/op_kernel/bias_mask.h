// Scores of one key tile in UB: scale, ALiBi bias and mask, in as few passes over the tile as
// possible.
//
// In a tile wholly on one side of the diagonal the bias is linear in j:  -slope |p - j| = +-slope
// (j - j0) +- slope (j0 - p). The first term is the same for every row: one ramp, added by
// broadcast, one pass. The second is a number per row; it is left out of the tile and added to the
// row maximum, so it costs nothing. Only tiles that the diagonal crosses without causality need |p
// - j| element by element.
//
// Distances are exact integers in float (below 2^24) before they meet the slope, and are counted
// from an anchor, the distance of the nearest key, so that scores near the maximum stay small
// however far away all keys are.
#ifndef ALIBI_ASCEND_OP_KERNEL_BIAS_MASK_H_
#define ALIBI_ASCEND_OP_KERNEL_BIAS_MASK_H_

#include "row_ops.h"

namespace alibi {
namespace ascend {

// The rows of one task that one vector core handles.
struct RowBlock {
  int32_t first;          // query row
  int32_t rows;           // 0..kRows
  int32_t position;       // of `first` on the key axis
  int32_t last_position;  // of the last row; the same where the rows are heads (tiling.h)
  int32_t anchor;         // bias(p, j) is computed with (j - p - anchor) in place of (j - p)
  KeySpan span;
  float slope;  // of the first row
};

__aicore__ inline RowBlock row_block(const AttentionTiling& t, const Task& task, int32_t half) {
  RowBlock block;
  block.first = task.row + half * kRows;
  block.rows = max_of(0, min_of(kRows, task.rows - half * kRows));
  block.position = task.span.q_start + block.first * t.row_step;
  block.last_position = block.position + (block.rows - 1) * t.row_step;
  block.span = task.span;
  return block;
}

// Keys left of every row, right of every row, or both sides occur.
enum class Side { kLeft, kRight, kBoth };

__aicore__ inline Side side_of(const AttentionTiling& t, const RowBlock& block, int32_t key) {
  if (!t.symmetric || t.causal || key + kTileK - 1 <= block.position) return Side::kLeft;
  return key >= block.last_position ? Side::kRight : Side::kBoth;
}

// Signed distance j - p of the key where the bias is largest, for the row of `block` nearest to it.
__aicore__ inline int32_t anchor_of(const AttentionTiling& t, const RowBlock& block) {
  const int32_t last_key = block.span.kv_end - 1;
  if (!t.symmetric && !t.causal)
    return (block.slope >= 0 ? last_key : block.span.kv_start) - block.position;
  if (last_key < block.position) return last_key - block.position;
  return t.causal ? 0 : min_of(0, block.last_position - block.span.kv_start);
}

// Buffers in UB.
struct RampBuffers {
  LocalTensor<float> index;      // [kTileK] 0, 1, 2, ...
  LocalTensor<float> ramp;       // [kTileK] slope * index
  LocalTensor<float> minus_row;  // [kRows] 0, -1, -2, ... or zeros: minus the row's position
  LocalTensor<float> slopes;     // [kRows]
};

__aicore__ inline void fill_index(const RampBuffers& b, int32_t row_step) {
  LocalTensor<int32_t> integers = b.ramp.template ReinterpretCast<int32_t>();
  AscendC::CreateVecIndex(integers, 0, kTileK);
  vector_barrier();
  AscendC::Cast(b.index, integers, AscendC::RoundMode::CAST_RINT, kTileK);
  vector_barrier();
  AscendC::Muls(b.minus_row, b.index, static_cast<float>(-row_step), kRows);
  vector_barrier();
}

// distance[r] = j0 - p_r for the rows of the block, as exact floats.
__aicore__ inline void row_distances(const LocalTensor<float>& distance, const RampBuffers& b,
                                     const RowBlock& block, int32_t key) {
  AscendC::Adds(distance, b.minus_row, static_cast<float>(key - block.position), block.rows);
  vector_barrier();
}

// Rows that fit the scratch of absolute_distances.
constexpr int32_t kDistanceRows = kRows / 2;

// scratch[i, c] = |j - p_r| for rows r = row + i, at most kDistanceRows of them; blocks =
// spread(row_distances).
__aicore__ inline void absolute_distances(const LocalTensor<float>& scratch,
                                          const LocalTensor<float>& blocks, const RampBuffers& b,
                                          int32_t row, int32_t rows) {
  for (int32_t c = 0; c < kTileK; c += kLanes) {
    AscendC::Add(scratch[c], b.index[c], blocks[row * kBlockFloats], kLanes, rows,
                 BinaryRepeatParams(1, 1, 0, kTileK / kBlockFloats, 0, 1));
  }
  vector_barrier();
  AscendC::Abs(scratch, scratch, rows * kTileK);
  vector_barrier();
}

// s[r, c] -= slope_r * |j - p_r|, for a tile that the diagonal crosses. scratch: [kDistanceRows,
// kTileK] floats; slope_blocks = spread(slopes).
__aicore__ inline void subtract_distances(const LocalTensor<float>& s,
                                          const LocalTensor<float>& scratch,
                                          const LocalTensor<float>& blocks,
                                          const LocalTensor<float>& slope_blocks,
                                          const RampBuffers& b, const RowBlock& block) {
  for (int32_t r = 0; r < block.rows; r += kDistanceRows) {
    const int32_t rows = min_of(kDistanceRows, block.rows - r);
    absolute_distances(scratch, blocks, b, r, rows);
    multiply_rows(scratch, slope_blocks[r * kBlockFloats], rows, kTileK, kTileK);
    vector_barrier();
    AscendC::Sub(s[r * kTileK], s[r * kTileK], scratch, rows * kTileK);
    vector_barrier();
  }
}

// s[r, c] += +-slope_r * (j - j0): one ramp for all rows, or where the rows are heads, one each.
__aicore__ inline void add_ramp(const LocalTensor<float>& s, const LocalTensor<float>& scratch,
                                const LocalTensor<float>& slope_blocks, const RampBuffers& b,
                                const AttentionTiling& t, const RowBlock& block, bool left) {
  for (int32_t c = 0; t.row_step && c < kTileK; c += kLanes) {
    if (left) {
      AscendC::Add(s[c], s[c], b.ramp[c], kLanes, block.rows, by_row(kTileK));
    } else {
      AscendC::Sub(s[c], s[c], b.ramp[c], kLanes, block.rows, by_row(kTileK));
    }
  }
  for (int32_t r = 0; !t.row_step && r < block.rows; r += kDistanceRows) {
    const int32_t rows = min_of(kDistanceRows, block.rows - r);
    for (int32_t c = 0; c < kTileK; c += kLanes) {
      AscendC::Mul(scratch[c], b.index[c], slope_blocks[r * kBlockFloats], kLanes, rows,
                   BinaryRepeatParams(1, 1, 0, kTileK / kBlockFloats, 0, 1));
    }
    vector_barrier();
    if (left) {
      AscendC::Add(s[r * kTileK], s[r * kTileK], scratch, rows * kTileK);
    } else {
      AscendC::Sub(s[r * kTileK], s[r * kTileK], scratch, rows * kTileK);
    }
    vector_barrier();
  }
}

// Adds the part of the bias that varies within a row, and leaves the rest in row_bias [rows].
// blocks and slope_blocks: scratch for a spread of row values each.
__aicore__ inline void add_bias(const LocalTensor<float>& s, const LocalTensor<float>& row_bias,
                                const LocalTensor<float>& scratch, const LocalTensor<float>& blocks,
                                const LocalTensor<float>& slope_blocks, const RampBuffers& b,
                                const AttentionTiling& t, const RowBlock& block, Side side,
                                int32_t key) {
  const float anchor = static_cast<float>(block.anchor);
  row_distances(row_bias, b, block, key);
  if (side == Side::kBoth || !t.row_step) {
    spread(blocks, row_bias, block.rows);
    spread(slope_blocks, b.slopes, block.rows);
    vector_barrier();
  }
  if (side == Side::kBoth) {
    subtract_distances(s, scratch, blocks, slope_blocks, b, block);
    AscendC::Muls(row_bias, b.slopes, -anchor, block.rows);
    vector_barrier();
    return;
  }
  const bool left = side == Side::kLeft;
  add_ramp(s, scratch, slope_blocks, b, t, block, left);
  AscendC::Adds(row_bias, row_bias, left ? -anchor : anchor, block.rows);
  vector_barrier();
  AscendC::Mul(row_bias, row_bias, b.slopes, block.rows);
  vector_barrier();
  if (left) return;
  AscendC::Muls(row_bias, row_bias, -1.0f, block.rows);
  vector_barrier();
}

// Overwrites what is not allowed: keys outside [kv_start, kv_end) and, if causal, keys after the
// row's position. Nothing to do inside the triangle.
__aicore__ inline void apply_mask(const LocalTensor<float>& s, const AttentionTiling& t,
                                  const RowBlock& block, int32_t key) {
  const int32_t begin = block.span.kv_start - key, end = block.span.kv_end - key;
  if (begin > 0) mask_columns(s, 0, begin, block.rows);
  if (end < kTileK) {
    vector_barrier();
    mask_columns(s, max_of(end, 0), kTileK, block.rows);
  }
  if (t.causal && block.position + 1 - key < kTileK) {
    vector_barrier();
    for (int32_t r = 0; r < block.rows; ++r) {
      const int32_t visible = block.position + r * t.row_step + 1 - key;
      if (visible < kTileK) mask_columns(s[r * kTileK], max_of(visible, 0), kTileK, 1);
    }
  }
  vector_barrier();
}

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_BIAS_MASK_H_
