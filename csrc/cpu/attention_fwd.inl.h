// Forward pass of fused ALiBi attention, a tile or a few of query rows at a time, key tiles visited
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
//   P^T = 2^(S^T + off)      off_i = bias(i, anchor) - m_i; 2^x and the row sums run while the
//                            scores are in registers (geometry.h explains ramp and anchor), in
//                            units of exp.inl.h, which cancel
//   O^T += V P^T             accumulators stay in registers for the whole tile
//
// The maximum is lazy. m_i is the true row maximum of the first tile visited, after which it is
// only a reference: sums may grow to 2^24 units above it without losing anything in float32.
// One comparison per tile finds the rows that outgrow it; then, and only then, the tile's true
// maximum is taken, what has been summed is rescaled, and the tile is computed again. With ordinary
// inputs and positive slopes the diagonal is near the maximum and nothing is ever computed twice.
//
// Pruning (prune.h) leaves out the keys from some distance on, and before that the values of tiles
// whose weights, known by then, are negligible: one of the two products.
//
// Only the diagonal tile has a mask. Vectors, or halves of them, that lie wholly above the diagonal
// are left out (first_tile.inl.h).
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
#include "first_tile.inl.h"
#include "geometry.h"
#include "log.inl.h"
#include "micro.inl.h"
#include "parallel.h"
#include "prune.h"
#include "scores.inl.h"
#include "tile_io.inl.h"
#include "tuning.h"
#include "work.h"

namespace alibi::cpu {
namespace {

constexpr float kLazyLimit = 0x1p24f;

// Row tiles of one head that an item works on together, at most: a tile of keys that has to be
// converted is converted once for all of them.
constexpr int kRowGroup = 4;

// The second-level cache. How many row tiles make it worth while to copy the keys of their head.
constexpr int64_t kCacheBytes = 1024 * 1024;
constexpr int64_t kCopyTiles = 4;

// The scratch of one row tile and of one thread, cut from one block of floats.
template <class V>
struct FwdRows {
  Lane<V>* q_t;              // [lanes of dim][kRows]
  float* o_t;                // [dim][kRows]
  float *row_max, *row_sum;  // [kRows]: m_i and l_i
  float* dropped;            // [kRows]: weights of the keys whose values were left out
  float* q_norm;             // [kRows]

  void carve(Carver* carver, int dim) {
    q_t = carver->take<Lane<V>>(transposed_scratch<V>(lanes_of<V>(dim)));
    o_t = carver->take(transposed_scratch<V>(dim));
    row_max = carver->take(kRows<V>);
    row_sum = carver->take(kRows<V>);
    dropped = carver->take(kRows<V>);
    q_norm = carver->take(kRows<V>);
  }
};
template <class V>
struct FwdScratch {
  float* s_t;        // [kTileKeys][kRows]: scores of the first tile
  Lane<V>* p_t;      // [lanes of kTileKeys][kRows], where s_t is
  Element<V>* keys;  // copies of tiles that cannot be read in place
  Lane<V>* values;
  float* ramp;            // [kRampFloats]
  Element<V>* head_keys;  // copies of a whole head, where the call keeps one
  Lane<V>* head_values;
  FwdRows<V> rows[kRowGroup];
  int64_t floats;

  // kept: keys of a head that are copied.
  FwdScratch(float* base, int dim, int64_t kept) {
    Carver carver{base, 0};
    for (FwdRows<V>& r : rows) r.carve(&carver, dim);
    head_keys = carver.take<Element<V>>(row_scratch<V>(static_cast<int>(kept), dim));
    head_values = carver.take<Lane<V>>(row_scratch<V>(lanes_of<V>(static_cast<int>(kept)), dim));
    s_t = carver.take(kTileKeys * kRows<V>);
    p_t = reinterpret_cast<Lane<V>*>(s_t);
    keys = carver.take<Element<V>>(row_scratch<V>(kTileKeys, dim));
    values = carver.take<Lane<V>>(row_scratch<V>(lanes_of<V>(kTileKeys), dim));
    ramp = carver.take(kRampFloats);
    floats = carver.used;
  }
};

// A row tile on its way through the keys.
template <class V>
struct FwdTile {
  RowTile rows;
  PruneTest<V> prune;
  int64_t visited;
  bool open;  // there may be more keys to visit on this side of the diagonal
};

// A tile of keys, ready for the products; its values only once they are needed.
template <class V>
struct LoadedTile {
  KeyRange range;
  KeyRows<V> keys;
  ValueRows<V> values;
};

// The operands of the keys of a head from key `first` on, where they have been copied.
template <class V>
struct CopiedHead {
  int64_t first = 0;
  KeyRows<V> keys{nullptr, 0};
  ValueRows<V> values{nullptr, 0};
};

template <class V>
struct FwdCall {
  const AlibiAttentionFwdArgs& args;
  const KeyNormTable<V>& norms;
  const HeadOrder& order;
  int64_t group;   // row tiles of an item; the first item of a head may have fewer
  int64_t groups;  // items of a head
  int64_t kept;    // keys of a head that are copied; 0: none

