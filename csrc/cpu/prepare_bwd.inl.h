// The first phase of the backward: what is kept about each row, -lse and -delta, and which keys the
// rows of a tile visit.
//
// Pruning needs a stricter limit than in the forward: a skipped pair is missing from a column too,
// and in dslopes it would count |p_i - j| times. Weights times (1 + slope * distance) that sum to
// 2^-24 at most cover all of it (docs/maths.md, Rule B): half of that by the bound, without a look
// at the keys, and half by the weights themselves, which cost one product here and spare five.
//
// A row whose dout, delta and dlse are 0 has dS = 0 and passes nothing on. Such are the rows of
// padding, of which a batch may have as many as others: pruned, a tile of them visits no keys.
#ifndef ALIBI_CPU_PREPARE_BWD_INL_H_
#define ALIBI_CPU_PREPARE_BWD_INL_H_

#include <math.h>
#include <stdint.h>

#include "chunk_work.inl.h"
#include "exp.inl.h"
#include "geometry.h"
#include "micro.inl.h"
#include "prune.h"
#include "scores.inl.h"
#include "tile_io.inl.h"
#include "work.h"

namespace alibi::cpu {
namespace {

// What is kept about each row: indices into ChunkCall::row_values.
enum : int {
  kMinusLse2,  // -lse of the moved row in log2 units; -inf, so weights of 0, if it sees nothing
  kMinusDelta,
};

template <class V>
struct AttentionBwdCall {
  ChunkCall<AlibiAttentionBwdArgs> chunks;
  const KeyNormTable<V>& norms;
};

constexpr int kProbeKeys = 32;  // keys that are visited, or not, together

template <class V>
struct PrepareScratch {
  Lane<V>* q_t;                  // [lanes of dim][kRows]
  float *q_norm, *lse2, *limit;  // [kRows]
  float* dropped;                // [kRows]: weights, as Rule B counts them
  Element<V>* keys;              // [kProbeKeys][padded dim]
  Lane<V>* p_t;                  // [lanes of kProbeKeys][kRows]
  float* ramp;                   // [kRampFloats]
  int64_t floats;

  PrepareScratch(float* base, int dim) {
    Carver carver{base, 0};
    q_t = carver.take<Lane<V>>(transposed_scratch<V>(lanes_of<V>(dim)));
    q_norm = carver.take(kRows<V>);
    lse2 = carver.take(kRows<V>);
    limit = carver.take(kRows<V>);
    dropped = carver.take(kRows<V>);
    keys = carver.take<Element<V>>(row_scratch<V>(kProbeKeys, dim));
    p_t = carver.take<Lane<V>>(lanes_of<V>(kProbeKeys) * kRows<V>);
    ramp = carver.take(kRampFloats);
    floats = carver.used;
  }
};

template <class V, class T>
float dot_rows(const T* a, const T* b, int dim) {
  constexpr int W = V::kWidth;
  typename V::Reg sum = V::zero();
  int d = 0;
  for (; d + W <= dim; d += W) sum = V::fma(V::load(a + d), V::load(b + d), sum);
  if (d < dim) {
    sum = V::fma(V::load_first(a + d, dim - d), V::load_first(b + d, dim - d), sum);
  }
  return V::reduce_add(sum);
}

template <class V, class T>
bool is_zero(const T* a, int dim) {
  for (int d = 0; d < dim; d += V::kWidth) {
    const typename V::Reg x = V::load_first(a + d, min_int(V::kWidth, dim - d));
    if (!V::all(V::eq(x, V::zero()))) return false;
  }
  return true;
}

// Fills the row values of a tile, lse2 for the prune test, and the tile's shift_dslope. Returns
// whether any row sees a key and, pruned, passes something on.
template <class V>
bool prepare_softmax(const ChunkCall<AlibiAttentionBwdArgs>& call, const RowTile& rows, float slope,
                     int64_t b, int64_t h, const PrepareScratch<V>& w, PreparedTile* tile) {
  const AlibiAttentionBwdArgs& a = call.args;
  const AlibiProblem& p = a.problem;
  const int dim = static_cast<int>(p.head_dim);
  const HeadView out = from_row(head_view(a.out, p.dtype, b, h), rows.row0);
  bool any = false;
  with_row(head_view(a.dout, p.dtype, b, h), rows.row0, [&](const auto* dout_row) {
    const auto* out_row = static_cast<decltype(dout_row)>(out.data);
    for (int i = 0; i < kRows<V>; ++i) {
      w.lse2[i] = __builtin_inff();
      if (i >= rows.rows) continue;
      const int64_t row = (b * p.heads_q + h) * p.len_q + rows.row0 + i;
      float minus_delta = 0.0f;
      if (a.lse[row] != -__builtin_inff()) {
        const float dlse = a.dlse == nullptr ? 0.0f : a.dlse[row];
        w.lse2[i] = static_cast<float>((a.lse[row] - slope * rows.shift) / kLn2);
        minus_delta = dlse - dot_rows<V>(dout_row, out_row, dim);
        // dbias/dslope of every pair holds `shift`, and sum_j dS_ij = dlse_i.
        tile->shift_dslope += rows.shift * dlse;
        any |= p.prune == 0 || minus_delta != 0.0f || !is_zero<V>(dout_row, dim);
      }
      call.row_values[kMinusLse2][row] = -w.lse2[i];
      call.row_values[kMinusDelta][row] = minus_delta;
      const int64_t dout_stride = a.dout.stride_s, out_stride = a.out.stride_s;
      if (dout_stride != dim) prefetch_row<0, 3>(dout_row + kRowsAhead * dout_stride, dim);
      if (out_stride != dim) prefetch_row<0, 3>(out_row + kRowsAhead * out_stride, dim);
      dout_row += dout_stride, out_row += out_stride;
    }
  });
  return any;
}

// Tries the far end of a run: leaves out keys whose weights, computed here, are negligible for
// every row.
template <class V>
class FarEnd {
  using Reg = typename V::Reg;

