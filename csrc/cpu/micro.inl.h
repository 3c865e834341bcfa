// Register-blocked products. Query rows live in the vector lanes, which makes everything else in
// the kernels lane-wise:
//
//   dot_keys         S^T[key][row] += sum_d K[key][d] * Q^T[d][row]      broadcast K x vector Q^T
//   add_products     O^T[d][row]   += sum_j V[j][d]   * P^T[j][row]      broadcast V x vector P^T
//
// K and V are read row-major as they are: nothing is packed (but the pairs of keys of bfloat16
// values), so strides and grouped heads cost nothing. The row max, the row sum, the mask and the
// rescaling need no horizontal operation. A micro-kernel keeps kKeys x N accumulators in registers
// (N row vectors, N <= kRowVecs); per step it loads N vectors, broadcasts kKeys lanes and issues
// kKeys * N multiply-adds. One step takes kTerms terms of the sum (operands.inl.h).
#ifndef ALIBI_CPU_MICRO_INL_H_
#define ALIBI_CPU_MICRO_INL_H_

#include <stdint.h>

#include "dtype.h"
#include "operands.inl.h"

namespace alibi::cpu {
namespace {

// Query rows of a tile, and the distance (in floats or lanes) between the rows of every transposed
// tile: Q^T, S^T, P^T, O^T.
template <class V>
constexpr int kRows = V::kRowVecs * V::kWidth;

// Keys of a tile. P^T then takes 36 KB with AVX-512, and the accumulators of add_products live in
// registers for 192 keys. Longer tiles make pruning coarse.
constexpr int kTileKeys = 192;

// Whether a product asks for what it reads next: hardware follows a row of a head to its end, where
// the rows beside it have been read already, and stops at the end of a page.
enum Ahead { kAsIs, kFetchAhead };
constexpr int kValuesAhead = 8;  // rows of lanes; of keys, the next group
constexpr int kLineLanes = 16;

template <class V, int N>
using Acc = typename V::Reg[V::kKeys][N];

// Step d of dot_keys, for K keys.
template <class V, int K, int N>
ALIBI_INLINE void dot_step(const Lane<V>* rows_t, const Element<V>* keys, int64_t stride, int d,
                           typename V::Reg (&acc)[K][N]) {
  using O = Operands<V>;
  typename V::Reg row[N];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) row[v] = O::load(rows_t + d * kRows<V> + v * V::kWidth);
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) {
    const typename V::Reg key = O::broadcast(keys + k * stride + d * kTerms<V>);
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) acc[k][v] = O::mac(key, row[v], acc[k][v]);
  }
}

// acc[k][v] += sum_d keys[k * stride + d] * rows_t[d][v], for kKeys keys. The keys are readable, and
// 0 or met by a 0, up to whole lanes.
template <class V, int N, Ahead ahead = kAsIs>
ALIBI_INLINE void dot_keys(const Lane<V>* __restrict rows_t, const Element<V>* __restrict keys,
                           int64_t stride, int dim, Acc<V, N>& acc) {
  const int steps = lanes_of<V>(dim);
#pragma GCC unroll 2
  for (int d = 0; d < steps; ++d) {
    if (ahead == kFetchAhead && d % kLineLanes == 0) {
#pragma GCC unroll 8
      for (int k = V::kKeys; k < 2 * V::kKeys; ++k) {
        __builtin_prefetch(keys + k * stride + d * kTerms<V>);
      }
    }
    dot_step<V>(rows_t, keys, stride, d, acc);
  }
}

// The same for K keys, in kPieces pieces, behind each of which beside(piece) is called: what it does
// has nothing to do with these products, so that a CPU that looks ahead executes both at once.
template <class V, int kPieces, Ahead ahead, int K, int N, class F>
ALIBI_INLINE void dot_keys_beside(const Lane<V>* __restrict rows_t,
                                  const Element<V>* __restrict keys, int64_t stride, int dim,
                                  typename V::Reg (&acc)[K][N], F&& beside) {
  const int steps = lanes_of<V>(dim);
  int d = 0;
#pragma GCC unroll 16
  for (int piece = 0; piece < kPieces; ++piece) {
#pragma GCC unroll 8
    for (int k = K * piece / kPieces; ahead == kFetchAhead && k < K * (piece + 1) / kPieces; ++k) {
      for (int lane = 0; lane < steps; lane += kLineLanes) {
        __builtin_prefetch(keys + (k + V::kKeys) * stride + lane * kTerms<V>);
      }
    }
    const int end = steps * (piece + 1) / kPieces;
#pragma GCC unroll 1
    for (; d < end; ++d) dot_step<V>(rows_t, keys, stride, d, acc);
    beside(piece);
  }
}

template <class V, int N>
ALIBI_INLINE void clear(Acc<V, N>& acc) {
#pragma GCC unroll 8
  for (int k = 0; k < V::kKeys; ++k) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) acc[k][v] = V::zero();
  }
}

// acc[d][v] += sum_{begin <= j < end} values[j * stride + d] * p_t[j][v] for lanes j of keys, kKeys
// head dims and the row vectors from `first` on.
template <class V, int N, int first = 0, Ahead ahead = kAsIs>
ALIBI_INLINE void sum_products(const Lane<V>* __restrict p_t, const Lane<V>* __restrict values,
                               int64_t stride, int begin, int end, Acc<V, N>& acc) {
  using O = Operands<V>;
  const Lane<V>* value = values + begin * stride;
#pragma GCC unroll 2
  for (int j = begin; j < end; ++j, value += stride) {
    if (ahead == kFetchAhead) __builtin_prefetch(value + kValuesAhead * stride);
    typename V::Reg p[N];
#pragma GCC unroll 8
    for (int v = first; v < N; ++v) p[v] = O::load(p_t + j * kRows<V> + v * V::kWidth);
#pragma GCC unroll 8
    for (int d = 0; d < V::kKeys; ++d) {
      const typename V::Reg x = O::broadcast(value + d);
#pragma GCC unroll 8
      for (int v = first; v < N; ++v) acc[d][v] = O::mac(x, p[v], acc[d][v]);
    }
  }
}

// out_t[d][rows] += sum_{j < n} values[j * stride + d] * p_t[j][rows] for n lanes of keys and d <
// dim rounded up to kKeys: `values` has to be readable up to there. The sum over the tile is formed
// by itself and then added: a long sum made of short ones keeps its digits.
template <class V, int N, Ahead ahead = kAsIs>
void add_products(const Lane<V>* __restrict p_t, const Lane<V>* __restrict values, int64_t stride,
                  int n, int dim, float* __restrict out_t) {
  for (int d0 = 0; d0 < dim; d0 += V::kKeys) {
    Acc<V, N> acc;
    clear<V, N>(acc);
    sum_products<V, N, 0, ahead>(p_t, values + d0, stride, 0, n, acc);
#pragma GCC unroll 8
    for (int d = 0; d < V::kKeys; ++d) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        float* out = out_t + (d0 + d) * kRows<V> + v * V::kWidth;
        V::store(out, V::add(V::load(out), acc[d][v]));
      }
    }
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls f(Count<n>()) for 1 <= n <= Max: turns a run-time number of row vectors into a template
// argument.
template <int Max, class F>
ALIBI_INLINE void with_count(int n, F&& f) {
  if constexpr (Max > 1) {
    if (n < Max) return with_count<Max - 1>(n, f);
  }
  f(Count<Max>());
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_MICRO_INL_H_
