// Scores of a tile of keys against a tile of rows, S^T in log2 units: the pieces that both
// operations share.
#ifndef ALIBI_CPU_SCORES_INL_H_
#define ALIBI_CPU_SCORES_INL_H_

#include <stdint.h>

#include "exp.inl.h"
#include "geometry.h"
#include "micro.inl.h"
#include "tile_io.inl.h"

namespace alibi::cpu {
namespace {

// bias(i, anchor) = gradient * (anchor - p_i) for rows at these positions relative to pos0.
template <class V>
ALIBI_INLINE typename V::Reg anchor_bias(const TileBias& bias, typename V::Reg row) {
  return V::mul(V::set1(bias.gradient), V::sub(V::set1(bias.row_offset), row));
}
template <class V>
ALIBI_INLINE typename V::Reg anchor_bias(const TileBias& bias, int lane) {
  return anchor_bias<V>(bias, V::add(V::iota(), V::set1(static_cast<float>(lane))));
}

// Accumulators that start from one number per key, or from one register per row vector.
template <class V, int K, int N>
ALIBI_INLINE void start_from_keys(const float* x, typename V::Reg (&acc)[K][N]) {
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) {
    const typename V::Reg start = V::set1(x[k]);
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) acc[k][v] = start;
  }
}
template <class V, int K, int N>
ALIBI_INLINE void start_from_rows(const float* x, typename V::Reg (&acc)[K][N]) {
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    const typename V::Reg start = V::load(x + v * V::kWidth);
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) acc[k][v] = start;
  }
}

// acc = ramp + K Q^T for the keys [k0, k0 + kKeys) of a tile; Operands<V>::score makes it a score.
template <class V, int N, Ahead ahead = kAsIs>
ALIBI_INLINE void score_group(const Lane<V>* q_t, const KeyRows<V>& keys, int k0, int dim,
                              const float* ramp, Acc<V, N>& acc) {
  start_from_keys<V>(ramp + k0, acc);
  dot_keys<V, N, ahead>(q_t, keys.data + k0 * keys.stride, keys.stride, dim, acc);
}

// P^T = 2^(S^T + off) for a tile off the diagonal, and its row sums, in units of kWeightUnit.
//
// Scores become weights while they are in registers. Where there are enough of those, a group of keys
// is two parts: beside the products of one, the scores of the one before become weights, a register
// of lanes at a time.
template <class V, int N>
class TileWeights {
  using Reg = typename V::Reg;
  static constexpr int kPart = V::kKeys / V::kParts;
  static constexpr int kBatch = V::kParts > 1 ? 1 : N;  // row vectors of a piece
  static constexpr int kPieces = kPart / kTerms<V> * (N / kBatch);
  using Scores = Reg[kPart][N];

 public:
  // scale2 and off: operands of Operands<V>::score.
  TileWeights(const Lane<V>* q_t, const KeyRows<V>& keys, int dim, float scale2, const float* ramp,
              const Reg (&off)[N], Lane<V>* p_t)
      : q_t_(q_t),
        keys_(keys),
        dim_(dim),
        scale2_(V::set1(scale2)),
        ramp_(ramp),
        off_(off),
        p_t_(p_t) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) sum_[v] = V::zero();
  }

  ALIBI_INLINE void run(int count, RowFetch& fetch) {
    Scores x, y;
    fetch.step();
    score(0, x, [](int) {});
    for (int k0 = 0;; k0 += V::kKeys) {
      if constexpr (V::kParts > 1) {
        score(k0 + kPart, y, [&](int piece) { weigh(k0, piece, x); });
      } else {
        weigh_all(k0, x);
      }
      const bool last = k0 + V::kKeys >= count;
      if (last) {
        if constexpr (V::kParts > 1) weigh_all(k0 + kPart, y);
        return;
      }
      fetch.step();
      score(k0 + V::kKeys, x, [&](int piece) {
        if constexpr (V::kParts > 1) weigh(k0 + kPart, piece, y);
      });
    }
  }

  Reg sum(int v) const { return sum_[v]; }

 private:
  template <class F>
  ALIBI_INLINE void score(int k0, Scores& acc, F&& beside) const {
    start_from_keys<V>(ramp_ + k0, acc);
    const Element<V>* rows = keys_.data + k0 * keys_.stride;
    if constexpr (V::kParts > 1) {
      dot_keys_beside<V, kPieces, kFetchAhead>(q_t_, rows, keys_.stride, dim_, acc, beside);
    } else {
      dot_keys<V, N, kFetchAhead>(q_t_, rows, keys_.stride, dim_, acc);
    }
  }

  ALIBI_INLINE void weigh(int k0, int piece, const Scores& acc) {
    const int k = piece / (N / kBatch) * kTerms<V>, first = piece % (N / kBatch) * kBatch;
    Reg p[kTerms<V>][kBatch];
#pragma GCC unroll 2
    for (int t = 0; t < kTerms<V>; ++t) {
#pragma GCC unroll 8
      for (int v = 0; v < kBatch; ++v) {
        p[t][v] = Operands<V>::score(acc[k + t][first + v], scale2_, off_[first + v]);
      }
      weigh_each<V>(p[t]);
#pragma GCC unroll 8
      for (int v = 0; v < kBatch; ++v) sum_[first + v] = V::add(sum_[first + v], p[t][v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kBatch; ++v) {
      Reg terms[kTerms<V>];
#pragma GCC unroll 2
      for (int t = 0; t < kTerms<V>; ++t) terms[t] = p[t][v];
      Operands<V>::store(p_t_ + (k0 + k) / kTerms<V> * kRows<V> + (first + v) * V::kWidth, terms);
    }
  }
  ALIBI_INLINE void weigh_all(int k0, const Scores& acc) {
#pragma GCC unroll 16
    for (int piece = 0; piece < kPieces; ++piece) weigh(k0, piece, acc);
  }

  const Lane<V>* q_t_;
  const KeyRows<V>& keys_;
  const int dim_;
  const Reg scale2_;
  const float* ramp_;
  const Reg (&off_)[N];
  Lane<V>* p_t_;
  Reg sum_[N];
};

// l: the row sums; rows of `fetch` come meanwhile.
template <class V, int N>
void weigh_tile(const Lane<V>* q_t, const KeyRows<V>& keys, int count, int dim, float scale2,
                const float* ramp, const typename V::Reg (&off)[N], typename V::Reg (&l)[N],
                Lane<V>* p_t, RowFetch& fetch) {
  TileWeights<V, N> weights(q_t, keys, dim, scale2, ramp, off, p_t);
  weights.run(count, fetch);
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) l[v] = weights.sum(v);
}

