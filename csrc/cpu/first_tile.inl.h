// O^T = V P^T of the first tile of keys that a tile of query rows visits.
//
// Without a mask all rows see all of its keys. Under a causal one the tile is the diagonal, and its
// keys form strips, each seen by one row vector less than the one before:
//
//              rows    0 .. 15     16 .. 31     32 .. 47
//   keys  0 .. 15    [ crossed  |   whole    |   whole  ]
//   keys 16 .. 31               [  crossed   |   whole  ]
//   keys 32 .. 47                            [ crossed  ]
//
// The accumulators of kKeys head dims and of all row vectors stay in registers over all strips and
// are stored once, so nobody has to clear O^T before.
//
// In a crossed block the weights that the mask hides are 0, but 0 * inf and 0 * NaN are NaN, and a
// value that is not finite must not reach a row that may not see it. Such a value leaves a sum that
// is not finite; only then are the products formed anew, one by one and without the hidden ones.
#ifndef ALIBI_CPU_FIRST_TILE_INL_H_
#define ALIBI_CPU_FIRST_TILE_INL_H_

#include <stdint.h>
#include <string.h>

#include "geometry.h"
#include "micro.inl.h"
#include "scores.inl.h"
#include "tile_io.inl.h"

namespace alibi::cpu {
namespace {

// Where strips begin, in lanes of keys, and where the last one ends.
template <class V>
using Strips = int[V::kRowVecs + 1];

template <class V, int N, int first = 0>
ALIBI_INLINE void sum_strips(const Lane<V>* p_t, const Lane<V>* values, int64_t stride,
                             const Strips<V>& begin, Acc<V, N>& acc) {
  if constexpr (first < N) {
    sum_products<V, N, first>(p_t, values, stride, begin[first], begin[first + 1], acc);
    sum_strips<V, N, first + 1>(p_t, values, stride, begin, acc);
  }
}

// out_t = the products of all strips. Is it finite?
template <class V, int N>
bool store_strips(const Lane<V>* p_t, const ValueRows<V>& values, const Strips<V>& begin, int dim,
                  float* out_t) {
  typename V::Reg sum[N];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) sum[v] = V::zero();
  for (int d0 = 0; d0 < dim; d0 += V::kKeys) {
    Acc<V, N> acc;
    clear<V, N>(acc);
    sum_strips<V, N>(p_t, values.data + d0, values.stride, begin, acc);
#pragma GCC unroll 8
    for (int d = 0; d < V::kKeys; ++d) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        V::store(out_t + (d0 + d) * kRows<V> + v * V::kWidth, acc[d][v]);
        sum[v] = V::add(sum[v], V::sub(acc[d][v], acc[d][v]));  // inf - inf is NaN
      }
    }
  }
  bool finite = true;
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) finite &= V::all(V::eq(sum[v], V::zero()));
  return finite;
}

// out_t = V P^T of a tile. Is it finite?
template <class V>
bool first_products(const RowTile& rows, const KeyTile& tile, bool masked, const Lane<V>* p_t,
                    const ValueRows<V>& values, int dim, float* out_t) {
  Strips<V> begin;
  for (int& lane : begin) lane = lanes_of<V>(tile.count);
  begin[0] = 0;
  for_strips<V>(rows, tile, masked,
                [&](auto, int first, int, int end) { begin[first + 1] = lanes_of<V>(end); });
  bool finite = true;
  with_count<V::kRowVecs>(rows.vecs, [&](auto n) {
    finite = store_strips<V, decltype(n)::value>(p_t, values, begin, dim, out_t);
  });
  return finite;
}

// Adds the products of n keys of a strip, but not those that the mask hides. `ahead` is the position
// of row 0 minus that of key 0.
template <class V, int N>
void add_products_below_diagonal(const Lane<V>* p_t, const Lane<V>* values, int64_t stride, int n,
                                 int dim, float ahead, float* out_t) {
  using O = Operands<V>;
  for (int j = 0; j < n; ++j) {
    for (int v = 0; v < N; ++v) {
      const int lane = v * V::kWidth;
      const typename V::Reg row = V::add(V::iota(), V::set1(ahead + static_cast<float>(lane)));
      const typename V::Mask hidden = V::lt(row, V::set1(static_cast<float>(j)));
      const int row_of_lanes = j / kTerms<V>, term = j % kTerms<V>;
      const typename V::Reg p = O::term(O::load(p_t + row_of_lanes * kRows<V> + lane), term);
      for (int d = 0; d < dim; ++d) {
        float* out = out_t + d * kRows<V> + lane;
        const typename V::Reg old = V::load(out);
        const float value = O::term(values + row_of_lanes * stride + d, term);
        V::store(out, V::select(hidden, old, V::fma(V::set1(value), p, old)));
      }
    }
  }
}

// out_t = V P^T of a causal diagonal whose values are not all finite.
template <class V>
void products_below_diagonal(const RowTile& rows, const KeyTile& tile, const Lane<V>* p_t,
                             const ValueRows<V>& values, int dim, float* out_t) {
  memset(out_t, 0, sizeof(float) * transposed_scratch<V>(dim));
  for_strips<V>(rows, tile, true, [&](auto count, int first, int begin, int end) {
    const int lane = first * V::kWidth;
    add_products_below_diagonal<V, decltype(count)::value>(
        p_t + begin / kTerms<V> * kRows<V> + lane, values.data + begin / kTerms<V> * values.stride,
        values.stride, end - begin, dim, static_cast<float>(rows.pos0 + lane - tile.begin - begin),
        out_t + lane);
  });
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_FIRST_TILE_INL_H_