 public:
  FarEnd(const AlibiProblem& p, const RowTile& rows, float slope, const HeadView& k,
         const PrepareScratch<V>& w)
      : rows_(rows), k_(k), w_(w), slope_(slope), dim_(static_cast<int>(p.head_dim)) {
    const double share = -::expm1(-static_cast<double>(slope)) * (p.causal != 0 ? 2.0 : 1.0);
    column_ = static_cast<float>(share * rows.rows) * kDropShare;
    scale2_ = p.scale * kLog2E;
    for (int i = 0; i < kRows<V>; ++i) w.dropped[i] = 0.0f;
  }

  // May these keys be left out, given that all beyond them are?
  bool drop(const KeyRange& keys, bool left) {
    const float gradient = left ? rows_.slope2 : rows_.right_gradient;
    const KeyTile tile{keys.begin, static_cast<int>(keys.end - keys.begin), false, gradient};
    bool dropped = false;
    with_count<V::kRowVecs>(rows_.vecs, [&](auto n) {
      dropped = left ? drop_tile<decltype(n)::value>(tile, keys.begin, rows_.rows - 1)
                     : drop_tile<decltype(n)::value>(tile, keys.end - 1, 0);
    });
    return dropped;
  }

 private:
  // The keys of a tile, of which one is furthest from the rows, and one row from it.
  template <int N>
  bool drop_tile(const KeyTile& tile, int64_t farthest_key, int farthest_row) {
    const TileBias bias = tile_bias(rows_, tile);
    const float offset = static_cast<float>(farthest_key - rows_.pos0);
    const float shift = static_cast<float>(__builtin_fabs(rows_.shift));
    const float most =
        1.0f + slope_ * (__builtin_fabsf(offset - static_cast<float>(farthest_row)) + shift);
    Reg off[N], factor[N], weight[N];
    for (int v = 0; v < N; ++v) {
      const int lane = v * V::kWidth;
      const Reg row = row_positions<V>(rows_, lane);
      const Reg distance = V::add(V::abs(V::sub(V::set1(offset), row)), V::set1(shift));
      factor[v] = V::fma(V::set1(slope_), distance, V::set1(1.0f));
      off[v] = V::sub(anchor_bias<V>(bias, row), V::load(w_.lse2 + lane));
      // Weights of scores of 0, to see whether computing the others is worth it.
      weight[v] = exp2<V>(off[v]);
    }
    if (!rows_negligible<N>(weight, factor)) return false;
    const KeyRows<V> keys = load_keys<V>(k_, tile.begin, tile.count, dim_, w_.keys);
    fill_ramp<V>(bias, tile.count, Operands<V>::ramp_factor(scale2_), w_.ramp);
    RowFetch none;
    weigh_tile<V, N>(w_.q_t, keys, tile.count, dim_, scale2_, w_.ramp, off, weight, w_.p_t, none);
    for (int v = 0; v < N; ++v) weight[v] = V::mul(weight[v], V::set1(1.0f / kWeightUnit<V>));
    if (!rows_negligible<N>(weight, factor) ||
        !columns_negligible<N>(tile.count, kWeightUnit<V> * column_ / most)) {
      return false;
    }
    for (int v = 0; v < N; ++v) {
      float* dropped = w_.dropped + v * V::kWidth;
      V::store(dropped, V::fma(weight[v], factor[v], V::load(dropped)));
    }
    return true;
  }