  int64_t key_head(int64_t head) const {
    return head / (args.problem.heads_q / args.problem.heads_kv);
  }
};

// Whether a thread works on the rows of a head by itself, so that its keys and values, or a copy of
// them, stay near. Where pruning makes the heads differ, a long one alone may be most of the work.
template <class V>
bool head_fits(const AlibiProblem& p) {
  const int64_t most = (p.prune != 0 ? kTerms<V> : 4) * kCacheBytes;
  const int64_t dim = round_up(static_cast<int>(p.head_dim), V::kWidth);
  return p.len_k <= most / (2 * dim * static_cast<int64_t>(sizeof(Element<V>)));
}

// Whether a call copies its heads: those that fit, if they have to be converted or padded, or if their
// rows lie so far apart that they share few sets of the cache. At 8192 keys of 64 dims that is 4 MB a
// thread. Not where pruning leaves most of them to none of the rows.
template <class V>
bool copies_heads(const AlibiAttentionFwdArgs& a) {
  const AlibiProblem& p = a.problem;
  if (!head_fits<V>(p)) return false;
  if (p.prune != 0 && p.len_q < p.len_k / 2) return false;
  const int64_t row = a.k.stride_s + a.v.stride_s;
  const bool apart =
      row > 2 * int64_t{p.head_dim} && row * p.len_k * int64_t{sizeof(Element<V>)} > kCacheBytes;
  return kTerms<V> > 1 || p.dtype != Operands<V>::kDtype || p.head_dim % V::kKeys != 0 || apart;
}

// Copies what the rows of the items up to `last` may see. Pairs of keys begin where most tiles do: an
// even number of keys before where the rows end.
template <class V>
CopiedHead<V> copy_head(const FwdCall<V>& call, const RowItem& item, int64_t last,
                        const FwdScratch<V>& w) {
  const AlibiProblem& p = call.args.problem;
  const int dim = static_cast<int>(p.head_dim);
  const int64_t head = call.key_head(item.head);
  const HeadView k = head_view(call.args.k, p.dtype, item.batch, head);
  const HeadView v = head_view(call.args.v, p.dtype, item.batch, head);
  const Span span = span_of(p, call.args.spans, item.batch);
  const int64_t rows_end = span.q_start + p.len_q;
  const int64_t first = span.kv_start + ((rows_end - span.kv_start) & (kTerms<V> - 1));
  const int64_t hidden = (call.groups - 1 - last) * call.group * kRows<V>;
  const int64_t end = p.causal != 0 ? min_int64(span.kv_end, rows_end - hidden) : span.kv_end;
  const int count = static_cast<int>(max_int64(0, end - first));
  const int64_t padded = round_up(dim, V::kWidth);
  with_operand_row<V>(k, first, [&](const auto* src) {
    copy_rows<V>(src, k.stride, count, dim, w.head_keys, kRowsAhead);
  });
  if constexpr (kTerms<V> > 1) {
    const auto* src = static_cast<const Element<V>*>(v.data) + first * v.stride;
    pair_rows<V>(src, v.stride, count, dim, w.head_values);
  } else {
    with_row(v, first, [&](const auto* src) {
      copy_rows<V>(src, v.stride, count, dim, w.head_values, kRowsAhead);
    });
  }
  return {first, {w.head_keys, padded}, {w.head_values, padded}};
}

// How many row tiles share their keys: one where keys are used as they are and stay near, else as many
// as leave enough items for many threads. It depends on the shape and the CPU alone, because it
// decides where tiles of keys begin and so how sums are rounded.
template <class V>
int64_t row_group(const AlibiProblem& p) {
  constexpr int64_t kItems = 16;
  const int64_t bytes = 2 * p.len_k * p.head_dim * int64_t{sizeof(Element<V>)};
  if (p.dtype == Operands<V>::kDtype && bytes < tuning().far_bytes) return 1;
  const int64_t tiles = p.batch * p.heads_q * row_tiles<V>(p);
  return max_int64(1, min_int64(kRowGroup, tiles / kItems));
}

// One work item: some tiles of query rows of one head.
template <class V>
class FwdItem {
  using Reg = typename V::Reg;

