// How the backward passes share their work between threads.
//
// A unit of work is one chunk of keys of one key head, and all query heads that share it or, where key
// heads are few, a part of these. It walks over every row of them that sees the chunk, and sums dK and
// dV in scratch that stays in the second-level cache. Part p of a chunk adds its sums to those of the
// parts before when p - 1 has done so. A row of dQ collects a share from each chunk that the row sees;
// these are consecutive chunks, and chunk c adds its share after chunk c - 1 did. The order of every
// sum is thus fixed by the shape, no thread needs a gradient buffer of its own, and one head alone
// still keeps many threads busy.
//
// Waiting is rare and cannot deadlock: units are handed out in order, all parts and heads of chunk 0
// first (with a causal mask the longest ones), each visits its query tiles in the same order, and a
// unit only ever waits for one that was handed out before it.
#ifndef ALIBI_CPU_KEY_CHUNKS_INL_H_
#define ALIBI_CPU_KEY_CHUNKS_INL_H_

#include <sched.h>
#include <stdint.h>
#include <string.h>

#include "../alibi_attention.h"
#include "dtype.h"
#include "geometry.h"
#include "micro.inl.h"
#include "tile_io.inl.h"

namespace alibi::cpu {
namespace {

ALIBI_INLINE KeyRange intersect(KeyRange a, KeyRange b) {
  return key_range(max_int64(a.begin, b.begin), min_int64(a.end, b.end));
}

// The range that covers two adjacent ones.
ALIBI_INLINE KeyRange join(KeyRange a, KeyRange b) {
  if (a.empty() || b.empty()) return a.empty() ? b : a;
  return {a.begin, b.end};
}

// The chunks of a call: they depend on its shape alone, never on the threads.
struct KeyChunks {
  int64_t keys;   // in a chunk, a multiple of kKeys
  int64_t count;  // chunks of a head; at least 1: empty keys have (empty) gradients too
  int64_t heads;  // batch * heads_kv
  int64_t parts;  // of the query heads that share a key head

  int64_t units() const { return count * parts * heads; }
  // The head (batch * heads_kv + key head), part and chunk of a unit.
  int64_t head(int64_t unit) const { return unit % heads; }
  int64_t part(int64_t unit) const { return unit / heads % parts; }
  int64_t chunk(int64_t unit) const { return unit / heads / parts; }
  // The units that add to the same keys, or to the same rows, before it.
  int64_t previous_part(int64_t unit) const { return unit - heads; }
  int64_t previous_chunk(int64_t unit) const { return unit - heads * parts; }
  // How many units a thread takes at once: neighbours, whose rows may share lines of the cache. Where
  // a head has several units, few enough that no thread has to wait for its turn.
  int64_t together(int threads) const {
    return count * parts == 1 ? heads : max_int64(1, heads / (2 * max_int64(1, threads)));
  }
  KeyRange range(int64_t unit, int64_t len_k) const {
    return {chunk(unit) * keys, min_int64(len_k, (chunk(unit) + 1) * keys)};
  }
};

template <class V>
KeyChunks cut_keys(const AlibiProblem& problem, int arrays) {
  // For the [keys, D] arrays of a unit: 512 KB, or up to twice that for so many keys that what is
  // done once per row and chunk is little beside the products.
  constexpr int64_t kCacheFloats = 128 * 1024, kEnoughKeys = 512;
  constexpr int64_t kUnits = 16;  // enough to share, if they are not too small for it
  constexpr int64_t kFewestKeys = 128, kFewestRows = 256;
  const int64_t dim = round_up(static_cast<int>(problem.head_dim), V::kWidth);
  const int64_t heads = problem.batch * problem.heads_kv;
  const int64_t group = problem.heads_q / max_int64(problem.heads_kv, 1);
  const int64_t near = kCacheFloats / (arrays * dim);
  const int64_t most = max_int64(near, min_int64(2 * near, kEnoughKeys));
  // Parts first: they repeat the copies of the keys, smaller chunks what is done once per row.
  const int64_t wanted = divide_up(kUnits, max_int64(heads, 1));
  const int64_t parts =
      max_int64(1, min_int64(min_int64(group, group * problem.len_q / kFewestRows),
                             divide_up(wanted, max_int64(divide_up(problem.len_k, most), 1))));
  const int64_t for_sharing = divide_up(problem.len_k, divide_up(wanted, parts));
  const int64_t keys = min_int64(most, max_int64(for_sharing, kFewestKeys));
  const int64_t count = max_int64(divide_up(problem.len_k, keys), 1);
  return {divide_up(divide_up(problem.len_k, count), V::kKeys) * V::kKeys, count, heads, parts};
}

// Whose turn it is to add to the rows of dQ, or to dK and dV. Every unit visits its items (query
// tiles) in increasing order, and finishes kAllItems after its keys.
class Turns {
 public:
  static constexpr int64_t kAllItems = INT64_MAX - 1;

