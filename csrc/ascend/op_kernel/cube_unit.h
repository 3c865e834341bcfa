// Matrix products of one AI Core's cube unit: tiles from global memory to L1, products through L0,
// results back.
//
// In L1 a tile of [rows, cols] is kept in "Nz": columns in groups of 16, each group [rows rounded
// up to 16, 16]. L0A wants 16x16 fractals row by row ("Zz"), L0B fractals row by row but each
// column-major ("Zn"). From Nz both are reached by whole fractals, transposed on the way where
// needed, so the four products A B, A B^T, A^T B need one load routine each side.
//
// L0A/L0B and L0C are double-buffered: loads of the next step run beside the product of this one,
// and the store of a result beside the next product. Every buffer has a "free" flag (set by its
// reader) and a "full" flag (set by its writer); free flags are set once at the start and collected
// at the end.
#ifndef ALIBI_ASCEND_OP_KERNEL_CUBE_UNIT_H_
#define ALIBI_ASCEND_OP_KERNEL_CUBE_UNIT_H_

#include "tasks.h"

namespace alibi {
namespace ascend {

using AscendC::GlobalTensor;
using AscendC::HardEvent;
using AscendC::LocalTensor;
using AscendC::PipeBarrier;
using AscendC::SetFlag;
using AscendC::TBuf;
using AscendC::TPipe;
using AscendC::TPosition;
using AscendC::WaitFlag;

// TPipe keeps M_MTE1 0, 1 and 2 for itself on the cube core.
constexpr int32_t kL0Event = 3;
// Below this many fractals the unit does not order a product behind the one it accumulates onto.
constexpr int32_t kOrderedFractals = 10;

// One operand of a product: a tile in L1 and whether it enters transposed.
template <typename T>
struct Operand {
  LocalTensor<T> tile;
  int32_t rows;  // of the tile as it lies in L1, rounded up to 16
  bool transposed;
};

template <typename T>
class CubeUnit {
 public:
  // l1_slots: how many L1 slots (of any size) the caller synchronises with slot_*(), at most 6.
  __aicore__ inline void Init(TPipe* pipe, int32_t l1_slots) {
    l1_slots_ = l1_slots;
    pipe->InitBuffer(l0a_, kL0Bytes);
    pipe->InitBuffer(l0b_, kL0Bytes);
    pipe->InitBuffer(l0c_, kL0cBytes);
    for (int32_t i = 0; i < kSlots; ++i) {
      SetFlag<HardEvent::M_MTE1>(kL0Event + i);
      SetFlag<HardEvent::FIX_M>(i);
    }
    for (int32_t i = 0; i < l1_slots_; ++i) SetFlag<HardEvent::MTE1_MTE2>(i);
  }

  __aicore__ inline void finish() {
    for (int32_t i = 0; i < kSlots; ++i) {
      WaitFlag<HardEvent::M_MTE1>(kL0Event + i);
      WaitFlag<HardEvent::FIX_M>(i);
    }
    for (int32_t i = 0; i < l1_slots_; ++i) WaitFlag<HardEvent::MTE1_MTE2>(i);
  }

  // An L1 slot: acquire (empty) -> load() ... -> loaded -> use -> products -> release.
  __aicore__ inline void acquire(int32_t slot) { WaitFlag<HardEvent::MTE1_MTE2>(slot); }
  __aicore__ inline void loaded(int32_t slot) { SetFlag<HardEvent::MTE2_MTE1>(slot); }
  __aicore__ inline void use(int32_t slot) { WaitFlag<HardEvent::MTE2_MTE1>(slot); }
  __aicore__ inline void release(int32_t slot) { SetFlag<HardEvent::MTE1_MTE2>(slot); }

  // Row-major [rows, cols] in global memory, `stride` elements per row -> Nz in L1. A single row is
  // loaded twice: products are at least two rows high, because m = 1 would switch the unit to
  // another operand layout.
  __aicore__ inline void load(const LocalTensor<T>& l1, const GlobalTensor<T>& source, int32_t rows,
                              int32_t cols, int32_t stride) {
    copy(l1, source, rows, cols, stride, rows);
    if (rows == 1) copy(l1[kFractal], source, rows, cols, stride, rows);
  }

  // The same for a tile of keys or values of which only `seen` is read. The other rows are zeros:
  // what lies there in global memory may be anything, and a weight of 0 times NaN is NaN.
  __aicore__ inline void load_seen(const LocalTensor<T>& l1, const GlobalTensor<T>& source,
                                   const KeyRange& seen, int32_t rows, int32_t cols,
                                   int32_t stride) {
    clear(l1, 0, seen.first, rows, cols);
    copy(l1[seen.first * kFractal], source[int64_t{seen.first} * stride], seen.end - seen.first,
         cols, stride, rows);
    clear(l1, seen.end, rows, rows, cols);
  }

