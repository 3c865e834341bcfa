// Forward pass of the attention weights, P = softmax(scale * Q K^T + bias) over the allowed keys,
// written out in full.
//
// One tile of rows at a time. The scores of all keys that are visited are kept, transposed, in the
// scratch of the thread ([keys][kRows] floats, a few rows of the result): the walk outward from the
// diagonal leaves S^T and the true row maxima there, one sweep turns S^T into 2^(S^T - max) and the
// row sums, and one more transposes it into the rows of P, divided by the sums. The scores are
// computed once and the exponentials once.
//
// Pruned keys (prune.h, with the maximum alone as a lower bound of the row's sum) get the weight 0.
#ifndef ALIBI_CPU_WEIGHTS_FWD_INL_H_
#define ALIBI_CPU_WEIGHTS_FWD_INL_H_

#include <float.h>
#include <stdint.h>
#include <string.h>

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

template <class V>
struct WeightsScratch {
  float* q_t;   // [dim][kRows]
  float* s_t;   // [len_k][kRows], and kWidth rows that store_transposed reads past the end
  float* keys;  // copy of a tile that cannot be read in place
  float* ramp;  // [kRampFloats]
  float *row_max, *row_sum, *q_norm;  // [kRows]
  int64_t floats;

  WeightsScratch(float* base, int dim, int64_t len_k) {
    Carver carve{base, 0};
    q_t = carve.take(transposed_scratch<V>(dim));
    s_t = carve.take((len_k + V::kWidth) * kRows<V>);
    keys = carve.take(row_scratch<V>(kTileKeys, dim));
    ramp = carve.take(kRampFloats);
    row_max = carve.take(kRows<V>);
    row_sum = carve.take(kRows<V>);
    q_norm = carve.take(kRows<V>);
    floats = carve.used;
  }
};

template <class V>
void fill_rows(float* row_values, float x) {
  for (int i = 0; i < kRows<V>; ++i) row_values[i] = x;
}

// S^T of every visited key, row_max, and the keys visited: one range, because the walk goes
// outward.
template <class V>
KeyRange score_rows(const AlibiProblem& p, const RowTile& rows, const KeyNorms& norms, float slope,
                    const HeadView& k, const WeightsScratch<V>& w, int64_t* tiles) {
  const int dim = static_cast<int>(p.head_dim);
  fill_rows<V>(w.row_max, -FLT_MAX);  // finite: a row without any score gets weights of 2^-inf = 0
  fill_rows<V>(w.row_sum, 1.0f);      // the largest weight alone, for the prune test
  const PruneTest<V> prune(p, norms, slope, rows, w.q_t, w.q_norm);
  KeyRange seen = {0, 0};
  walk_keys(
      rows,
      [&](const KeyTile& tile) {
        const KeyRows<V> keys = load_keys<V>(k, tile.begin, tile.count, dim, w.keys);
        raw_scores<V>(p, rows, tile, keys, w.q_t, w.ramp, w.row_max, w.s_t + tile.begin * kRows<V>);
        const int64_t end = tile.begin + tile.count;
        seen = (*tiles)++ == 0
                   ? KeyRange{tile.begin, end}
                   : KeyRange{min_int64(seen.begin, tile.begin), max_int64(seen.end, end)};
      },
      [&](float gradient, int64_t next, bool left, int most) {
        return prune.reach(gradient, next, left, most, w.row_max, w.row_sum);
      });
  return seen;
}

// S^T becomes 2^(S^T - row_max) and row_sum its sums. On a causal diagonal, where S^T has holes,
// they become 0.
template <class V>
void exponentiate_rows(const AlibiProblem& p, const RowTile& rows, const KeyRange& seen,
                       const WeightsScratch<V>& w) {
  fill_rows<V>(w.row_sum, 0.0f);
  auto sweep = [&](const KeyRange& keys, bool diagonal) {
    for (int64_t begin = keys.begin; begin < keys.end; begin += kTileKeys) {
      const KeyTile tile{begin, min_int(kTileKeys, keys.end - begin), diagonal, 0.0f};
      for_strips<V>(
          rows, tile, diagonal && p.causal != 0, [&](auto count, int first, int from, int to) {
            constexpr int N = decltype(count)::value;
            const int lane = first * V::kWidth;
            float* s = w.s_t + (begin + from) * kRows<V>;
            exponentiate<V, N>(s + lane, to - from, w.row_max + lane, w.row_sum + lane, s + lane);
            for (int k = 0; k < to - from; ++k, s += kRows<V>) {
              memset(s, 0, sizeof(float) * lane);
            }
          });
    }
  };
  sweep(rows.diagonal, true);
  sweep(key_range(max_int64(seen.begin, rows.left.begin), rows.left.end), false);
  sweep(key_range(rows.right.begin, min_int64(seen.end, rows.right.end)), false);
}

