// Online softmax of a block of rows on a vector core: the running maximum and sum, tile by tile.
//   m' = max(m, max_j s_j)    l' = l exp(m - m') + sum_j exp(s_j - m')
// A tile holds its scores less a number per row (row_bias, see bias_mask.h), so the maximum that
// the exponentials subtract is m' - row_bias.
#ifndef ALIBI_ASCEND_OP_KERNEL_SOFTMAX_ROWS_H_
#define ALIBI_ASCEND_OP_KERNEL_SOFTMAX_ROWS_H_

#include "bias_mask.h"

namespace alibi {
namespace ascend {

// [kRows] each.
struct SoftmaxRows {
  LocalTensor<float> maximum, sum;
  LocalTensor<float> row_bias;  // of the tile at hand
  LocalTensor<float> fresh, tile_sum, scratch;
};

__aicore__ inline void start_rows(const SoftmaxRows& r) {
  AscendC::Duplicate(r.maximum, kNoMaximum, kRows);
  AscendC::Duplicate(r.sum, 0.0f, kRows);
}

// maximum = fresh = max(maximum, fresh), factor = exp(old - new).
__aicore__ inline void raise_maximum(const SoftmaxRows& r, const LocalTensor<float>& factor,
                                     int32_t rows) {
  AscendC::Max(r.fresh, r.fresh, r.maximum, rows);
  vector_barrier();
  AscendC::Sub(factor, r.maximum, r.fresh, rows);
  vector_barrier();
  AscendC::Exp(factor, factor, rows);
  AscendC::Adds(r.maximum, r.fresh, 0.0f, rows);
  vector_barrier();
}

// The maximum with tile s; blocks = spread(maximum - row_bias).
__aicore__ inline void new_maximum(const SoftmaxRows& r, const LocalTensor<float>& factor,
                                   const LocalTensor<float>& blocks, const LocalTensor<float>& s,
                                   int32_t rows) {
  row_maximum(r.fresh, s, r.scratch, rows);
  AscendC::Add(r.fresh, r.fresh, r.row_bias, rows);
  vector_barrier();
  raise_maximum(r, factor, rows);
  AscendC::Sub(r.row_bias, r.maximum, r.row_bias, rows);
  vector_barrier();
  spread(blocks, r.row_bias, rows);
  vector_barrier();
}

// s = exp(s - the row values in blocks).
__aicore__ inline void exponentials(const LocalTensor<float>& s, const LocalTensor<float>& blocks,
                                    int32_t rows) {
  subtract_rows(s, blocks, rows, kTileK);
  vector_barrier();
  AscendC::Exp(s, s, rows * kTileK);
  vector_barrier();
}

// sum = sum * factor + added. The caller's barrier ends it.
__aicore__ inline void add_to_sum(const SoftmaxRows& r, const LocalTensor<float>& factor,
                                  const LocalTensor<float>& added, int32_t rows) {
  AscendC::Mul(r.sum, r.sum, factor, rows);
  vector_barrier();
  AscendC::Add(r.sum, r.sum, added, rows);
}

// result = log of the sum, which is kept above zero for rows without keys.
__aicore__ inline void log_of_sum(const SoftmaxRows& r, const LocalTensor<float>& result,
                                  int32_t rows) {
  AscendC::Maxs(r.sum, r.sum, 1.0e-30f, rows);
  vector_barrier();
  AscendC::Ln(result, r.sum, rows);
  vector_barrier();
}

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_SOFTMAX_ROWS_H_