 public:
  FwdItem(const FwdCall<V>& call, const RowItem& item, const CopiedHead<V>& copied,
          const FwdScratch<V>& scratch)
      : args_(call.args),
        p_(call.args.problem),
        w_(scratch),
        copied_(copied),
        dim_(static_cast<int>(p_.head_dim)),
        halves_(tuning().halves) {
    const int64_t end = row_tiles<V>(p_) - (call.groups - 1 - item.tile) * call.group;
    unread_ = item.tile == call.groups - 1 && copied.keys.data == nullptr;
    head_ = item.head;
    batch_ = item.batch;
    first_tile_ = max_int64(0, end - call.group);
    count_ = static_cast<int>(end - first_tile_);
    const int64_t kv_head = call.key_head(head_);
    k_ = head_view(args_.k, p_.dtype, batch_, kv_head);
    v_ = head_view(args_.v, p_.dtype, batch_, kv_head);
    norms_ = call.norms.head(batch_, kv_head);
    slope_ = args_.slopes[head_];
  }

  void run() {
    for (int g = 0; g < count_; ++g) start_rows(g);
    fetch_rows();
    for (int g = 0; g < count_; ++g) {
      const RowTile& rows = tiles_[g].rows;
      if (!rows.diagonal.empty()) {
        LoadedTile<V> loaded = load(rows.diagonal);
        visit(g, true, -rows.slope2, loaded);
        ++allowed_;
      }
    }
    walk_side(true);
    walk_side(false);
    int64_t visited = 0;
    for (int g = 0; g < count_; ++g) {
      finish_rows(g);
      visited += tiles_[g].visited;
    }
    count_work(args_.options, visited, allowed_);
  }

 private:
  float scale2() const { return p_.scale * kLog2E; }
  HeadView query_view(const AlibiTensor& tensor) const {
    return head_view(tensor, p_.dtype, batch_, head_);
  }
  // Tiles whose last keys or pairs would not be padded with zeros are loaded by themselves.
  LoadedTile<V> load(KeyRange range) const {
    const int count = static_cast<int>(range.end - range.begin);
    const int64_t at = range.begin - copied_.first;
    if (copied_.keys.data != nullptr && count % V::kKeys == 0 && at >= 0 && at % kTerms<V> == 0) {
      return {
          range,
          {copied_.keys.data + at * copied_.keys.stride, copied_.keys.stride},
          {copied_.values.data + at / kTerms<V> * copied_.values.stride, copied_.values.stride}};
    }
    return {range, load_keys<V>(k_, range.begin, count, dim_, w_.keys), {nullptr, 0}};
  }
  const ValueRows<V>& values_of(LoadedTile<V>& loaded) const {
    if (loaded.values.data == nullptr) {
      const int count = static_cast<int>(loaded.range.end - loaded.range.begin);
      loaded.values = load_values<V>(v_, loaded.range.begin, count, dim_, w_.values);
    }
    return loaded.values;
  }

  void start_rows(int g) {
    const Span span = span_of(p_, args_.spans, batch_);
    const FwdRows<V>& w = w_.rows[g];
    FwdTile<V>& t = tiles_[g];
    t.rows = make_row_tile<V>(p_, span, slope_, first_tile_ + g);
    clamp_rows<V>(span, &t.rows);
    const int64_t row0 = t.rows.row0;
    load_transposed<V>(query_view(args_.q), row0, t.rows.rows, dim_, scale2(), w.q_t);
    for (int i = 0; i < kRows<V>; ++i) {
      w.row_max[i] = -FLT_MAX;
      w.row_sum[i] = w.dropped[i] = 0.0f;
    }
    t.prune = PruneTest<V>(p_, norms_, slope_, t.rows, w.q_t, w.q_norm, kWeightUnit<V>);
    t.visited = 0;
  }

  // The rows of out are written last; those of q that the next item most likely reads lie before
  // these. Both are on their way meanwhile.
  void fetch_rows() {
    const int64_t row0 = tiles_[0].rows.row0;
    int64_t rows = 0, groups = 0;
    for (int g = 0; g < count_; ++g) {
      const RowTile& t = tiles_[g].rows;
      rows += t.rows;
      groups += (t.left.end - t.left.begin + t.right.end - t.right.begin) / V::kKeys;
    }
    fetch_.begin(from_row(query_view(args_.q), max_int64(0, row0 - rows)), {},
                 from_row(query_view(args_.out), row0), rows, dim_, groups);
  }

