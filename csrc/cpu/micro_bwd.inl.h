// The product that only the backward passes need, a sum over query rows (dK and dV):
//
//   add_outer        C[j][d] += sum_i A^T[j][i] * X[i][d]       broadcast A^T x vector X
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

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_MICRO_BWD_INL_H_
