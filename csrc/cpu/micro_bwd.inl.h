// The product that only the backward passes need, a sum over query rows (dK and dV), and the sums
// for the gradient of a slope:
//
//   add_outer        C[j][d] += sum_i A^T[j][i] * X[i][d]       broadcast A^T x vector X
//   add_distances    sum_ij dS^T[j][i] (j - p_i)                from registers
//
// A^T is P^T or dS^T as it lies, X is dOut or Q row by row (lanes of kTerms rows): nothing is
// transposed for it. The same shape of micro-kernel as in micro.inl.h: kKeys x N accumulators in
// registers, kKeys * N multiply-adds per step.
#ifndef ALIBI_CPU_MICRO_BWD_INL_H_
#define ALIBI_CPU_MICRO_BWD_INL_H_

#include <stdint.h>

#include "dtype.h"
#include "micro.inl.h"
#include "tile_io.inl.h"

namespace alibi::cpu {
namespace {

// One block of kCount rows and N vectors of C. The accumulators start from zero and meet C at the
// end: a long sum is then a sum of short ones, which keeps its rounding error small.
template <class V, int kCount, int N>
ALIBI_INLINE void add_outer_block(const Element<V>* __restrict a_t, const Lane<V>* __restrict x,
                                  int64_t x_stride, int rows, float* __restrict c,
                                  int64_t c_stride) {
  using O = Operands<V>;
  typename V::Reg acc[kCount][N];
#pragma GCC unroll 8
  for (int j = 0; j < kCount; ++j) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) acc[j][v] = V::zero();
  }
#pragma GCC unroll 2
  for (int i = 0; i < rows; ++i, x += x_stride) {
    typename V::Reg row[N];
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) row[v] = O::load(x + v * V::kWidth);
#pragma GCC unroll 8
    for (int j = 0; j < kCount; ++j) {
      const typename V::Reg factor = O::broadcast(a_t + j * kRows<V> + i * kTerms<V>);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) acc[j][v] = O::mac(factor, row[v], acc[j][v]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kCount; ++j) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      float* sum = c + j * c_stride + v * V::kWidth;
      V::store(sum, V::add(V::load(sum), acc[j][v]));
    }
  }
}

// C[j][0..dim) += sum_{i < rows} A^T[j][i] * X[i][0..dim) for j < n and `rows` lanes of rows; dim is
// a multiple of kWidth, the rows of A^T are kRows<V> elements apart.
template <class V>
void add_outer(const Element<V>* a_t, const Lane<V>* x, int64_t x_stride, int rows, int n, int dim,
               float* c, int64_t c_stride) {
  for (int d = 0, vectors; d < dim; d += vectors * V::kWidth) {
    // Four vectors are two and two: a single one does not hide the latency of the multiply-adds.
    const int left = (dim - d) / V::kWidth;
    vectors = left == 4 ? 2 : min_int(left, V::kRowVecs);
    with_count<V::kRowVecs>(vectors, [&](auto count) {
      constexpr int N = decltype(count)::value;
      int j = 0;
      for (; j + V::kKeys <= n; j += V::kKeys) {
        add_outer_block<V, V::kKeys, N>(a_t + j * kRows<V>, x + d, x_stride, rows,
                                        c + j * c_stride + d, c_stride);
      }
      for (; j < n; ++j) {
        add_outer_block<V, 1, N>(a_t + j * kRows<V>, x + d, x_stride, rows, c + j * c_stride + d,
                                 c_stride);
      }
    });
  }
}

// dS^T of the keys from number `keys` of a group on becomes 0: what pads the last group of a tile may
// be keys that no row of it may see.
template <class V, int N>
ALIBI_INLINE void clear_padding(int keys, Acc<V, N>& ds) {
  if (keys >= V::kKeys) return;
#pragma GCC unroll 8
  for (int k = 0; k < V::kKeys; ++k) {
    if (k < keys) continue;
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) ds[k][v] = V::zero();
  }
}

// total + sum dS_ij (j - p_i) of a group whose first key lies `ahead` positions before the first row.
// A sum of k dS_k is a sum of the sums of dS from key 1 on, from key 2 on, ...: additions alone, and
// those run beside the products.
template <class V, int K, int N>
ALIBI_INLINE typename V::Reg add_distances(const typename V::Reg (&ds)[K][N], float ahead,
                                           typename V::Reg total) {
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    const typename V::Reg row =
        V::add(V::iota(), V::set1(ahead + static_cast<float>(v * V::kWidth)));
    typename V::Reg sum = ds[K - 1][v], weighted = sum;
#pragma GCC unroll 8
    for (int k = K - 2; k > 0; --k) {
      sum = V::add(sum, ds[k][v]);
      weighted = V::add(weighted, sum);
    }
    total = V::add(total, V::fnma(V::add(sum, ds[0][v]), row, weighted));
  }
  return total;
}

// total + sum dS_ij |j - p_i|, likewise.
template <class V, int N>
ALIBI_INLINE typename V::Reg add_absolute_distances(const Acc<V, N>& ds, float ahead,
                                                    typename V::Reg total) {
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    const typename V::Reg row =
        V::add(V::iota(), V::set1(ahead + static_cast<float>(v * V::kWidth)));
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; ++k) {
      const typename V::Reg distance = V::abs(V::sub(row, V::set1(static_cast<float>(k))));
      total = V::fma(ds[k][v], distance, total);
    }
  }
  return total;
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_MICRO_BWD_INL_H_