  // The keys on one side of the diagonal: each row tile by itself up to where the last one begins,
  // from there on all together.
  void walk_side(bool left) {
    auto side = [&](int g) { return left ? tiles_[g].rows.left : tiles_[g].rows.right; };
    KeyRange shared = side(0);
    for (int g = 0; g < count_; ++g) {
      tiles_[g].open = true;
      if (left) {
        shared.end = min_int64(shared.end, side(g).end);
      } else if (side(g).begin > shared.begin) {
        shared = side(g);
      }
    }
    for (int g = 0; g < count_; ++g) {
      const KeyRange own = left ? key_range(shared.end, side(g).end)
                                : key_range(side(g).begin, min_int64(side(g).end, shared.begin));
      walk_run(own, left, g, g + 1);
    }
    walk_run(shared, left, 0, count_);
  }

  // A run of keys that the row tiles [first, last) see, tile by tile, nearest first. A row tile stops
  // where the bound proves that the rest cannot matter; its last tile of keys may be a part of one.
  void walk_run(KeyRange run, bool left, int first, int last) {
    const float gradient = left ? tiles_[first].rows.slope2 : tiles_[first].rows.right_gradient;
    auto nearest = [&](int count) {
      return left ? KeyRange{run.end - count, run.end} : KeyRange{run.begin, run.begin + count};
    };
    if (!run.empty()) allowed_ += (last - first) * count_tiles(run);
    while (!run.empty()) {
      const int whole = min_int(kTileKeys, run.end - run.begin);
      int reach[kRowGroup];
      bool any = false;
      for (int g = first; g < last; ++g) {
        const FwdTile<V>& t = tiles_[g];
        reach[g] = !t.open          ? 0
                   : t.visited == 0 ? whole
                                    : t.prune.reach(gradient, left ? run.end - 1 : run.begin, left,
                                                    whole, w_.rows[g].row_max, w_.rows[g].row_sum);
        tiles_[g].open = reach[g] == whole;
        any |= t.open;
      }
      if (any) {
        LoadedTile<V> loaded = load(nearest(whole));
        for (int g = first; g < last; ++g) {
          if (tiles_[g].open) visit(g, false, gradient, loaded);
        }
      }
      for (int g = first; g < last; ++g) {
        if (tiles_[g].open || reach[g] == 0) continue;
        LoadedTile<V> loaded = load(nearest(reach[g]));
        visit(g, false, gradient, loaded);
      }
      if (!any) return;
      (left ? run.end : run.begin) += left ? -whole : whole;
    }
  }

  void visit(int g, bool diagonal, float gradient, LoadedTile<V>& loaded) {
    FwdTile<V>& t = tiles_[g];
    const KeyTile tile{loaded.range.begin, static_cast<int>(loaded.range.end - loaded.range.begin),
                       diagonal, gradient};
    if (t.visited++ == 0) {
      const bool masked = diagonal && p_.causal != 0;
      return masked && tile.begin == t.rows.pos0 && halves_
                 ? absorb_first<typename V::Narrow>(t.rows, w_.rows[g], tile, masked, loaded)
                 : absorb_first<V>(t.rows, w_.rows[g], tile, masked, loaded);
    }
    with_count<V::kRowVecs>(
        t.rows.vecs, [&](auto n) { absorb<decltype(n)::value>(t, w_.rows[g], tile, loaded); });
  }

  // Takes in the first tile visited: exact maximum first, then weights.
  template <class Step>
  void absorb_first(const RowTile& rows, const FwdRows<V>& w, const KeyTile& tile, bool masked,
                    LoadedTile<V>& loaded) {
    first_scores<V, Step>(p_, rows, tile, loaded.keys, w.q_t, w_.ramp, w.row_max, w_.s_t);
    const ValueRows<V>& values = values_of(loaded);
    for_parts<V, Step>(rows, tile, masked, [&](auto part, int lane, int begin, int end) {
      using P = decltype(part);
      exponentiate<typename P::Vec, P::kCount>(w_.s_t + begin * kRows<V> + lane, end - begin,
                                               w.row_max + lane, w.row_sum + lane,
                                               w_.p_t + begin / kTerms<V> * kRows<V> + lane);
    });
    const bool finite = first_products<V, Step>(rows, tile, masked, w_.p_t, values, dim_, w.o_t);
    if (masked && !finite) products_below_diagonal<V>(rows, tile, w_.p_t, values, dim_, w.o_t);
  }

