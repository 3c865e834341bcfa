// The pieces of the first tile of keys that a tile of query rows visits. Without a mask all rows see
// all of its keys. Under a causal one the tile is the diagonal, and its keys form strips, each seen
// by fewer rows than the one before. Where half a vector takes half the time (tuning.h), a strip is as
// tall:
//
//              rows    0 .. 15     16 .. 31     32 .. 47
//   keys  0 ..  7    [ crossed  |   whole    |   whole  ]
//   keys  8 .. 15         [cro. |   whole    |   whole  ]
//   keys 16 .. 23               [  crossed   |   whole  ]
//   keys 24 .. 31                     [cro.  |   whole  ]
//   keys 32 .. 39                            [ crossed  ]
//   keys 40 .. 47                                 [cro. ]
//
// and else a strip has the keys of two of these. (Strips of halves begin with row 0; tiles whose
// first keys lie outside a span have whole ones.) Each step, S^T, P^T and O^T += V P^T, is done for
// the row vectors of a strip side by side, and for a half by itself.
//
// The accumulators of O^T, kKeys head dims of all row vectors, stay in registers over all strips and
// are stored once, so nobody has to clear O^T before; halves are added to it.
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

// N registers of T side by side.
template <class T, int N>
struct Part {
  using Vec = T;
  static constexpr int kCount = N;
};

// Calls f(Part, lane, begin, end) for the keys [begin, end) of each strip and the rows from `lane`
// on that see them. Step: V, or V::Narrow, for which a masked tile begins with the key of row 0.
template <class V, class Step, class F>
ALIBI_INLINE void for_parts(const RowTile& rows, const KeyTile& tile, bool masked, F&& f) {
  if constexpr (Step::kWidth == V::kWidth) {
    for_strips<V>(rows, tile, masked, [&](auto n, int first, int begin, int end) {
      f(Part<V, decltype(n)::value>(), first * V::kWidth, begin, end);
    });
  } else {
    for (int begin = 0; begin < tile.count; begin += Step::kWidth) {
      const int end = min_int(begin + Step::kWidth, tile.count);
      const int lane = round_up(begin, V::kWidth), first = lane / V::kWidth;
      if (lane != begin) f(Part<Step, 1>(), begin, begin, end);
      if (first == rows.vecs) continue;
      with_count<V::kRowVecs>(rows.vecs - first,
                              [&](auto n) { f(Part<V, decltype(n)::value>(), lane, begin, end); });
    }
  }
}

// S^T of a tile, and row_max raised to its maximum. Where no part is, nothing is written.
template <class V, class Step>
void first_scores(const AlibiProblem& p, const RowTile& rows, const KeyTile& tile,
                  const KeyRows<V>& keys, const Lane<V>* q_t, float* ramp, float* row_max,
                  float* s_t) {
  if constexpr (Step::kWidth == V::kWidth) {
    raw_scores<V>(p, rows, tile, keys, q_t, ramp, row_max, s_t);
  } else {
    static_assert(Step::kWidth == V::kKeys && Step::kWidth == Step::kKeys, "a strip is one group");
    for_parts<V, Step>(rows, tile, true, [&](auto part, int lane, int begin, int) {
      using P = decltype(part);
      raw_diagonal_group<typename P::Vec, P::kCount>(
          keys, begin, static_cast<int>(p.head_dim), tile.count - begin, rows, lane,
          static_cast<float>(-begin), true, p.scale * kLog2E, q_t + lane, row_max + lane,
          s_t + lane);
    });
  }
}

// begin[s]: where strip s begins, in lanes of keys.
template <class V, class Step, int N, int strip = 0>
ALIBI_INLINE void sum_strips(const Lane<V>* p_t, const Lane<V>* values, int64_t stride,
                             const int* begin, Acc<V, N>& acc) {
  constexpr int first = round_up(strip * Step::kWidth, V::kWidth) / V::kWidth;
  if constexpr (first < N) {
    sum_products<V, N, first>(p_t, values, stride, begin[strip], begin[strip + 1], acc);
    sum_strips<V, Step, N, strip + 1>(p_t, values, stride, begin, acc);
  }
}

// out_t = (or += ) the products of the strips. Is it finite?
template <class V, class Step, int N, bool add>
bool store_strips(const Lane<V>* p_t, const ValueRows<V>& values, const int* begin, int dim,
                  float* out_t) {
  typename V::Reg sum[N];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) sum[v] = V::zero();
  for (int d0 = 0; d0 < dim; d0 += V::kKeys) {
    Acc<V, N> acc;
    clear<V, N>(acc);
    sum_strips<V, Step, N>(p_t, values.data + d0, values.stride, begin, acc);
#pragma GCC unroll 8
    for (int d = 0; d < V::kKeys; ++d) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        float* out = out_t + (d0 + d) * kRows<V> + v * V::kWidth;
        if (add) acc[d][v] = V::add(V::load(out), acc[d][v]);
        V::store(out, acc[d][v]);
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
template <class V, class Step>
bool first_products(const RowTile& rows, const KeyTile& tile, bool masked, const Lane<V>* p_t,
                    const ValueRows<V>& values, int dim, float* out_t) {
  int begin[Step::kRowVecs + 1] = {0};
  for (int s = 1; s <= Step::kRowVecs; ++s) {
    begin[s] = lanes_of<V>(masked ? strip_begin<Step>(rows, tile, s) : tile.count);
  }
  bool finite = true;
  with_count<V::kRowVecs>(rows.vecs, [&](auto n) {
    finite = store_strips<V, Step, decltype(n)::value, false>(p_t, values, begin, dim, out_t);
  });
  if constexpr (Step::kWidth < V::kWidth) {
    for (int lane = Step::kWidth; lane < rows.rows; lane += V::kWidth) {
      finite &= store_strips<Step, Step, 1, true>(p_t + lane, values, begin + lane / Step::kWidth,
                                                  dim, out_t + lane);
    }
  }
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
