// What the vector cores of both backward kernels do alike: the slope gradient of their rows, and
// scaling, rounding and storing of the sums that the cube core has left in global memory.
#ifndef ALIBI_ASCEND_OP_KERNEL_GRAD_ROWS_H_
#define ALIBI_ASCEND_OP_KERNEL_GRAD_ROWS_H_

#include "bias_mask.h"
#include "cube_unit.h"

namespace alibi {
namespace ascend {

// Event ids. Loads use the slot number of what they load, sums slot 0; all stores of a kernel share
// one; the slope sums are also waited for at once.
constexpr int32_t kStoreSlot = 0, kSlopeSumSlot = 1;

// Rows of a tile of `rows` that fall to this core.
__aicore__ inline int32_t own_rows(int32_t rows) {
  return max_of(0, min_of(kRows, rows - AscendC::GetSubBlockIdx() * kRows));
}
// First element of this core's rows in slot `slot` of [kTileQ, kTileK] tiles.
__aicore__ inline int64_t half_tile(int32_t slot) {
  return int64_t{slot} * kTileQ * kTileK + AscendC::GetSubBlockIdx() * kRows * kTileK;
}

struct SlopeSums {
  LocalTensor<float> total;                           // [kRows], of the task so far
  LocalTensor<float> sum, moment, distance, scratch;  // [kRows]
  LocalTensor<float> blocks;                          // for a spread
  LocalTensor<float> distances;                       // [kDistanceRows, kTileK]
  RampBuffers ramp;
};

// s[r, c] = ds[r, c] * |j - p_r|; blocks = spread(row_distances).
__aicore__ inline void multiply_by_distances(const SlopeSums& x, const LocalTensor<float>& s,
                                             const LocalTensor<float>& ds, const RowBlock& block) {
  for (int32_t r = 0; r < block.rows; r += kDistanceRows) {
    const int32_t rows = min_of(kDistanceRows, block.rows - r);
    absolute_distances(x.distances, x.blocks, x.ramp, r, rows);
    AscendC::Mul(s[r * kTileK], ds[r * kTileK], x.distances, rows * kTileK);
    vector_barrier();
  }
}

// total[r] += sum_j ds[r, j] * dbias/dslope, with dbias/dslope = j - p left of the diagonal and
// where the bias is signed, p - j right of it. As the bias: ds * (j - j0) summed, plus (j0 - p)
// times the sum of ds. Overwrites s.
__aicore__ inline void add_slope_sums(const SlopeSums& x, const LocalTensor<float>& s,
                                      const LocalTensor<float>& ds, const RowBlock& block,
                                      Side side, int32_t key) {
  row_distances(x.distance, x.ramp, block, key);
  if (side == Side::kBoth) {
    spread(x.blocks, x.distance, block.rows);
    vector_barrier();
    multiply_by_distances(x, s, ds, block);
    row_sum(x.moment, s, x.scratch, block.rows);
    AscendC::Sub(x.total, x.total, x.moment, block.rows);
    vector_barrier();
    return;
  }
  row_sum(x.sum, ds, x.scratch, block.rows);
  for (int32_t c = 0; c < kTileK; c += kLanes)
    AscendC::Mul(s[c], ds[c], x.ramp.index[c], kLanes, block.rows, by_row(kTileK));
  AscendC::Mul(x.sum, x.sum, x.distance, block.rows);
  vector_barrier();
  row_sum(x.moment, s, x.scratch, block.rows);
  AscendC::Add(x.moment, x.moment, x.sum, block.rows);
  vector_barrier();
  if (side == Side::kLeft) {
    AscendC::Add(x.total, x.total, x.moment, block.rows);
  } else {
    AscendC::Sub(x.total, x.total, x.moment, block.rows);
  }
  vector_barrier();
}

// Buffers that sums pass through, a column strip at a time.
template <typename T>
struct Staging {
  LocalTensor<float> strip;  // [kRows, kStep], owned by the loads of slot 0
  LocalTensor<T> rounded;    // [kRows, kStep], owned by the stores
  int32_t head_dim;
};

// target [rows, head_dim] = scale * this core's half of sums [128, width], rounded; zeros if nothing
// was summed.
template <typename T>
__aicore__ inline void store_sums(const Staging<T>& via, const GlobalTensor<T>& target,
                                  const GlobalTensor<float>& sums, float scale, int32_t rows,
                                  int64_t stride, bool any) {
  const int32_t width = round_up(via.head_dim, kFractal);
  for (int32_t c = 0; c < width; c += kStep) {
    const int32_t cols = min_of(kStep, width - c),
                  bytes = min_of(cols, via.head_dim - c) * kHalfBytes;
    WaitFlag<HardEvent::V_MTE2>(0);
    if (any) {
      AscendC::DataCopyPad(
          via.strip, sums[AscendC::GetSubBlockIdx() * kRows * width + c],
          AscendC::DataCopyExtParams(rows, cols * kFloatBytes, (width - cols) * kFloatBytes, 0, 0),
          AscendC::DataCopyPadExtParams<float>());
    }
    SetFlag<HardEvent::MTE2_V>(0);
    WaitFlag<HardEvent::MTE2_V>(0);
    WaitFlag<HardEvent::MTE3_V>(kStoreSlot);
    if (any) {
      AscendC::Muls(via.strip, via.strip, scale, rows * cols);
    } else {
      AscendC::Duplicate(via.strip, 0.0f, rows * cols);
    }
    vector_barrier();
    AscendC::Cast(via.rounded, via.strip, AscendC::RoundMode::CAST_RINT, rows * cols);
    SetFlag<HardEvent::V_MTE2>(0);
    SetFlag<HardEvent::V_MTE3>(kStoreSlot);
    WaitFlag<HardEvent::V_MTE3>(kStoreSlot);
    AscendC::DataCopyPad(target[c], via.rounded,
                         AscendC::DataCopyExtParams(rows, bytes, (cols * kHalfBytes - bytes) / 32,
                                                    stride * kHalfBytes - bytes, 0));
    SetFlag<HardEvent::MTE3_V>(kStoreSlot);
  }
}

// dq of a query tile from its sums, and the slope gradient of its rows.
template <typename T>
__aicore__ inline void store_query_grads(const Staging<T>& via, const AttentionTiling& t,
                                         const Task& task, const GlobalTensor<T>& dq,
                                         const GlobalTensor<float>& sums,
                                         const GlobalTensor<float>& dslopes,
                                         const LocalTensor<float>& slope_sums, bool any) {
  const int32_t rows = own_rows(task.rows), first = task.row + AscendC::GetSubBlockIdx() * kRows;
  if (rows == 0) return;
  store_sums(via, dq[task.batch * t.q.batch + task.head * t.q.head + first * t.q.row], sums,
             t.scale, rows, t.q.row, any);
  WaitFlag<HardEvent::MTE3_V>(kStoreSlot);
  SetFlag<HardEvent::V_MTE3>(kStoreSlot);
  WaitFlag<HardEvent::V_MTE3>(kStoreSlot);
  AscendC::DataCopyPad(dslopes[(int64_t{task.batch} * t.heads_q + task.head) * t.len_q + first],
                       slope_sums, AscendC::DataCopyExtParams(1, rows * kFloatBytes, 0, 0, 0));
  SetFlag<HardEvent::MTE3_V>(kStoreSlot);
  SetFlag<HardEvent::MTE3_V>(kSlopeSumSlot);
  WaitFlag<HardEvent::MTE3_V>(kSlopeSumSlot);
}

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_GRAD_ROWS_H_