  // Takes in a tile off the diagonal, its values only if some row needs them.
  template <int N>
  void absorb(const FwdTile<V>& t, const FwdRows<V>& w, const KeyTile& tile,
              LoadedTile<V>& loaded) {
    const RowTile& rows = t.rows;
    const TileBias bias = tile_bias(rows, tile);
    fill_ramp<V>(bias, tile.count, Operands<V>::ramp_factor(scale2()), w_.ramp);
    for (bool raised = false;; raised = true) {
      Reg off[N], l[N];
      for (int v = 0; v < N; ++v) {
        const int lane = v * V::kWidth;
        const Reg row = row_positions<V>(rows, lane);
        off[v] = V::sub(anchor_bias<V>(bias, row), V::load(w.row_max + lane));
      }
      fetch_.follow(unread_ ? from_row(v_, tile.begin) : HeadView{}, V::kKeys);
      weigh_tile<V, N>(w.q_t, loaded.keys, tile.count, dim_, scale2(), w_.ramp, off, l, w_.p_t,
                       fetch_);
      if (t.prune.enabled() && drop<N>(w, l)) return;
      bool outgrown = false;
      for (int v = 0; v < N; ++v) {
        l[v] = V::add(V::load(w.row_sum + v * V::kWidth), l[v]);
        outgrown |= V::any(V::lt(V::set1(kLazyLimit * kWeightUnit<V>), l[v]));
      }
      if (!outgrown || raised) {
        for (int v = 0; v < N; ++v) V::store(w.row_sum + v * V::kWidth, l[v]);
        break;
      }
      raise_reference<N>(rows, w, loaded.keys, tile.count, bias);
    }
    const ValueRows<V>& values = values_of(loaded);
    add_products<V, N, kFetchAhead>(w_.p_t, values.data, values.stride, lanes_of<V>(tile.count),
                                    dim_, w.o_t);
  }

  // Leaves out a tile whose weights l, with those dropped before, are negligible for every row.
  template <int N>
  static bool drop(const FwdRows<V>& w, const Reg (&l)[N]) {
    Reg dropped[N];
    for (int v = 0; v < N; ++v) {
      dropped[v] = V::add(V::load(w.dropped + v * V::kWidth), l[v]);
      const Reg most = V::mul(V::set1(kDropShare), V::load(w.row_sum + v * V::kWidth));
      if (!V::all(V::le(dropped[v], most))) return false;
    }
    for (int v = 0; v < N; ++v) V::store(w.dropped + v * V::kWidth, dropped[v]);
    return true;
  }

  // Raises the references of the rows to the true maximum of this tile where that is larger, and
  // rescales their sums.
  template <int N>
  void raise_reference(const RowTile& rows, const FwdRows<V>& w, const KeyRows<V>& keys, int count,
                       const TileBias& bias) {
    Reg largest[N], factor[N];
    max_scores<V, N>(w.q_t, keys, count, dim_, scale2(), w_.ramp, largest);
    for (int v = 0; v < N; ++v) {
      const int lane = v * V::kWidth;
      const Reg old = V::load(w.row_max + lane);
      const Reg now =
          V::max(V::add(largest[v], anchor_bias<V>(bias, row_positions<V>(rows, lane))), old);
      factor[v] = exp2<V>(V::sub(old, now));
      V::store(w.row_max + lane, now);
      V::store(w.row_sum + lane, V::mul(V::load(w.row_sum + lane), factor[v]));
      V::store(w.dropped + lane, V::mul(V::load(w.dropped + lane), factor[v]));
    }
    for (int d = 0; d < dim_; ++d) {
      for (int v = 0; v < N; ++v) {
        float* o = w.o_t + d * kRows<V> + v * V::kWidth;
        V::store(o, V::mul(V::load(o), factor[v]));
      }
    }
  }