  // dst [m, n rounded up to 16] = A [m, k] B [k, n], `stride` elements per row of dst. The columns
  // past n are unspecified. add: dst += A B. Only this core adds to dst, one product after another,
  // so the sum does not depend on timing.
  __aicore__ inline void multiply(const Operand<T>& a, const Operand<T>& b, int32_t m, int32_t n,
                                  int32_t k, const GlobalTensor<float>& dst, int32_t stride,
                                  bool add = false) {
    if (add) {
      PipeBarrier<PIPE_FIX>();
      AscendC::SetAtomicAdd<float>();
    }
    for (int32_t n0 = 0; n0 < n; n0 += kStep) {
      const int32_t width = min_of(kStep, n - n0);
      WaitFlag<HardEvent::FIX_M>(c_slot_);
      LocalTensor<float> c = l0c_.template Get<float>()[c_slot_ * kStep * kStep];
      for (int32_t k0 = 0; k0 < k; k0 += kStep)
        accumulate(a, b, c, m, n0, width, k0, min_of(kStep, k - k0));
      SetFlag<HardEvent::M_FIX>(c_slot_);
      WaitFlag<HardEvent::M_FIX>(c_slot_);
      AscendC::FixpipeParamsV220 params;
      params.nSize = round_up(width, kFractal);
      params.mSize = m;
      params.srcStride = round_up(m, kFractal);
      params.dstStride = stride;
      params.quantPre = QuantMode_t::NoQuant;
      params.ndNum = 1;
      AscendC::Fixpipe<float, float, AscendC::CFG_ROW_MAJOR>(dst[n0], c, params);
      SetFlag<HardEvent::FIX_M>(c_slot_);
      c_slot_ ^= 1;
    }
    if (add) AscendC::SetAtomicNone();
  }

 private:
  // Row-major [rows, cols] -> the first rows of a tile of `height` rows in L1.
  __aicore__ inline void copy(const LocalTensor<T>& l1, const GlobalTensor<T>& source, int32_t rows,
                              int32_t cols, int32_t stride, int32_t height) {
    AscendC::Nd2NzParams params;
    params.ndNum = 1;
    params.nValue = rows;
    params.dValue = cols;
    params.srcDValue = stride;
    params.dstNzC0Stride = round_up(height, kFractal);
    params.dstNzNStride = 1;
    AscendC::DataCopy(l1, source, params);
  }

  // Zeros in rows [from, to) of a tile of `height` rows in L1, where a row is a 32-byte block of
  // every column group.
  __aicore__ inline void clear(const LocalTensor<T>& l1, int32_t from, int32_t to, int32_t height,
                               int32_t cols) {
    if (from >= to) return;
    AscendC::InitConstValueParams<half> params;
    params.repeatTimes = round_up(cols, kFractal) / kFractal;
    params.blockNum = to - from;
    params.dstGap = round_up(height, kFractal) - (to - from);
    params.initValue = 0;
    AscendC::InitConstValue(l1[from * kFractal].template ReinterpretCast<half>(), params);
  }

  __aicore__ inline void accumulate(const Operand<T>& a, const Operand<T>& b,
                                    const LocalTensor<float>& c, int32_t m, int32_t n0, int32_t n,
                                    int32_t k0, int32_t k) {
    LocalTensor<T> a0 = l0a_.template Get<T>()[l0_slot_ * kStep * kStep],
                   b0 = l0b_.template Get<T>()[l0_slot_ * kStep * kStep];
    WaitFlag<HardEvent::M_MTE1>(kL0Event + l0_slot_);
    load_a(a0, a, m, k0, k);
    load_b(b0, b, n0, n, k0, k);
    SetFlag<HardEvent::MTE1_M>(l0_slot_);
    WaitFlag<HardEvent::MTE1_M>(l0_slot_);
    if (k0 > 0 && (m / kFractal) * (n / kFractal) < kOrderedFractals) PipeBarrier<PIPE_M>();
    AscendC::MmadParams params;
    params.m = max_of(m, 2);
    params.n = n;
    params.k = k;
    params.cmatrixInitVal = k0 == 0;
    AscendC::Mmad(c, a0, b0, params);
    SetFlag<HardEvent::M_MTE1>(kL0Event + l0_slot_);
    l0_slot_ ^= 1;
  }

  // Fractal row i of A [m, k]: the fractals (i, k0/16 ...) of the tile, or (k0/16 ..., i) each
  // transposed.
  __aicore__ inline void load_a(const LocalTensor<T>& l0, const Operand<T>& a, int32_t m,
                                int32_t k0, int32_t k) {
    const int32_t tile_rows = a.rows / kFractal, blocks_k = round_up(k, kFractal) / kFractal,
                  first = k0 / kFractal;
    for (int32_t i = 0; i * kFractal < m; ++i) {
      const int32_t start = a.transposed ? i * tile_rows + first : first * tile_rows + i;
      AscendC::LoadData(l0[i * blocks_k * 256], a.tile,
                        AscendC::LoadData2DParams(start, blocks_k, a.transposed ? 1 : tile_rows, 0,
                                                  0, a.transposed, 0));
    }
  }

  // Fractal row i of B [k, n]. L0B fractals are column-major: a tile that holds B^T is copied as it
  // is, one that holds B is transposed fractal by fractal.
  __aicore__ inline void load_b(const LocalTensor<T>& l0, const Operand<T>& b, int32_t n0,
                                int32_t n, int32_t k0, int32_t k) {
    const int32_t tile_rows = b.rows / kFractal, blocks_n = round_up(n, kFractal) / kFractal;
    for (int32_t i = 0; i * kFractal < k; ++i) {
      const int32_t row = k0 / kFractal + i, column = n0 / kFractal;
      const int32_t start = b.transposed ? row * tile_rows + column : column * tile_rows + row;
      AscendC::LoadData(l0[i * blocks_n * 256], b.tile,
                        AscendC::LoadData2DParams(start, blocks_n, b.transposed ? 1 : tile_rows, 0,
                                                  0, !b.transposed, 0));
    }
  }

  TBuf<TPosition::A2> l0a_;
  TBuf<TPosition::B2> l0b_;
  TBuf<TPosition::CO1> l0c_;
  int32_t l1_slots_;
  int32_t l0_slot_ = 0;
  int32_t c_slot_ = 0;
};

}  // namespace ascend
}  // namespace alibi

#endif  // ALIBI_ASCEND_OP_KERNEL_CUBE_UNIT_H_