  Turns(int64_t* done, int64_t units) : done_(done) {
    for (int64_t unit = 0; unit < units; ++unit) done_[unit] = 0;
  }
  // Returns when `unit` has finished `item`, which it must visit.
  void wait(int64_t unit, int64_t item) const {
    while (__atomic_load_n(done_ + unit, __ATOMIC_ACQUIRE) <= item) sched_yield();
  }
  void finish(int64_t unit, int64_t item) const {
    __atomic_store_n(done_ + unit, item + 1, __ATOMIC_RELEASE);
  }

 private:
  int64_t* done_;  // per unit: its items below this number are finished
};

// As operands; rows that nobody has asked for look `ahead`.
template <class V>
void copy_operand_rows(const HeadView& head, int64_t s, int n, int dim, Element<V>* dst,
                       int ahead = 0) {
  with_operand_row<V>(head, s,
                      [&](const auto* src) { copy_rows<V>(src, head.stride, n, dim, dst, ahead); });
}

// head[s + i][d] = 0 for i < n.
template <class V>
void clear_rows(const HeadView& head, int64_t s, int n, int dim) {
  with_row(head, s, [&](auto* dst) {
    for (int i = 0; i < n; ++i, dst += head.stride) memset(dst, 0, sizeof(*dst) * dim);
  });
}

// Where a share of a gradient goes: `sum` (float32) holds what the chunks or parts so far have added;
// the last one writes `result`.
struct ShareTarget {
  HeadView sum;
  HeadView result;
  bool first;  // nothing has been added yet
  bool last;
};

// target[s + i][d] += factor * share_t[d][i] for i < n, d < dim.
template <class V>
void add_share(const float* share_t, float factor, int n, int dim, const ShareTarget& target,
               int64_t s) {
  constexpr int W = V::kWidth;
  const typename V::Reg scale = V::set1(factor);
  with_row(target.result, s, [&](auto* result) {
    float* sum = static_cast<float*>(target.sum.data) + s * target.sum.stride;
    for (int i0 = 0; i0 < n; i0 += W) {
      for (int d0 = 0; d0 < dim; d0 += W) {
        const int rows = min_int(W, n - i0), dims = min_int(W, dim - d0);
        typename V::Reg block[W];
#pragma GCC unroll 16
        for (int d = 0; d < W; ++d)
          block[d] = V::mul(scale, V::load(share_t + (d0 + d) * kRows<V> + i0));
        V::transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          if (i >= rows) continue;
          float* partial = sum + (i0 + i) * target.sum.stride + d0;
          if (!target.first) block[i] = V::add(block[i], V::load_first(partial, dims));
          if (target.last) {
            V::store_first(result + (i0 + i) * target.result.stride + d0, block[i], dims);
          } else {
            V::store_first(partial, block[i], dims);
          }
        }
      }
    }
  });
}

// target[s + i][d] += factor * src[i][d] for i < n, d < dim; src has rows of dim rounded up to kWidth.
template <class V>
void add_rows(const float* src, float factor, int64_t n, int dim, const ShareTarget& target,
              int64_t s) {
  const int padded = round_up(dim, V::kWidth);
  const int64_t stride = target.result.stride;
  const typename V::Reg scale = V::set1(factor);
  with_row(target.result, s, [&](auto* result) {
    float* sum = static_cast<float*>(target.sum.data) + s * target.sum.stride;
    for (int64_t i = 0; i < n; ++i, result += stride, sum += target.sum.stride, src += padded) {
      if (target.last && stride != dim) prefetch_row<1, 3>(result + kRowsAhead * stride, dim);
      for (int d = 0; d < dim; d += V::kWidth) {
        const int dims = min_int(V::kWidth, dim - d);
        typename V::Reg total = V::mul(scale, V::load(src + d));
        if (!target.first) total = V::add(total, V::load_first(sum + d, dims));
        if (target.last) {
          V::store_first(result + d, total, dims);
        } else {
          V::store_first(sum + d, total, dims);
        }
      }
    }
  });
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_KEY_CHUNKS_INL_H_
