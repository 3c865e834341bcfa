// Forward pass of fused ALiBi attention, one tile of query rows at a time, key tiles visited
// outward from the diagonal.
//
//   s_ij  = scale * <q_i, k_j> + bias(p_i, j)      lse_i = log sum_j exp(s_ij)
//   out_i = sum_j exp(s_ij - lse_i) v_j
//
// Everything is transposed, because query rows live in the vector lanes (micro.inl.h), and in log2
// units: Q^T is multiplied by scale * log2(e) once, so that the softmax is 2^x (bfloat16 operands
// apply the factor to the sums instead: operands.inl.h). For each tile of keys:
//
//   S^T = ramp + K Q^T       the accumulators start from the bias of the keys: it costs nothing
//   P^T = 2^(S^T + off)      off_i = bias(i, anchor) - m_i; exp2 and the row sums run while the
//                            scores are in registers (geometry.h explains ramp and anchor)
//   O^T += V P^T             accumulators stay in registers for the whole tile
//
// The maximum is lazy. m_i is the true row maximum of the first tile visited, after which it is
// only a reference: weights and sums may grow to 2^24 above it without losing anything in float32.
// One comparison per tile finds the rows that outgrow it; then, and only then, the tile's true
// maximum is taken, what has been summed is rescaled, and the tile is computed again. With ordinary
// inputs and positive slopes the diagonal is near the maximum and nothing is ever computed twice.
//
// Only the diagonal tile has a mask. A vector of rows that lies wholly above the diagonal is left
// out of its products.
//
// Non-finite numbers: a NaN or +inf score makes its row's out and lse NaN, a score of -inf is a
// weight of 0; the sum over v follows IEEE rules for every allowed key that is visited.
// Keys that are not allowed may hold anything.
#ifndef ALIBI_CPU_ATTENTION_FWD_INL_H_
#define ALIBI_CPU_ATTENTION_FWD_INL_H_

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "decode.inl.h"
#include "exp.inl.h"
#include "geometry.h"
#include "micro.inl.h"
#include "parallel.h"
#include "prune.h"
#include "scores.inl.h"
#include "tile_io.inl.h"
#include "work.h"

namespace alibi::cpu {
namespace {

constexpr float kLazyLimit = 0x1p24f;

// The scratch of one thread, cut from one block of floats.
template <class V>
struct FwdScratch {
  Lane<V>* q_t;      // [lanes of dim][kRows]
  float* o_t;        // [dim][kRows]
  float* s_t;        // [kTileKeys][kRows]: scores of the first tile
  Lane<V>* p_t;      // [lanes of kTileKeys][kRows], where s_t is
  Element<V>* keys;  // copies of tiles that cannot be read in place
  Lane<V>* values;
  float* ramp;               // [kRampFloats]
  float *row_max, *row_sum;  // [kRows]: m_i and l_i
  float* q_norm;             // [kRows]
  int64_t floats;

  FwdScratch(float* base, int dim) {
    Carver carve{base, 0};
    q_t = carve.take<Lane<V>>(transposed_scratch<V>(lanes_of<V>(dim)));
    o_t = carve.take(transposed_scratch<V>(dim));
    s_t = carve.take(kTileKeys * kRows<V>);
    p_t = reinterpret_cast<Lane<V>*>(s_t);
    keys = carve.take<Element<V>>(row_scratch<V>(kTileKeys, dim));
    values = carve.take<Lane<V>>(row_scratch<V>(lanes_of<V>(kTileKeys), dim));
    ramp = carve.take(kRampFloats);
    row_max = carve.take(kRows<V>);
    row_sum = carve.take(kRows<V>);
    q_norm = carve.take(kRows<V>);
    floats = carve.used;
  }
};

// Everything that stays the same for the rows of one tile.
template <class V>
struct FwdTile {
  const AlibiProblem& problem;
  const RowTile& rows;
  HeadView k, v;
  const FwdScratch<V>& w;
  int dim() const { return static_cast<int>(problem.head_dim); }
  float scale2() const { return problem.scale * kLog2E; }
};

// Takes in the first tile visited: exact maximum first, then weights.
template <class V>
void absorb_first(const FwdTile<V>& t, const KeyTile& tile) {
  const FwdScratch<V>& w = t.w;
  const KeyRows<V> keys = load_keys<V>(t.k, tile.begin, tile.count, t.dim(), w.keys);
  raw_scores<V>(t.problem, t.rows, tile, keys, w.q_t, w.ramp, w.row_max, w.s_t);
  const ValueRows<V> values = load_values<V>(t.v, tile.begin, tile.count, t.dim(), w.values);
  const bool masked = tile.diagonal && t.problem.causal != 0;
  const bool exact = masked && !all_finite<V>(values, tile.count, t.dim());
  for_strips<V>(t.rows, tile, masked, [&](auto count, int first, int begin, int end) {
    constexpr int N = decltype(count)::value;
    const int lane = first * V::kWidth;
    Lane<V>* p = w.p_t + begin / kTerms<V> * kRows<V> + lane;
    const Lane<V>* v = values.data + begin / kTerms<V> * values.stride;
    exponentiate<V, N>(w.s_t + begin * kRows<V> + lane, end - begin, w.row_max + lane,
                       w.row_sum + lane, p);
    if (!exact) {
      add_products<V, N>(p, v, values.stride, lanes_of<V>(end - begin), t.dim(), w.o_t + lane);
    } else {
      const float offset = static_cast<float>(t.rows.pos0 + lane - tile.begin - begin);
      add_products_below_diagonal<V, N>(p, v, values.stride, end - begin, t.dim(), offset,
                                        w.o_t + lane);
    }
  });
}

// P^T = 2^(S^T + off) for a tile off the diagonal, and its row sums.
template <class V, int N>
void weigh_tile(const Lane<V>* q_t, const KeyRows<V>& keys, int count, int dim, float scale2,
                const float* ramp, const typename V::Reg (&off)[N], typename V::Reg (&l)[N],
                Lane<V>* p_t) {
  const typename V::Reg factor = V::set1(scale2);
  for (int v = 0; v < N; ++v) l[v] = V::zero();
  for (int k0 = 0; k0 < count; k0 += V::kKeys) {
    Acc<V, N> acc;
    score_group<V, N>(q_t, keys, k0, dim, ramp, acc);
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; k += kTerms<V>) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        typename V::Reg p[kTerms<V>];
#pragma GCC unroll 2
        for (int t = 0; t < kTerms<V>; ++t) {
          p[t] = exp2<V>(Operands<V>::score(acc[k + t][v], factor, off[v]));
          l[v] = V::add(l[v], p[t]);
        }
        Operands<V>::store(p_t + (k0 + k) / kTerms<V> * kRows<V> + v * V::kWidth, p);
      }
    }
  }
}