// largest[v] = max over the keys of the tile of ramp + K Q^T as a score; NaN is passed over.
template <class V, int N>
void max_scores(const Lane<V>* q_t, const KeyRows<V>& keys, int count, int dim, float scale2,
                const float* ramp, typename V::Reg (&largest)[N]) {
  const typename V::Reg factor = V::set1(scale2);
  for (int v = 0; v < N; ++v) largest[v] = V::set1(-__builtin_inff());
  for (int k0 = 0; k0 < count; k0 += V::kKeys) {
    Acc<V, N> acc;
    score_group<V, N>(q_t, keys, k0, dim, ramp, acc);
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; ++k) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v)
        largest[v] = V::max(Operands<V>::score(acc[k][v], factor), largest[v]);
    }
  }
}

// Stores S^T of the first `valid` of the keys [k0, k0 + kKeys) of a tile off the diagonal and
// raises row_max to their maximum.
template <class V, int N>
void raw_group(const KeyRows<V>& keys, int k0, int dim, int valid, const RowTile& rows,
               const TileBias& bias, float scale2, const float* ramp, const Lane<V>* q_t,
               float* row_max, float* s_t) {
  Acc<V, N> acc;
  score_group<V, N>(q_t, keys, k0, dim, ramp, acc);
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    const typename V::Reg base = anchor_bias<V>(bias, row_positions<V>(rows, v * V::kWidth));
    typename V::Reg largest = V::load(row_max + v * V::kWidth);
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; ++k) {
      const typename V::Reg s = Operands<V>::score(acc[k][v], V::set1(scale2), base);
      largest = V::max(s, largest);
      if (k < valid) V::store(s_t + (k0 + k) * kRows<V> + v * V::kWidth, s);
    }
    V::store(row_max + v * V::kWidth, largest);
  }
}

// The same on the diagonal, where the bias is -slope2 * |p_i - j| pair by pair, for the rows from
// `lane` on. `ahead` is pos0 minus the position of key k0. Causal: rows before a key get -inf,
// whatever the key holds.
template <class V, int N>
void raw_diagonal_group(const KeyRows<V>& keys, int k0, int dim, int valid, const RowTile& rows,
                        int lane, float ahead, bool causal, float scale2, const Lane<V>* q_t,
                        float* row_max, float* s_t) {
  const typename V::Reg slope = V::set1(-rows.slope2 * Operands<V>::ramp_factor(scale2));
  const typename V::Reg none = V::set1(-__builtin_inff());
  typename V::Reg row[N];
  Acc<V, N> acc;
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    row[v] = V::add(row_positions<V>(rows, lane + v * V::kWidth), V::set1(ahead));
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; ++k) {
      const typename V::Reg distance = V::sub(row[v], V::set1(static_cast<float>(k)));
      acc[k][v] = V::mul(slope, V::abs(distance));
    }
  }
  dot_keys<V, N>(q_t, keys.data + k0 * keys.stride, keys.stride, dim, acc);
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    typename V::Reg largest = V::load(row_max + v * V::kWidth);
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; ++k) {
      const typename V::Reg score = Operands<V>::score(acc[k][v], V::set1(scale2));
      typename V::Reg s = k < valid ? score : none;
      if (causal) s = V::select(V::lt(row[v], V::set1(static_cast<float>(k))), none, s);
      largest = V::max(s, largest);
      if (k < valid) V::store(s_t + (k0 + k) * kRows<V> + v * V::kWidth, s);
    }
    V::store(row_max + v * V::kWidth, largest);
  }
}

