// Norms of keys, to be kept beside a cache: the largest of each 16 positions.
//
// A unit of work is one (batch item, key head). It walks its keys in the order of memory and raises
// the norm of the block that each stands in. prune.h reads the norms and allows for the rounding of
// these sums (enlarged_kept_norm), so nothing is rounded up here.
#ifndef ALIBI_CPU_KEY_NORMS_INL_H_
#define ALIBI_CPU_KEY_NORMS_INL_H_

#include "../alibi_cache.h"
#include "parallel.h"
#include "prune.h"
#include "tile_io.inl.h"

namespace alibi::cpu {
namespace {

// The norms [blocks] of one head, raised.
template <class V>
void raise_norms(const void* context, int64_t head, float*) {
  const auto& a = *static_cast<const AlibiKeyNormsArgs*>(context);
  const int64_t b = head / a.heads_kv;
  const int dim = static_cast<int>(a.head_dim);
  float* norms = a.norms + head * a.blocks;
  with_row(head_view(a.k, a.dtype, b, head % a.heads_kv), 0, [&](const auto* keys) {
    for (int64_t j = 0; j < a.len_k; ++j) {
      float& norm = norms[(a.start[b] + j) / kNormBlock];
      const float squares = squared_norm<V>(keys + j * a.k.stride_s, dim);
      const float length = squares >= 0.0f ? __builtin_sqrtf(squares) : __builtin_inff();
      norm = length > norm ? length : norm;
    }
  });
}

template <class V>
int32_t key_norms(const AlibiKeyNormsArgs& a, int threads) {
  const int64_t heads = a.len_k == 0 ? 0 : a.batch * a.heads_kv;
  const double flops = 2.0 * heads * a.len_k * a.head_dim;
  return run_items(heads, threads, flops, 0, &raise_norms<V>, &a);
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_KEY_NORMS_INL_H_
