// Backward pass of fused ALiBi attention: P is recomputed from lse; five products in one pass.
//
//   P_ij  = exp(s_ij - lse_i)                   delta_i = <dout_i, out_i> - dlse_i
//   dS_ij = P_ij (<dout_i, v_j> - delta_i)      dslope  = sum_ij dS_ij dbias_ij
//   dq_i  = scale sum_j dS_ij k_j     dk_j = scale sum_i dS_ij q_i     dv_j = sum_i P_ij dout_i
//
// As in the forward, query rows live in the vector lanes and scores are in log2 units. For a tile
// of keys against a tile of rows, with accumulators that start from the bias ramp and from -delta:
//
//   P^T  = 2^(ramp + K Q^T + off)     dS^T = P^T (-delta + V dOut^T)           dot_keys
//   dQ^T += K^T dS^T                  a sum over keys, rows in the lanes       add_products
//   dV   += P^T dOut,  dK += dS^T Q   sums over rows, head dims in the lanes   add_outer
//
// Three phases; the items of the first two are a queue for the threads:
//   1. prepare_rows     a tile of rows: -lse, -delta, and the keys that it visits (prune.h)
//   2. AttentionChunk   a chunk of keys (key_chunks.inl.h, chunk_work.inl.h), copied once to
//                       scratch, as operands (operands.inl.h), whatever its type and strides; then
//                       the rows of all query heads that share it pass by
//   3. sum_dslopes      adds up the tiles, chunks and batch items in double precision
// A chunk and its gradients stay in the second-level cache, P and dS of a tile in the first.
//
// Pruning needs a stricter limit than in the forward: a skipped pair is missing from a column too,
// and in dslopes it would count |p_i - j| times. Weights times (1 + slope * distance) that sum to
// 2^-24 at most cover all of it (docs/maths.md, Rule B): half of that by the bound, without a look
// at the keys, and half by the weights themselves, which cost one product here and spare five.
//
// A row that may see nothing (lse = -inf) contributes nothing, whatever its dout. Otherwise
// non-finite numbers follow IEEE rules.
#ifndef ALIBI_CPU_ATTENTION_BWD_INL_H_
#define ALIBI_CPU_ATTENTION_BWD_INL_H_

#include <stdint.h>
#include <string.h>

#include "chunk_work.inl.h"
#include "exp.inl.h"
#include "geometry.h"
#include "key_chunks.inl.h"
#include "micro.inl.h"
#include "micro_bwd.inl.h"
#include "parallel.h"
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

// Fills the row values of a tile, lse2 for the prune test, and the tile's shift_dslope. Returns
// whether any row sees a key.
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
        any = true;
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

template <class V>
struct AttentionScratch {
  Element<V>* values;  // [chunk + kKeys][padded dim]
  float* dvalues;      // the same
  RowOperands<V> dout;
  Lane<V>*q_t, *dout_t;             // [lanes of dim][kRows]
  Element<V>* p_t;                  // [kBwdTileKeys][kRows]
  float* p_exact;                   // [kKeys][kRows]: of one group, if p_t is not float32
  float* ramp;                      // [kRampFloats]
  float *minus_lse2, *minus_delta;  // [kRows]

  void carve(Carver* carver, int dim, int64_t chunk_keys) {
    const int64_t chunk = (chunk_keys + V::kKeys) * round_up(dim, V::kWidth);
    values = carver->take<Element<V>>(chunk);
    dvalues = carver->take(chunk);
    dout.carve(carver, dim);
    q_t = carver->take<Lane<V>>(transposed_scratch<V>(lanes_of<V>(dim)));
    dout_t = carver->take<Lane<V>>(transposed_scratch<V>(lanes_of<V>(dim)));
    p_t = carver->take<Element<V>>(kBwdTileKeys * kRows<V>);
    if constexpr (kTerms<V> > 1) p_exact = carver->take(V::kKeys * kRows<V>);
    ramp = carver->take(kRampFloats);
    minus_lse2 = carver->take(kRows<V>);
    minus_delta = carver->take(kRows<V>);
  }
};