// S^T of a whole tile, and row_max raised to its maximum. On a causal diagonal the vectors of rows
// that lie wholly before a group of keys are left out: their part of S^T is not written.
template <class V>
void raw_scores(const AlibiProblem& p, const RowTile& rows, const KeyTile& tile,
                const KeyRows<V>& keys, const Lane<V>* q_t, float* ramp, float* row_max,
                float* s_t) {
  const int dim = static_cast<int>(p.head_dim);
  const float scale2 = p.scale * kLog2E;
  const TileBias bias = tile_bias(rows, tile);
  if (!tile.diagonal) fill_ramp<V>(bias, tile.count, Operands<V>::ramp_factor(scale2), ramp);
  const int ahead = tile.diagonal ? static_cast<int>(rows.pos0 - tile.begin) : 0;
  for (int k0 = 0; k0 < tile.count; k0 += V::kKeys) {
    const bool causal = tile.diagonal && p.causal != 0;
    const int first = causal ? (k0 - ahead) / V::kWidth : 0;  // first row vector that sees key k0
    const int lane = first * V::kWidth;
    with_count<V::kRowVecs>(rows.vecs - first, [&](auto n) {
      constexpr int N = decltype(n)::value;
      if (tile.diagonal) {
        raw_diagonal_group<V, N>(keys, k0, dim, tile.count - k0, rows, lane,
                                 static_cast<float>(ahead - k0), causal, scale2, q_t + lane,
                                 row_max + lane, s_t + lane);
      } else {
        raw_group<V, N>(keys, k0, dim, tile.count - k0, rows, bias, scale2, ramp, q_t, row_max,
                        s_t);
      }
    });
  }
}

// Where the keys of a causal diagonal begin that only the row vectors from v on see. That is a whole
// lane: a key before it is left to the preceding strip, where the mask has made its weight for this
// row vector 0.
template <class V>
ALIBI_INLINE int strip_begin(const RowTile& rows, const KeyTile& tile, int v) {
  const int ahead = static_cast<int>(rows.pos0 - tile.begin);
  const int key = ahead + (ahead & (kTerms<V> - 1)) + v * V::kWidth;
  return key > 0 ? min_int(key, tile.count) : 0;
}

// Splits a tile into strips of keys that the same row vectors see, and calls f(Count<N>, first row
// vector, begin, end) with keys [begin, end) of the tile. `masked` (causal diagonal): one strip per
// row vector; otherwise one strip.
template <class V, class F>
ALIBI_INLINE void for_strips(const RowTile& rows, const KeyTile& tile, bool masked, F&& f) {
  if (!masked) {
    return with_count<V::kRowVecs>(rows.vecs, [&](auto n) { f(n, 0, 0, tile.count); });
  }
  for (int first = 0; first < rows.vecs; ++first) {
    const int begin = strip_begin<V>(rows, tile, first);
    const int end = strip_begin<V>(rows, tile, first + 1);
    if (begin >= end) continue;
    with_count<V::kRowVecs>(rows.vecs - first, [&](auto n) { f(n, first, begin, end); });
  }
}

// P^T = 2^(S^T - row_max) for n keys, and its sums are added to row_sum. P^T may begin where S^T
// does or before.
template <class V, int N>
void exponentiate(const float* s_t, int n, const float* row_max, float* row_sum, Lane<V>* p_t) {
  typename V::Reg m[N], l[N];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    m[v] = V::load(row_max + v * V::kWidth);
    l[v] = V::zero();
  }
  for (int k = 0; k < n; k += kTerms<V>, s_t += kTerms<V> * kRows<V>, p_t += kRows<V>) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      typename V::Reg p[kTerms<V>];
#pragma GCC unroll 2
      for (int t = 0; t < kTerms<V>; ++t) {
        p[t] = V::zero();
        if (k + t >= n) continue;
        typename V::Reg one[1] = {V::sub(V::load(s_t + t * kRows<V> + v * V::kWidth), m[v])};
        weigh_each<V>(one);
        p[t] = one[0];
        l[v] = V::add(l[v], p[t]);
      }
      Operands<V>::store(p_t + v * V::kWidth, p);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    float* sum = row_sum + v * V::kWidth;
    V::store(sum, V::add(V::load(sum), l[v]));
  }
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_SCORES_INL_H_
