// Row-wise steps of the vector cores on float tiles in UB: [rows, cols] against one value per row
// or one row for all.
//
// One vector instruction handles 64 floats per repeat and steps its operands by strides in 32-byte
// blocks (8 floats), so a loop over 64-wide column strips with one repeat per row covers a tile. A
// row operand has repeat stride 0; a column operand is first spread over one block per row (Brcb)
// and then has block stride 0.
#ifndef ALIBI_ASCEND_OP_KERNEL_ROW_OPS_H_
#define ALIBI_ASCEND_OP_KERNEL_ROW_OPS_H_

#include "tasks.h"

namespace alibi {
namespace ascend {

using AscendC::BinaryRepeatParams;
using AscendC::LocalTensor;
using AscendC::PipeBarrier;

constexpr int32_t kLanes = 64;       // floats per repeat
constexpr int32_t kBlockFloats = 8;  // floats per 32-byte block
// Scores of pairs that are not allowed. Far below any score, and still finite after the largest row
// maximum is subtracted.
constexpr float kMasked = -3.0e38f;
// Running row maximum before the first allowed key. Above kMasked, so that masked scores never
// become exp(0).
constexpr float kNoMaximum = -1.0e30f;

__aicore__ inline void vector_barrier() { PipeBarrier<PIPE_V>(); }

// values [rows] -> one 32-byte block per row.
__aicore__ inline void spread(const LocalTensor<float>& blocks, const LocalTensor<float>& values,
                              int32_t rows) {
  AscendC::Brcb(blocks, values, (rows + kBlockFloats - 1) / kBlockFloats, {1, 8});
}

// Strides of dst[row, strip] = f(tile[row, strip], other), both tiles `pitch` floats wide.
__aicore__ inline BinaryRepeatParams by_row_value(int32_t pitch) {
  const uint8_t step = pitch / kBlockFloats;
  return BinaryRepeatParams(1, 1, 0, step, step, 1);
}
__aicore__ inline BinaryRepeatParams by_row(int32_t pitch) {
  const uint8_t step = pitch / kBlockFloats;
  return BinaryRepeatParams(1, 1, 1, step, step, 0);
}
__aicore__ inline BinaryRepeatParams by_tile(int32_t pitch, int32_t other_pitch) {
  const uint8_t step = pitch / kBlockFloats;
  return BinaryRepeatParams(1, 1, 1, step, step, other_pitch / kBlockFloats);
}

// tile[r, c] -= values[r], tile[r, c] *= values[r], tile[r, c] /= values[r]; blocks =
// spread(values).
__aicore__ inline void subtract_rows(const LocalTensor<float>& tile,
                                     const LocalTensor<float>& blocks, int32_t rows, int32_t cols) {
  for (int32_t c = 0; c < cols; c += kLanes)
    AscendC::Sub(tile[c], tile[c], blocks, min_of(kLanes, cols - c), rows, by_row_value(cols));
}
__aicore__ inline void multiply_rows(const LocalTensor<float>& tile,
                                     const LocalTensor<float>& blocks, int32_t rows, int32_t cols,
                                     int32_t pitch) {
  for (int32_t c = 0; c < cols; c += kLanes)
    AscendC::Mul(tile[c], tile[c], blocks, min_of(kLanes, cols - c), rows, by_row_value(pitch));
}
__aicore__ inline void divide_rows(const LocalTensor<float>& tile, const LocalTensor<float>& blocks,
                                   int32_t rows, int32_t cols) {
  for (int32_t c = 0; c < cols; c += kLanes)
    AscendC::Div(tile[c], tile[c], blocks, min_of(kLanes, cols - c), rows, by_row_value(cols));
}

// result[r] = max or sum over the kTileK columns of tile; `other` is scratch of the same size.
__aicore__ inline void row_maximum(const LocalTensor<float>& result, const LocalTensor<float>& tile,
                                   const LocalTensor<float>& other, int32_t rows) {
  constexpr auto kOnlyValue = AscendC::ReduceOrder::ORDER_ONLY_VALUE;
  AscendC::WholeReduceMax<float>(result, tile, kLanes, rows, 1, 1, kTileK / kBlockFloats,
                                 kOnlyValue);
  AscendC::WholeReduceMax<float>(other, tile[kLanes], kLanes, rows, 1, 1, kTileK / kBlockFloats,
                                 kOnlyValue);
  vector_barrier();
  AscendC::Max(result, result, other, rows);
  vector_barrier();
}
__aicore__ inline void row_sum(const LocalTensor<float>& result, const LocalTensor<float>& tile,
                               const LocalTensor<float>& other, int32_t rows) {
  AscendC::WholeReduceSum<float>(result, tile, kLanes, rows, 1, 1, kTileK / kBlockFloats);
  AscendC::WholeReduceSum<float>(other, tile[kLanes], kLanes, rows, 1, 1, kTileK / kBlockFloats);
  vector_barrier();
  AscendC::Add(result, result, other, rows);
  vector_barrier();
}

// tile[r, c] = value for columns [from, to) of `rows` rows of kTileK.
__aicore__ inline void fill_columns(const LocalTensor<float>& tile, float value, int32_t from,
                                    int32_t to, int32_t rows) {
  for (int32_t c = 0; c < kTileK; c += kLanes) {
    const int32_t low = max_of(from - c, 0), high = min_of(to - c, kLanes);
    if (low >= high) continue;
    uint64_t mask[2] = {(~0ull << low) & (~0ull >> (kLanes - high)), 0};
    AscendC::Duplicate(tile[c], value, mask, rows, 1, kTileK / kBlockFloats);
  }
}
__aicore__ inline void mask_columns(const LocalTensor<float>& tile, int32_t from, int32_t to,
                                    int32_t rows) {
  fill_columns(tile, kMasked, from, to, rows);
}

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_ROW_OPS_H_