template <class V>
int64_t attention_scratch_floats(int dim, int64_t chunk_keys) {
  Carver carver{nullptr, 0};
  ChunkScratch<V>().carve(&carver, dim, chunk_keys);
  AttentionScratch<V>().carve(&carver, dim, chunk_keys);
  return carver.used;
}

template <class V>
class AttentionChunk : public ChunkWork<V, AlibiAttentionBwdArgs, AttentionChunk<V>> {
  using Base = ChunkWork<V, AlibiAttentionBwdArgs, AttentionChunk<V>>;
  using Reg = typename V::Reg;
  using Base::args_, Base::b_, Base::call_, Base::dim_, Base::padded_, Base::problem_, Base::w_;

 public:
  static constexpr float kUnit = kWeightUnit<V>;  // of P and dS

  AttentionChunk(const ChunkCall<AlibiAttentionBwdArgs>& call, int64_t unit, float* scratch)
      : Base(call, unit) {
    Carver carver{scratch, 0};
    w_.carve(&carver, dim_, call.chunks.keys);
    own_.carve(&carver, dim_, call.chunks.keys);
  }

  void load_keys() {
    this->load_head_keys(args_.v, own_.values);
    this->clear_keys(own_.dvalues);
  }

  void store_keys() { this->store_head_keys(own_.dvalues, 1.0f / kUnit, args_.dv); }

  void load_rows(const RowTile& rows, int64_t head, int64_t h) {
    const int64_t first = head * problem_.len_q + rows.row0;
    bool blind = false;
    for (int i = 0; i < kRows<V>; ++i) {
      const bool exists = i < rows.rows;
      own_.minus_lse2[i] = exists ? call_.row_values[kMinusLse2][first + i] : -__builtin_inff();
      own_.minus_delta[i] = exists ? call_.row_values[kMinusDelta][first + i] : 0.0f;
      blind |= exists && own_.minus_lse2[i] == -__builtin_inff();
    }
    load_operands(args_.q, h, rows, blind, scale2(), w_.q, own_.q_t);
    load_operands(args_.dout, h, rows, blind, 1.0f, own_.dout, own_.dout_t);
  }

  void fetch_rows(int64_t h, const HeadView& sum, int64_t begin, int64_t end, int64_t groups) {
    const int32_t dtype = problem_.dtype;
    fetch_.begin(from_row(head_view(args_.q, dtype, b_, h), begin),
                 from_row(head_view(args_.dout, dtype, b_, h), begin), from_row(sum, begin),
                 end - begin, dim_, groups);
  }

  // P^T and dS^T of a tile. On a causal diagonal, row vectors wholly before a group of keys are
  // left out.
  void compute_tile(const RowTile& rows, const KeyTile& tile) {
    const TileBias bias = tile_bias(rows, tile);
    const bool masked = tile.diagonal && problem_.causal != 0;
    const float factor = Operands<V>::ramp_factor(scale2());
    if (!tile.diagonal) fill_ramp<V>(bias, tile.count, factor, own_.ramp);
    const int64_t ahead = rows.pos0 - tile.begin;
    slope_sum_ = V::zero();
    if constexpr (V::kParts > 1) {
      if (!tile.diagonal) {
        return with_count<V::kRowVecs>(rows.vecs,
                                       [&](auto n) { linear_tile<decltype(n)::value>(tile, bias); });
      }
    }
    for (int k0 = 0; k0 < tile.count; k0 += V::kKeys) {
      fetch_.step();
      const int first = masked ? (k0 - static_cast<int>(ahead)) / V::kWidth : 0;
      const int lane = first * V::kWidth;
      const Group group{this->key_offset(tile.begin + k0), k0, lane, tile.count - k0,
                        static_cast<float>(ahead + lane - k0)};
      with_count<V::kRowVecs>(rows.vecs - first, [&](auto n) {
        constexpr int N = decltype(n)::value;
        if (tile.diagonal) {
          diagonal_group<N>(group, rows.slope2 * factor, masked);
        } else {
          linear_group<N>(group, bias);
        }
      });
    }
  }

  float slope_sum(const RowTile&, const KeyTile&) const { return V::reduce_add(slope_sum_); }

