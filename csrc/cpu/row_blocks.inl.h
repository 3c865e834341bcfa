// What the kernels over [rows, width] matrices share: walking along a row, and sums over rows.
//
// A unit of work is a block of rows. Sums over rows are first formed per block, in a partial sum
// that the block owns, and the partial sums are added in the order of the blocks. How many rows a
// block has depends on their number alone, so the sums do not depend on the threads.
#ifndef ALIBI_CPU_ROW_BLOCKS_INL_H_
#define ALIBI_CPU_ROW_BLOCKS_INL_H_

#include <stdint.h>

#include "../alibi_layer.h"
#include "dtype.h"
#include "parallel.h"

namespace alibi::cpu {
namespace {

struct RowBlocks {
  static constexpr int64_t kLeastRows = 32;    // so that partial sums are few beside the matrix,
  static constexpr int64_t kMostBlocks = 128;  // and adding them up is little work

  int64_t rows, block, count;

  explicit RowBlocks(int64_t rows) : rows(rows) {
    block = (rows + kMostBlocks - 1) / kMostBlocks;
    if (block < kLeastRows) block = kLeastRows;
    count = (rows + block - 1) / block;
  }
  int64_t begin(int64_t i) const { return i * block; }
  int64_t end(int64_t i) const { return i + 1 < count ? (i + 1) * block : rows; }
};

// The part of a row that one register holds: all of its lanes, or the first `count`.
template <class V>
struct AllLanes {
  using Reg = typename V::Reg;
  ALIBI_INLINE Reg load(const float* p) const { return V::load(p); }
  ALIBI_INLINE void store(float* p, Reg a) const { V::store(p, a); }
  ALIBI_INLINE Reg keep(Reg a) const { return a; }
};
template <class V>
struct FirstLanes {
  using Reg = typename V::Reg;
  int count;
  ALIBI_INLINE Reg load(const float* p) const { return V::load_first(p, count); }
  ALIBI_INLINE void store(float* p, Reg a) const { V::store_first(p, a, count); }
  ALIBI_INLINE Reg keep(Reg a) const {  // 0 in the lanes behind the row
    return V::select(V::lt(V::iota(), V::set1(static_cast<float>(count))), a, V::zero());
  }
};

// Sums that run along a row are kept in this many registers, which do not wait for each other.
constexpr int kChains = 4;

// body(lanes, column, chain) for every register of a row.
template <class V, class Body>
ALIBI_INLINE void along_row(int64_t width, Body body) {
  int64_t c = 0;
  for (; c + kChains * V::kWidth <= width; c += kChains * V::kWidth) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      body(AllLanes<V>{}, c + chain * V::kWidth, chain);
    }
  }
  for (; c + V::kWidth <= width; c += V::kWidth) body(AllLanes<V>{}, c, 0);
  if (c < width) body(FirstLanes<V>{static_cast<int>(width - c)}, c, 1);
}

template <class V>
struct Sum {
  typename V::Reg chains[kChains];

  ALIBI_INLINE Sum() {
    for (auto& chain : chains) chain = V::zero();
  }
  ALIBI_INLINE float total() const {
    return V::reduce_add(V::add(V::add(chains[0], chains[1]), V::add(chains[2], chains[3])));
  }
};

// The partial sums of `sums` vectors over rows, for every block.
template <class V>
class PartialSums {
 public:
  PartialSums(const RowBlocks& blocks, int sums, int64_t width)
      : count_(blocks.count),
        width_(width),
        stride_((width + 15) / 16 * 16),  // blocks share no cache line
        sums_(sums),
        memory_(sizeof(float) * static_cast<size_t>(count_ * sums * stride_)) {}

  bool allocated() const { return memory_.data() != nullptr; }
  float* of(int64_t block, int sum) const {
    return memory_.floats() + (block * sums_ + sum) * stride_;
  }
  // What a block does first.
  void clear(int64_t block) const {
    float* start = of(block, 0);
    for (int64_t i = 0; i < sums_ * stride_; ++i) start[i] = 0;
  }
  // Not noexcept, whose handler would be a weak symbol of this instruction set.
  __attribute__((nothrow)) void add_up(int sum, float* total) const {
    for (int64_t c = 0; c < width_; ++c) total[c] = 0;
    for (int64_t block = 0; block < count_; ++block) {
      const float* part = of(block, sum);
      along_row<V>(width_, [&](auto lanes, int64_t c, int) {
        lanes.store(total + c, V::add(lanes.load(total + c), lanes.load(part + c)));
      });
    }
  }

 private:
  int64_t count_, width_, stride_;
  int sums_;
  Buffer memory_;
};

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_ROW_BLOCKS_INL_H_