// Raises the references of the rows to the true maximum of this tile where that is larger, and
// rescales their sums.
template <class V, int N>
void raise_reference(const FwdTile<V>& t, const KeyRows<V>& keys, int count, const TileBias& bias) {
  const FwdScratch<V>& w = t.w;
  typename V::Reg largest[N];
  max_scores<V, N>(w.q_t, keys, count, t.dim(), t.scale2(), w.ramp, largest);
  typename V::Reg factor[N];
  for (int v = 0; v < N; ++v) {
    const int lane = v * V::kWidth;
    const typename V::Reg old = V::load(w.row_max + lane);
    const typename V::Reg now =
        V::max(V::add(largest[v], anchor_bias<V>(bias, row_positions<V>(t.rows, lane))), old);
    factor[v] = exp2<V>(V::sub(old, now));
    V::store(w.row_max + lane, now);
    V::store(w.row_sum + lane, V::mul(V::load(w.row_sum + lane), factor[v]));
  }
  for (int d = 0; d < t.dim(); ++d) {
    for (int v = 0; v < N; ++v) {
      float* o = w.o_t + d * kRows<V> + v * V::kWidth;
      V::store(o, V::mul(V::load(o), factor[v]));
    }
  }
}

// Takes in a tile off the diagonal.
template <class V, int N>
void absorb(const FwdTile<V>& t, const KeyTile& tile) {
  const FwdScratch<V>& w = t.w;
  const TileBias bias = tile_bias(t.rows, tile);
  fill_ramp<V>(bias, tile.count, Operands<V>::ramp_factor(t.scale2()), w.ramp);
  const KeyRows<V> keys = load_keys<V>(t.k, tile.begin, tile.count, t.dim(), w.keys);
  for (bool raised = false;; raised = true) {
    typename V::Reg off[N], l[N];
    for (int v = 0; v < N; ++v) {
      const int lane = v * V::kWidth;
      const typename V::Reg row = row_positions<V>(t.rows, lane);
      off[v] = V::sub(anchor_bias<V>(bias, row), V::load(w.row_max + lane));
    }
    weigh_tile<V, N>(w.q_t, keys, tile.count, t.dim(), t.scale2(), w.ramp, off, l, w.p_t);
    bool outgrown = false;
    for (int v = 0; v < N; ++v) {
      l[v] = V::add(V::load(w.row_sum + v * V::kWidth), l[v]);
      outgrown |= V::any(V::lt(V::set1(kLazyLimit), l[v]));
    }
    if (!outgrown || raised) {
      for (int v = 0; v < N; ++v) V::store(w.row_sum + v * V::kWidth, l[v]);
      break;
    }
    raise_reference<V, N>(t, keys, tile.count, bias);
  }
  const ValueRows<V> values = load_values<V>(t.v, tile.begin, tile.count, t.dim(), w.values);
  add_products<V, N>(w.p_t, values.data, values.stride, lanes_of<V>(tile.count), t.dim(), w.o_t);
}