  void add_strip(const RowTile& rows, int begin, int count, int lane, int64_t key) {
    add_outer<V>(own_.p_t + begin * kRows<V> + lane, own_.dout.from(lane, padded_), padded_,
                 lanes_of<V>(rows.rows - lane), count, padded_, own_.dvalues + key, padded_);
  }

 private:
  // What one call of the micro-kernels works on: kKeys keys, from key k0 of the tile on, and row
  // vectors from row `lane` on.
  struct Group {
    int64_t key;  // offset of the first key in the copies
    int k0, lane;
    int keys;  // what is left of the tile: fewer than kKeys in its last group, others are padding
    float ahead;  // position of row `lane` minus that of the first key
  };

  float scale2() const { return problem_.scale * kLog2E; }

  // The rows of q or dout in both forms; `blind`: some of them see nothing and become 0. Lanes of
  // several rows are made from the tensor itself, unless there are such rows.
  void load_operands(const AlibiTensor& tensor, int64_t h, const RowTile& rows, bool blind,
                     float factor, const RowOperands<V>& operands, Lane<V>* transposed) const {
    HeadView head = from_row(head_view(tensor, problem_.dtype, b_, h), rows.row0);
    if (kTerms<V> == 1 || blind) {
      copy_operand_rows<V>(head, 0, rows.rows, dim_, operands.rows);
      for (int i = 0; blind && i < rows.rows; ++i) {
        if (own_.minus_lse2[i] != -__builtin_inff()) continue;
        memset(operands.rows + i * padded_, 0, sizeof(*operands.rows) * padded_);
      }
      head = {operands.rows, padded_, Operands<V>::kDtype};
    }
    load_transposed<V>(head, 0, rows.rows, dim_, factor, transposed);
    operands.pair(head, rows.rows, dim_);
  }

  // A group off the diagonal: the bias is the ramp and one number per row.
  template <int N>
  void linear_group(const Group& g, const TileBias& bias) {
    Acc<V, N> acc;
    Reg off[N];
    for (int v = 0; v < N; ++v) {
      const int lane = v * V::kWidth;
      off[v] = V::add(anchor_bias<V>(bias, lane), V::load(own_.minus_lse2 + lane));
    }
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; ++k) {
      const Reg start = V::set1(own_.ramp[g.k0 + k]);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) acc[k][v] = start;
    }
    finish_group<N>(g, acc, off, [](int, int, Reg x) { return x; });
    if (args_.dslopes == nullptr) return;
    clear_padding<V>(g.keys, acc);
    slope_sum_ = add_distances<V>(acc, g.ahead, slope_sum_);
  }

  // A tile off the diagonal, where registers hold the accumulators of two parts of a group: beside
  // the second product of a part its scores become weights, and beside the first of the next one dP
  // becomes dS.
  template <int N>
  void linear_tile(const KeyTile& tile, const TileBias& bias) {
    constexpr int kPart = V::kKeys / V::kParts, kPieces = kPart / kTerms<V> * N;
    Reg off[N], s[kPart][N], d[kPart][N];
    for (int v = 0; v < N; ++v) {
      const int lane = v * V::kWidth;
      off[v] = V::add(anchor_bias<V>(bias, lane), V::load(own_.minus_lse2 + lane));
    }
    const float ahead = static_cast<float>(-bias.row_offset + bias.anchor);
    const int end = round_up(tile.count, V::kKeys);
    for (int k0 = 0; k0 < end; k0 += kPart) {
      if (k0 % V::kKeys == 0) fetch_.step();
      const int64_t key = this->key_offset(tile.begin + k0);
#pragma GCC unroll 8
      for (int k = 0; k < kPart; ++k) {
        const Reg start = V::set1(own_.ramp[k0 + k]);
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) s[k][v] = start;
      }
      dot_keys_beside<V, kPieces, kAsIs>(own_.q_t, w_.keys + key, padded_, dim_, s, [&](int piece) {
        if (k0 > 0) finish_piece<N>(k0 - kPart, piece, d);
      });
      if (k0 > 0) sum_slope<N>(tile, k0 - kPart, ahead, d);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        const Reg start = V::load(own_.minus_delta + v * V::kWidth);
#pragma GCC unroll 8
        for (int k = 0; k < kPart; ++k) d[k][v] = start;
      }
      dot_keys_beside<V, kPieces, kAsIs>(own_.dout_t, own_.values + key, padded_, dim_, d,
                                         [&](int piece) { weigh_piece<N>(k0, piece, off, s); });
    }