  // out = O^T / l, transposed back, and lse in natural units. row_sum becomes 1 / l. A row that may
  // see nothing: out is 0, lse -inf.
  void finish_rows(int g) {
    const RowTile rows = tiles_[g].rows;
    const FwdRows<V> w = w_.rows[g];
    if (tiles_[g].visited == 0) memset(w.o_t, 0, sizeof(float) * transposed_scratch<V>(dim_));
    const double slope = static_cast<double>(slope_);
    float* lse = args_.lse + (batch_ * p_.heads_q + head_) * p_.len_q + rows.row0;
    double moved[kRows<V>];
    for (int i = 0; i < rows.rows; i += Doubles<V>::kWidth) {
      const auto sum = Doubles<V>::load(w.row_sum + i) + Doubles<V>::load(w.dropped + i);
      const auto units = sum * (1.0 / static_cast<double>(kWeightUnit<V>));
      const auto x = (Doubles<V>::load(w.row_max + i) + Doubles<V>::log2(units)) * kLn2;
      memcpy(moved + i, &x, sizeof(x));
    }
    for (int i = 0; i < rows.rows; ++i) {
      lse[i] = static_cast<float>(moved[i] + slope * row_shift(rows, i));
    }
    for (int i = 0; i < rows.vecs * V::kWidth; i += V::kWidth) {
      const Reg sum = V::load(w.row_sum + i);
      const Reg inverse = V::div(V::set1(1.0f), sum);
      V::store(w.row_sum + i, V::select(V::eq(sum, V::zero()), sum, inverse));
    }
    store_transposed<V>(w.o_t, w.row_sum, rows.rows, dim_, query_view(args_.out), rows.row0);
  }

  const AlibiAttentionFwdArgs& args_;
  const AlibiProblem& p_;
  const FwdScratch<V>& w_;
  const CopiedHead<V>& copied_;
  const int dim_;
  const bool halves_;  // a masked tile of keys may take its half vectors by themselves
  int64_t batch_, head_, first_tile_;
  int64_t allowed_ = 0;  // tiles of keys, of all rows together
  int count_;            // tiles of rows
  bool unread_;          // the first item of a head that is not copied: its values may be far away
  HeadView k_, v_;
  KeyNorms norms_;
  float slope_;
  FwdTile<V> tiles_[kRowGroup] = {};
  RowFetch fetch_;
};

// A run of items, head by head.
template <class V>
void attention_fwd_run(const void* context, int64_t begin, int64_t end, float* scratch) {
  const auto& call = *static_cast<const FwdCall<V>*>(context);
  const AlibiProblem& p = call.args.problem;
  const FwdScratch<V> w(scratch, static_cast<int>(p.head_dim), call.kept);
  // Items in a row that share their keys: pruning parts the heads of a group.
  const int64_t items = call.groups * (p.prune != 0 ? 1 : p.heads_q / p.heads_kv);
  while (begin < end) {
    const int64_t stop = call.kept == 0 ? end : min_int64(end, (begin / items + 1) * items);
    CopiedHead<V> copied;
    if (call.kept != 0 && (stop - begin) * call.group >= kCopyTiles) {
      const RowItem item = call.order.item(begin, call.groups);
      const bool one_head = begin / call.groups == (stop - 1) / call.groups;
      copied = copy_head(call, item, one_head ? item.tile : call.groups - 1, w);
    }
    for (; begin < stop; ++begin) {
      FwdItem<V>(call, call.order.item(begin, call.groups), copied, w).run();
    }
  }
}

template <class V>
int32_t attention_fwd(const AlibiAttentionFwdArgs& a, int threads) {
  const AlibiProblem& p = a.problem;
  if (is_decode(p)) return decode_fwd<V>(a, threads);
  KeyNormTable<V> norms(p, a.k, a.spans, a.key_norms);
  const int32_t status = norms.fill(threads);
  if (status != ALIBI_OK) return status;
  const HeadOrder order(p, a.slopes);
  if (!order.allocated()) return ALIBI_OUT_OF_MEMORY;
  const int64_t group = row_group<V>(p);
  const int64_t kept = copies_heads<V>(a) ? p.len_k : 0;
  const FwdCall<V> call{a, norms, order, group, divide_up(row_tiles<V>(p), group), kept};
  const FwdScratch<V> layout(nullptr, static_cast<int>(p.head_dim), kept);
  const double pairs = static_cast<double>(p.batch * p.heads_q) * p.len_q * p.len_k;
  // A thread that has the rows of a head to itself is the only one to fetch its keys and values, and
  // that has the heads of a batch item, which may share lines of the cache, the only one to write them.
  const int64_t together = !head_fits<V>(p) ? 1
                           : p.prune != 0   ? call.groups
                                            : call.groups * p.heads_q;
  return run_together(p.batch * p.heads_q * call.groups, together, threads,
                      4.0 * pairs * p.head_dim, layout.floats, &attention_fwd_run<V>, &call);
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_ATTENTION_FWD_INL_H_
