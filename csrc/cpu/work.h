// The queue of a call: which item is which tile of rows, in which order, and what is counted.
#ifndef ALIBI_CPU_WORK_H_
#define ALIBI_CPU_WORK_H_

#include <stdint.h>

#include "../alibi_attention.h"
#include "dtype.h"
#include "parallel.h"

namespace alibi::cpu {
namespace {

// Cuts a block of floats into 64-byte aligned pieces. With a null base it only measures.
struct Carver {
  float* base;
  int64_t used;
  template <class T = float>
  T* take(int64_t count) {
    float* piece = base == nullptr ? nullptr : base + used;
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    used += (bytes + 63) / 64 * 16;
    return reinterpret_cast<T*>(piece);
  }
};

// The order in which query heads are worked on: gentle slopes first when pruning makes them the
// longest, else as they come, so that the heads of a group find their keys in the cache.
class HeadOrder {
 public:
  HeadOrder(const AlibiProblem& p, const float* slopes) : buffer_(sizeof(int32_t) * p.heads_q) {
    if (heads() == nullptr) return;
    if (p.prune != 0) {
      order_heads(slopes, p.heads_q, heads());
    } else {
      for (int64_t h = 0; h < p.heads_q; ++h) heads()[h] = static_cast<int32_t>(h);
    }
  }
  int32_t* heads() const { return static_cast<int32_t*>(buffer_.data()); }

 private:
  Buffer buffer_;
};

struct RowItem {
  int64_t batch, head, tile;
};

// Item `index` of batch * heads_q * row_tiles. Within a head the last rows come first: under a
// causal mask they are the longest.
ALIBI_INLINE RowItem row_item(int64_t index, const AlibiProblem& p, const int32_t* heads,
                              int64_t row_tiles) {
  const int64_t head = index / row_tiles;
  return {head % p.batch, heads[head / p.batch], row_tiles - 1 - index % row_tiles};
}

ALIBI_INLINE void count_work(const AlibiOptions* options, int64_t visited, int64_t allowed) {
  if (options == nullptr || options->stats == nullptr) return;
  __atomic_fetch_add(&options->stats->tiles_visited, visited, __ATOMIC_RELAXED);
  __atomic_fetch_add(&options->stats->tiles_allowed, allowed, __ATOMIC_RELAXED);
}

ALIBI_INLINE void count_decode(const AlibiOptions* options, int64_t scored, int64_t rows) {
  if (options == nullptr || options->stats == nullptr) return;
  __atomic_fetch_add(&options->stats->tiles_scored, scored, __ATOMIC_RELAXED);
  __atomic_fetch_add(&options->stats->decode_rows, rows, __ATOMIC_RELAXED);
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_WORK_H_