#pragma GCC unroll 16
    for (int piece = 0; piece < kPieces; ++piece) finish_piece<N>(end - kPart, piece, d);
    sum_slope<N>(tile, end - kPart, ahead, d);
  }

  template <int N, int K>
  ALIBI_INLINE void weigh_piece(int k0, int piece, const Reg (&off)[N], const Reg (&s)[K][N]) {
    const int k = piece / N * kTerms<V>, v = piece % N;
    Element<V>* p_t = own_.p_t + (k0 + k) * kRows<V> + v * V::kWidth;
    float* exact = p_exact(p_t, 0);
    if constexpr (kTerms<V> > 1) exact += (k0 + k) % V::kKeys * kRows<V> + v * V::kWidth;
    Reg p[kTerms<V>];
#pragma GCC unroll 2
    for (int t = 0; t < kTerms<V>; ++t) {
      p[t] = Operands<V>::score(s[k + t][v], V::set1(scale2()), off[v]);
    }
    weigh_each<V>(p);
#pragma GCC unroll 2
    for (int t = 0; t < kTerms<V>; ++t) {
      V::store(exact + t * kRows<V>, p[t]);
      if constexpr (kTerms<V> > 1) Operands<V>::store(p_t + t * kRows<V>, p[t]);
    }
  }

  template <int N, int K>
  ALIBI_INLINE void finish_piece(int k0, int piece, Reg (&d)[K][N]) {
    const int k = piece / N * kTerms<V>, v = piece % N, lane = v * V::kWidth;
    const float* exact = p_exact(own_.p_t + (k0 + k) * kRows<V> + lane, 0);
    if constexpr (kTerms<V> > 1) exact += (k0 + k) % V::kKeys * kRows<V> + lane;
    Reg ds[kTerms<V>];
#pragma GCC unroll 2
    for (int t = 0; t < kTerms<V>; ++t) {
      ds[t] = d[k + t][v] = V::mul(d[k + t][v], V::load(exact + t * kRows<V>));
    }
    store_ds(k0 + k, lane, ds);
  }

  template <int N, int K>
  ALIBI_INLINE void sum_slope(const KeyTile& tile, int k0, float ahead, Reg (&d)[K][N]) {
    if (args_.dslopes == nullptr) return;
    clear_padding<V>(tile.count - k0, d);
    slope_sum_ = add_distances<V>(d, ahead - static_cast<float>(k0), slope_sum_);
  }

  // A group on the diagonal: bias and mask pair by pair. `slope` is in the units of the accumulators.
  template <int N>
  void diagonal_group(const Group& g, float slope, bool masked) {
    Acc<V, N> acc;
    Reg off[N], row[N];
    for (int v = 0; v < N; ++v) {
      off[v] = V::load(own_.minus_lse2 + g.lane + v * V::kWidth);
      row[v] = V::add(V::iota(), V::set1(g.ahead + static_cast<float>(v * V::kWidth)));
#pragma GCC unroll 8
      for (int k = 0; k < V::kKeys; ++k) {
        const Reg distance = V::sub(row[v], V::set1(static_cast<float>(k)));
        acc[k][v] = V::mul(V::set1(-slope), V::abs(distance));
      }
    }
    finish_group<N>(g, acc, off, [&](int k, int v, Reg x) {
      const Reg seen = V::select(V::lt(row[v], V::set1(static_cast<float>(k))), V::zero(), x);
      return masked ? seen : x;
    });
    if (args_.dslopes == nullptr) return;
    clear_padding<V>(g.keys, acc);
    slope_sum_ = add_absolute_distances<V, N>(acc, g.ahead, slope_sum_);
  }

  // acc holds the bias, and dS^T afterwards; off is the rest of the bias less lse; `mask` zeroes what
  // the row may not see.
  template <int N, class Mask>
  ALIBI_INLINE void finish_group(const Group& g, Acc<V, N>& acc, const Reg (&off)[N], Mask mask) {
    Element<V>* p_t = own_.p_t + g.k0 * kRows<V> + g.lane;
    float* exact = p_exact(p_t, g.lane);
    const Reg factor = V::set1(scale2());
    dot_keys<V, N>(own_.q_t + g.lane, w_.keys + g.key, padded_, dim_, acc);
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; ++k) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        Reg one[1] = {Operands<V>::score(acc[k][v], factor, off[v])};
        weigh_each<V>(one);
        const Reg p = mask(k, v, one[0]);
        V::store(exact + k * kRows<V> + v * V::kWidth, p);
        if constexpr (kTerms<V> > 1) Operands<V>::store(p_t + k * kRows<V> + v * V::kWidth, p);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      const Reg start = V::load(own_.minus_delta + g.lane + v * V::kWidth);
