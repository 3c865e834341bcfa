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

struct RowItem {
  int64_t batch, head, tile;
};

// The order of the work. Within a head the last rows come first: under a causal mask they are the
// longest. When pruning makes the heads differ, those with a gentle slope come first, of the whole
// batch; else the heads come as they are, so that those of a group find their keys in the cache, and
// those of a batch item their pages, where the layout is BSND.
class HeadOrder {
 public:
  HeadOrder(const AlibiProblem& p, const float* slopes)
      : batch_(p.batch), heads_(p.heads_q), order_(p.prune != 0 ? sizeof(int32_t) * p.heads_q : 0) {
    if (p.prune != 0 && allocated()) order_heads(slopes, heads_, sorted());
    pruned_ = p.prune != 0;
  }
  bool allocated() const { return order_.data() != nullptr; }

  // Item `index` of batch * heads * items_per_head.
  RowItem item(int64_t index, int64_t items_per_head) const {
    const int64_t head = index / items_per_head;
    const int64_t tile = items_per_head - 1 - index % items_per_head;
    if (pruned_) return {head % batch_, sorted()[head / batch_], tile};
    return {head / heads_, head % heads_, tile};
  }

 private:
  int32_t* sorted() const { return static_cast<int32_t*>(order_.data()); }

  int64_t batch_, heads_;
  Buffer order_;
  bool pruned_;
};

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