  // With what has been dropped before.
  template <int N>
  bool rows_negligible(const Reg (&weight)[N], const Reg (&factor)[N]) const {
    for (int v = 0; v < N; ++v) {
      const Reg sum = V::fma(weight[v], factor[v], V::load(w_.dropped + v * V::kWidth));
      if (!V::all(V::le(sum, V::set1(kDropShare)))) return false;
    }
    return true;
  }

  // A column adds up over the tiles of rows, which do not know of each other: what a tile may leave
  // out of it falls with the distance.
  template <int N>
  bool columns_negligible(int count, float limit) const {
    for (int k = 0; k < count; ++k) {
      Reg sum = V::zero();
      for (int v = 0; v < N; ++v) {
        const Lane<V>* p = w_.p_t + k / kTerms<V> * kRows<V> + v * V::kWidth;
        sum = V::add(sum, Operands<V>::term(Operands<V>::load(p), k % kTerms<V>));
      }
      if (!(V::reduce_add(sum) <= limit)) return false;
    }
    return true;
  }

  const RowTile& rows_;
  const HeadView k_;
  const PrepareScratch<V>& w_;
  const float slope_;
  const int dim_;
  float column_, scale2_;
};

// The keys that a tile of rows visits: all that its rows may see, less what is negligible at either
// end, by the bound or by its weights.
template <class V>
KeyRange visited_keys(const RowTile& rows, float slope, const PruneTest<V>& prune,
                      FarEnd<V>& far_end, const PrepareScratch<V>& w) {
  auto negligible = [&](float gradient, int64_t next, bool left) {
    const double ahead = static_cast<double>(next - rows.pos0);
    for (int i = 0; i < kRows<V>; ++i) {
      const double distance = __builtin_fabs(ahead - i) + __builtin_fabs(rows.shift);
      w.limit[i] = static_cast<float>(1.0 / (1.0 + slope * distance));
    }
    return prune.negligible(gradient, next, left, w.lse2, w.limit);
  };
  KeyRange left{rows.left.end, rows.left.end}, right{rows.right.begin, rows.right.begin};
  while (left.begin > rows.left.begin && !negligible(rows.slope2, left.begin - 1, true)) {
    left.begin = max_int64(left.begin - kProbeKeys, rows.left.begin);
  }
  while (right.end < rows.right.end && !negligible(rows.right_gradient, right.end, false)) {
    right.end = min_int64(right.end + kProbeKeys, rows.right.end);
  }
  if (prune.enabled()) {
    for (int64_t end; !left.empty(); left.begin = end) {
      end = min_int64(left.begin + kProbeKeys, left.end);
      if (!far_end.drop({left.begin, end}, true)) break;
    }
    for (int64_t begin; !right.empty(); right.end = begin) {
      begin = max_int64(right.end - kProbeKeys, right.begin);
      if (!far_end.drop({begin, right.end}, false)) break;
    }
  }
  return join(join(left, rows.diagonal), right);
}

template <class V>
void prepare_rows(const void* context, int64_t index, float* scratch) {
  const auto& call = *static_cast<const AttentionBwdCall<V>*>(context);
  const AlibiAttentionBwdArgs& a = call.chunks.args;
  const AlibiProblem& p = a.problem;
  const int dim = static_cast<int>(p.head_dim);
  const int64_t head = index / call.chunks.row_tiles, b = head / p.heads_q, h = head % p.heads_q;
  const RowTile rows =
      make_row_tile<V>(p, span_of(p, a.spans, b), a.slopes[h], index % call.chunks.row_tiles);
  const PrepareScratch<V> w(scratch, dim);
  PreparedTile& tile = call.chunks.tiles[index];
  tile = {{0, 0}, 0.0};
  if (prepare_softmax<V>(call.chunks, rows, a.slopes[h], b, h, w, &tile)) {
    const KeyNorms norms = call.norms.head(b, h / call.chunks.group());
    if (norms.prefix != nullptr) {
      load_transposed<V>(head_view(a.q, p.dtype, b, h), rows.row0, rows.rows, dim, p.scale * kLog2E,
                         w.q_t);
    }
    const PruneTest<V> prune(p, norms, a.slopes[h], rows, w.q_t, w.q_norm);
    FarEnd<V> far_end(p, rows, a.slopes[h], head_view(a.k, p.dtype, b, h / call.chunks.group()), w);
    tile.keys = visited_keys<V>(rows, a.slopes[h], prune, far_end, w);
  }
  if (tile.keys.empty()) clear_rows<V>(head_view(a.dq, p.dtype, b, h), rows.row0, rows.rows, dim);
  RowTile visited = rows;
  visited.left = intersect(rows.left, tile.keys);
  visited.diagonal = intersect(rows.diagonal, tile.keys);
  visited.right = intersect(rows.right, tile.keys);
  count_work(a.options, count_tiles(visited), count_tiles(rows));
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_PREPARE_BWD_INL_H_