#pragma GCC unroll 8
      for (int k = 0; k < V::kKeys; ++k) acc[k][v] = start;
    }
    dot_keys<V, N>(own_.dout_t + g.lane, own_.values + g.key, padded_, dim_, acc);
#pragma GCC unroll 8
    for (int k = 0; k < V::kKeys; k += kTerms<V>) {
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        Reg ds[kTerms<V>];
#pragma GCC unroll 2
        for (int t = 0; t < kTerms<V>; ++t) {
          const Reg p = V::load(exact + (k + t) * kRows<V> + v * V::kWidth);
          ds[t] = acc[k + t][v] = mask(k + t, v, V::mul(acc[k + t][v], p));
        }
        store_ds(g.k0 + k, g.lane + v * V::kWidth, ds);
      }
    }
  }

  // Where a group keeps P as float32.
  float* p_exact(Element<V>* p_t, int lane) const {
    if constexpr (kTerms<V> == 1) {
      return p_t;
    } else {
      return own_.p_exact + lane;
    }
  }

  // dS of kTerms keys from number k of the tile on, in every form that is needed.
  ALIBI_INLINE void store_ds(int k, int lane, const Reg (&ds)[kTerms<V>]) {
    Operands<V>::store(w_.ds.lanes + k / kTerms<V> * kRows<V> + lane, ds);
    if constexpr (kTerms<V> > 1) {
#pragma GCC unroll 2
      for (int t = 0; t < kTerms<V>; ++t) {
        Operands<V>::store(w_.ds.rows + (k + t) * kRows<V> + lane, ds[t]);
      }
    }
  }

  AttentionScratch<V> own_;
  RowFetch fetch_;
  Reg slope_sum_ = V::zero();  // of the tile that was computed last
};

template <class V>
void attention_chunks(const void* context, int64_t begin, int64_t end, float* scratch) {
  const auto& call = *static_cast<const AttentionBwdCall<V>*>(context);
  for (int64_t unit = begin; unit < end; ++unit) {
    AttentionChunk<V>(call.chunks, unit, scratch).run();
  }
}

template <class V>
int32_t attention_bwd(const AlibiAttentionBwdArgs& a, int threads) {
  const AlibiProblem& p = a.problem;
  const int dim = static_cast<int>(p.head_dim);
  KeyNormTable<V> norms(p, a.k, a.spans);
  int32_t status = norms.fill(threads);
  if (status != ALIBI_OK) return status;
  const KeyChunks chunks = cut_keys<V>(p, 4);
  const CallBuffers<V> buffers(p, chunks);
  if (!buffers.allocated()) return ALIBI_OUT_OF_MEMORY;
  const AttentionBwdCall<V> call{buffers.call(a, chunks), norms};
  const double rows = static_cast<double>(p.batch) * p.heads_q * p.len_q;
  status = run_items(p.batch * p.heads_q * call.chunks.row_tiles, threads, 4.0 * rows * dim,
                     PrepareScratch<V>(nullptr, dim).floats, &prepare_rows<V>, &call);
  if (status != ALIBI_OK) return status;
  status =
      run_together(chunks.units(), chunks.together(threads), threads, 10.0 * rows * p.len_k * dim,
                   attention_scratch_floats<V>(dim, chunks.keys), &attention_chunks<V>, &call);
  if (status == ALIBI_OK && a.dslopes != nullptr) sum_dslopes(call.chunks);
  return status;
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_ATTENTION_BWD_INL_H_