// The rows of P: zeros, the visited weights divided by their sum, zeros.
template <class V>
void write_weights(const RowTile& rows, const KeyRange& seen, int64_t len_k,
                   const WeightsScratch<V>& w, const HeadView& out) {
  for (int i = 0; i < rows.vecs * V::kWidth; ++i) {
    w.row_sum[i] = w.row_sum[i] == 0.0f ? 0.0f : 1.0f / w.row_sum[i];
  }
  HeadView shifted = out;
  for (int i = 0; i < rows.rows; ++i) {
    with_row(out, rows.row0 + i, [&](auto* row) {
      memset(row, 0, sizeof(*row) * seen.begin);
      memset(row + seen.end, 0, sizeof(*row) * (len_k - seen.end));
    });
  }
  with_row(out, 0, [&](auto* row) { shifted.data = row + seen.begin; });
  store_transposed<V>(w.s_t + seen.begin * kRows<V>, w.row_sum, rows.rows,
                      static_cast<int>(seen.end - seen.begin), shifted, rows.row0);
}

template <class V>
struct WeightsCall {
  const AlibiWeightsFwdArgs& args;
  const KeyNormTable<V>& norms;
  const HeadOrder& order;
  int64_t row_tiles;  // per head
};

template <class V>
void weights_fwd_item(const void* context, int64_t index, float* scratch) {
  const auto& call = *static_cast<const WeightsCall<V>*>(context);
  const AlibiWeightsFwdArgs& a = call.args;
  const AlibiProblem& p = a.problem;
  const RowItem item = call.order.item(index, call.row_tiles);
  const int dim = static_cast<int>(p.head_dim);
  const WeightsScratch<V> w(scratch, dim, p.len_k);
  const float slope = a.slopes[item.head];
  const Span span = span_of(p, a.spans, item.batch);
  RowTile rows = make_row_tile<V>(p, span, slope, item.tile);
  clamp_rows<V>(span, &rows);
  const int64_t kv_head = item.head / (p.heads_q / p.heads_kv);
  load_transposed<V>(head_view(a.q, p.dtype, item.batch, item.head), rows.row0, rows.rows, dim,
                     p.scale * kLog2E, w.q_t);
  int64_t visited = 0;
  const KeyRange seen = score_rows<V>(p, rows, call.norms.head(item.batch, kv_head), slope,
                                      head_view(a.k, p.dtype, item.batch, kv_head), w, &visited);
  exponentiate_rows<V>(p, rows, seen, w);
  write_weights<V>(rows, seen, p.len_k, w, head_view(a.p, p.dtype, item.batch, item.head));
  count_work(a.options, visited, count_tiles(rows));
}

template <class V>
int32_t weights_fwd(const AlibiWeightsFwdArgs& a, int threads) {
  const AlibiProblem& p = a.problem;
  KeyNormTable<V> norms(p, a.k, a.spans);
  const int32_t status = norms.fill(threads);
  if (status != ALIBI_OK) return status;
  const HeadOrder order(p, a.slopes);
  if (!order.allocated()) return ALIBI_OUT_OF_MEMORY;
  const WeightsCall<V> call{a, norms, order, row_tiles<V>(p)};
  const WeightsScratch<V> layout(nullptr, static_cast<int>(p.head_dim), p.len_k);
  const double pairs = static_cast<double>(p.batch * p.heads_q) * p.len_q * p.len_k;
  return run_items(p.batch * p.heads_q * call.row_tiles, threads, 2.0 * pairs * p.head_dim,
                   layout.floats, &weights_fwd_item<V>, &call);
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_WEIGHTS_FWD_INL_H_