// out = O^T / l, transposed back, and lse in natural units. row_sum becomes 1 / l.
template <class V>
void finish_rows(const FwdTile<V>& t, float slope, const HeadView& out, float* lse) {
  const FwdScratch<V>& w = t.w;
  for (int i = 0; i < t.rows.vecs * V::kWidth; ++i) {
    const float sum = w.row_sum[i];
    if (i < t.rows.rows) {
      const double moved =
          (static_cast<double>(w.row_max[i]) + ::log2(static_cast<double>(sum))) * kLn2;
      lse[i] = static_cast<float>(moved + static_cast<double>(slope) * row_shift(t.rows, i));
    }
    w.row_sum[i] =
        sum == 0.0f ? 0.0f : 1.0f / sum;  // a row that may see nothing: out is 0, lse -inf
  }
  store_transposed<V>(w.o_t, w.row_sum, t.rows.rows, t.dim(), out, t.rows.row0);
}

template <class V>
struct FwdCall {
  const AlibiAttentionFwdArgs& args;
  const KeyNormTable<V>& norms;
  const int32_t* heads;  // order of the query heads
  int64_t row_tiles;     // per head
};

// One work item: one tile of query rows of one head.
template <class V>
void attention_fwd_item(const void* context, int64_t index, float* scratch) {
  const auto& call = *static_cast<const FwdCall<V>*>(context);
  const AlibiAttentionFwdArgs& a = call.args;
  const AlibiProblem& p = a.problem;
  const RowItem item = row_item(index, p, call.heads, call.row_tiles);
  const FwdScratch<V> w(scratch, static_cast<int>(p.head_dim));
  const float slope = a.slopes[item.head];
  const Span span = span_of(p, a.spans, item.batch);
  RowTile rows = make_row_tile<V>(p, span, slope, item.tile);
  clamp_rows<V>(span, &rows);
  const int64_t kv_head = item.head / (p.heads_q / p.heads_kv);
  const FwdTile<V> t{p, rows, head_view(a.k, p.dtype, item.batch, kv_head),
                     head_view(a.v, p.dtype, item.batch, kv_head), w};

  load_transposed<V>(head_view(a.q, p.dtype, item.batch, item.head), rows.row0, rows.rows, t.dim(),
                     t.scale2(), w.q_t);
  // The rows of out are written last; those of q that the next item most likely reads lie before
  // these. Both are on their way meanwhile.
  prefetch_rows<1>(head_view(a.out, p.dtype, item.batch, item.head), rows.row0, rows.rows, t.dim());
  prefetch_rows<0>(head_view(a.q, p.dtype, item.batch, item.head),
                   max_int64(0, rows.row0 - kRows<V>), min_int(kRows<V>, rows.row0), t.dim());
  memset(w.o_t, 0, sizeof(float) * transposed_scratch<V>(t.dim()));
  for (int i = 0; i < kRows<V>; ++i) {
    w.row_max[i] = -FLT_MAX;
    w.row_sum[i] = 0.0f;
  }
  const PruneTest<V> prune(p, call.norms.head(item.batch, kv_head), slope, rows, w.q_t, w.q_norm);
  int64_t visited = 0;
  walk_keys(
      rows,
      [&](const KeyTile& tile) {
        if (visited++ == 0) return absorb_first(t, tile);
        with_count<V::kRowVecs>(rows.vecs, [&](auto n) { absorb<V, decltype(n)::value>(t, tile); });
      },
      [&](float gradient, int64_t next, bool left, int most) {
        return prune.reach(gradient, next, left, most, w.row_max, w.row_sum);
      });
  finish_rows(t, slope, head_view(a.out, p.dtype, item.batch, item.head),
              a.lse + (item.batch * p.heads_q + item.head) * p.len_q + rows.row0);
  count_work(a.options, visited, count_tiles(rows));
}

template <class V>
int32_t attention_fwd(const AlibiAttentionFwdArgs& a, int threads) {
  const AlibiProblem& p = a.problem;
  if (is_decode(p)) return decode_fwd<V>(a, threads);
  KeyNormTable<V> norms(p, a.k, a.spans, a.key_norms);
  const int32_t status = norms.fill(threads);
  if (status != ALIBI_OK) return status;
  const HeadOrder order(p, a.slopes);
  if (order.heads() == nullptr) return ALIBI_OUT_OF_MEMORY;
  const FwdCall<V> call{a, norms, order.heads(), row_tiles<V>(p)};
  const FwdScratch<V> layout(nullptr, static_cast<int>(p.head_dim));
  const double pairs = static_cast<double>(p.batch * p.heads_q) * p.len_q * p.len_k;
  return run_items(p.batch * p.heads_q * call.row_tiles, threads, 4.0 * pairs * p.head_dim,
                   layout.floats, &attention_fwd_item<V>, &call);
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_ATTENTION_FWD_INL_H_
