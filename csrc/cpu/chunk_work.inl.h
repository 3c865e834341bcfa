// What the backward passes of both operations do with a chunk of keys, given the tiles of dS^T that
// an operation computes:
//
//   dQ^T += K^T dS^T     dK += dS^T Q     dslope += sum dS_ij dbias_ij
//
// ChunkWork is that loop: for the query heads that share the keys, or a part of these heads, and
// every tile of rows that sees some keys, the tiles of keys left of the diagonal, on it and right of it
// (geometry.h). An operation (attention_bwd.inl.h, weights_bwd.inl.h) derives from it and fills in
//
//   load_keys(), add_keys()         its own tensors of the chunk, if any
//   load_rows(rows, head, h)        q, and whatever dS needs of a tile of rows
//   fetch_rows(h, sum, begin, end, groups)   may have rows that come next fetched; dq's go to `sum`
//   compute_tile(rows, tile)        dS^T of one tile, in units of kUnit
//   slope_sum(rows, tile)           of that tile: sum dS_ij (j - p_i), on the diagonal |p_i - j|
//   add_strip(...)                  its own gradients, for keys that the same row vectors see
#ifndef ALIBI_CPU_CHUNK_WORK_INL_H_
#define ALIBI_CPU_CHUNK_WORK_INL_H_

#include <stdint.h>
#include <string.h>

#include "geometry.h"
#include "key_chunks.inl.h"
#include "micro.inl.h"
#include "micro_bwd.inl.h"
#include "scores.inl.h"
#include "tile_io.inl.h"
#include "work.h"

namespace alibi::cpu {
namespace {

// Keys of a tile. P^T and dS^T together take 24 KB with AVX-512.
constexpr int kBwdTileKeys = 64;

// What the first phase leaves about one tile of rows.
struct PreparedTile {
  KeyRange keys;        // what it visits; empty: its part of dq is already written, as 0
  double shift_dslope;  // its part of dslopes that moving the rows took out of the scores
};

// One call, as all threads see it.
template <class Args>
struct ChunkCall {
  const Args& args;
  const KeyChunks chunks;
  const Turns turns;
  const int64_t row_tiles;     // per query head
  PreparedTile* const tiles;   // [B, Hq, row_tiles]
  float* const dq_sum;         // [B, Hq, Sq, D], or null: dq is float32, or there is one chunk only
  float* const key_sums[2];    // dk and dv: [B, Hkv, Sk, D], or null, likewise
  double* const dslope_parts;  // [chunks, B, Hq]
  float* const row_values[2];  // [B, Hq, Sq] each: what the operation keeps about each row

  int64_t group() const { return args.problem.heads_q / args.problem.heads_kv; }
  double* dslope_part(int64_t chunk, int64_t b, int64_t h) const {
    return dslope_parts + (chunk * args.problem.batch + b) * args.problem.heads_q + h;
  }
};

// The memory of a ChunkCall.
template <class V>
struct CallBuffers {
  Buffer done, tiles, dq_sum, key_sums[2], dslope_parts, rows;

  CallBuffers(const AlibiProblem& p, const KeyChunks& chunks)
      : done(sizeof(int64_t) * chunks.units()),
        tiles(sizeof(PreparedTile) * p.batch * p.heads_q * row_tiles<V>(p)),
        dq_sum(sums_apart(p, chunks.count) * p.heads_q * p.len_q),
        key_sums{Buffer(sums_apart(p, chunks.parts) * p.heads_kv * p.len_k),
                 Buffer(sums_apart(p, chunks.parts) * p.heads_kv * p.len_k)},
        dslope_parts(sizeof(double) * p.batch * p.heads_q * chunks.count),
        rows(sizeof(float) * 2 * p.batch * p.heads_q * p.len_q) {}

  bool allocated() const {
    return done.data() != nullptr && tiles.data() != nullptr && dq_sum.data() != nullptr &&
           key_sums[0].data() != nullptr && key_sums[1].data() != nullptr &&
           dslope_parts.data() != nullptr && rows.data() != nullptr;
  }

  template <class Args>
  ChunkCall<Args> call(const Args& args, const KeyChunks& chunks) const {
    const AlibiProblem& p = args.problem;
    const bool dq_apart = sums_apart(p, chunks.count) > 0;
    const bool keys_apart = sums_apart(p, chunks.parts) > 0;
    return {
        args,
        chunks,
        Turns(static_cast<int64_t*>(done.data()), chunks.units()),
        row_tiles<V>(p),
        static_cast<PreparedTile*>(tiles.data()),
        dq_apart ? dq_sum.floats() : nullptr,
        {keys_apart ? key_sums[0].floats() : nullptr, keys_apart ? key_sums[1].floats() : nullptr},
        static_cast<double*>(dslope_parts.data()),
        {rows.floats(), rows.floats() + p.batch * p.heads_q * p.len_q}};
  }

 private:
  // Bytes for the sums of a gradient while `shares` of it are added, per head and position; 0: they
  // stand in the gradient itself.
  static size_t sums_apart(const AlibiProblem& p, int64_t shares) {
    return p.dtype == ALIBI_FLOAT32 || shares == 1 ? 0 : sizeof(float) * p.batch * p.head_dim;
  }
};

// The rows of a tile of q or dout, as elements and as lanes of kTerms rows (the same memory where
// kTerms is 1).
template <class V>
struct RowOperands {
  Element<V>* rows;  // [kRows][padded dim]
  Lane<V>* lanes;    // [kRows / kTerms][padded dim]

  void carve(Carver* carver, int dim) {
    rows = carver->take<Element<V>>(row_scratch<V>(kRows<V>, dim));
    if constexpr (kTerms<V> == 1) {
      lanes = rows;
    } else {
      lanes = carver->take<Lane<V>>(row_scratch<V>(lanes_of<V>(kRows<V>), dim));
    }
  }
  // Lanes of the first n rows of a head.
  void pair(const HeadView& head, int n, int dim) const {
    if constexpr (kTerms<V> > 1) {
      pair_rows<V>(static_cast<const Element<V>*>(head.data), head.stride, n, dim, lanes);
    }
  }
  const Lane<V>* from(int row, int padded) const { return lanes + row / kTerms<V> * padded; }
};

// A^T of a tile, for the sums over keys (lanes) and over rows (elements); where kTerms is 1 both are
// the same memory.
template <class V>
struct TileOperands {
  Element<V>* rows;  // [kBwdTileKeys][kRows]
  Lane<V>* lanes;    // [kBwdTileKeys / kTerms][kRows]

  void carve(Carver* carver) {
    rows = carver->take<Element<V>>(kBwdTileKeys * kRows<V>);
    if constexpr (kTerms<V> == 1) {
      lanes = rows;
    } else {
      lanes = carver->take<Lane<V>>(lanes_of<V>(kBwdTileKeys) * kRows<V>);
    }
  }
};

template <class V>
struct ChunkScratch {
  Element<V>* keys;               // [chunk + kKeys][padded dim]; the last kKeys rows only pad
  Lane<V>* key_lanes[kTerms<V>];  // lanes of the keys i, i + 1, ..., for each i < kTerms
  Lane<V>* last_keys;             // [padded dim]: one lane that is not full
  float* dkeys;                   // as keys
  RowOperands<V> q;
  float* dq_t;  // [dim][kRows]
  TileOperands<V> ds;

  void carve(Carver* carver, int dim, int64_t chunk_keys) {
    const int64_t padded = round_up(dim, V::kWidth), chunk = (chunk_keys + V::kKeys) * padded;
    keys = carver->take<Element<V>>(chunk);
    if constexpr (kTerms<V> == 1) {
      key_lanes[0] = keys;
    } else {
      for (Lane<V>*& lanes : key_lanes) lanes = carver->take<Lane<V>>(chunk / kTerms<V>);
      last_keys = carver->take<Lane<V>>(padded);
    }
    dkeys = carver->take(chunk);
    q.carve(carver, dim);
    dq_t = carver->take(transposed_scratch<V>(dim));
    ds.carve(carver);
  }
};

template <class V, class Args, class Operation>
class ChunkWork {
 public:
  // One unit of work.
  void run() {
    load_head_keys(args_.k, w_.keys);
    pair_keys();
    clear_keys(w_.dkeys);
    self().load_keys();
    const int64_t part = call_.chunks.part(unit_), parts = call_.chunks.parts;
    for (int64_t i = part * call_.group() / parts; i < (part + 1) * call_.group() / parts; ++i) {
      dslope_ = 0.0;
      // Last rows first: under a causal mask those are the rows that every chunk begins with.
      for (int64_t item = 0; item < call_.row_tiles; ++item) {
        visit_rows(kv_head_ * call_.group() + i, call_.row_tiles - 1 - item,
                   i * call_.row_tiles + item);
      }
      *call_.dslope_part(call_.chunks.chunk(unit_), b_, kv_head_ * call_.group() + i) =
          dslope_ / Operation::kUnit;
    }
    if (part > 0) call_.turns.wait(call_.chunks.previous_part(unit_), Turns::kAllItems);
    add_head_keys(w_.dkeys, problem_.scale / Operation::kUnit, args_.dk, call_.key_sums[0]);
    self().add_keys();
    call_.turns.finish(unit_, Turns::kAllItems);
  }

 protected:
  ChunkWork(const ChunkCall<Args>& call, int64_t unit)
      : call_(call),
        args_(call.args),
        problem_(call.args.problem),
        unit_(unit),
        b_(call.chunks.head(unit) / problem_.heads_kv),
        kv_head_(call.chunks.head(unit) % problem_.heads_kv),
        chunk_(call.chunks.range(unit, problem_.len_k)),
        dim_(static_cast<int>(problem_.head_dim)),
        padded_(round_up(dim_, V::kWidth)) {}

  // Copies the keys (or values) of the chunk that any row may see; the others stay unread, as they may
  // hold anything. The rest of the last group is zero.
  void load_head_keys(const AlibiTensor& tensor, Element<V>* dst) const {
    const KeyRange seen = seen_keys();
    if (seen.empty()) return;
    copy_operand_rows<V>(head_view(tensor, problem_.dtype, b_, kv_head_), seen.begin,
                         static_cast<int>(seen.end - seen.begin), dim_,
                         dst + key_offset(seen.begin), kRowsAhead);
    memset(dst + key_offset(seen.end), 0, sizeof(*dst) * V::kKeys * padded_);
  }
  void clear_keys(float* dst) const {
    memset(dst, 0, sizeof(*dst) * (chunk_.end - chunk_.begin) * padded_);
  }
  // Adds what this unit has summed to a gradient of the keys; `sums` is one of key_sums.
  void add_head_keys(const float* src, float factor, const AlibiTensor& tensor, float* sums) const {
    const HeadView result = head_view(tensor, problem_.dtype, b_, kv_head_);
    const int64_t head = call_.chunks.head(unit_), part = call_.chunks.part(unit_);
    add_rows<V>(src, factor, chunk_.end - chunk_.begin, dim_,
                {sums_view(sums, head * problem_.len_k, result), result, part == 0,
                 part == call_.chunks.parts - 1},
                chunk_.begin);
  }
  // Offset, in the copies, of key j.
  int64_t key_offset(int64_t j) const { return (j - chunk_.begin) * padded_; }

  const ChunkCall<Args>& call_;
  const Args& args_;
  const AlibiProblem& problem_;
  const int64_t unit_, b_, kv_head_;
  const KeyRange chunk_;
  const int dim_, padded_;
  ChunkScratch<V> w_;

 private:
  Operation& self() { return static_cast<Operation&>(*this); }

  KeyRange seen_keys() const {
    const Span span = span_of(problem_, args_.spans, b_);
    const int64_t past = span.q_start + problem_.len_q;  // the last row
    const int64_t end = problem_.causal != 0 ? min_int64(span.kv_end, past) : span.kv_end;
    return intersect(chunk_, {span.kv_start, end});
  }

  // Tiles begin at any key: lanes that begin at even keys serve the ones, lanes that begin at odd
  // keys the others.
  void pair_keys() const {
    if constexpr (kTerms<V> > 1) {
      const KeyRange seen = seen_keys();
      for (int64_t first = seen.begin; first < min_int64(seen.end, seen.begin + kTerms<V>);
           ++first) {
        pair_rows<V>(w_.keys + key_offset(first), padded_, static_cast<int>(seen.end - first),
                     padded_, key_lanes(first));
      }
    }
  }
  Lane<V>* key_lanes(int64_t key) const {
    const int64_t i = key - chunk_.begin;
    return w_.key_lanes[i % kTerms<V>] + i / kTerms<V> * padded_;
  }

  // Where the sums of a head stand: from row number `row` of `sums` on, or in the gradient itself.
  HeadView sums_view(float* sums, int64_t row, const HeadView& result) const {
    return sums == nullptr ? result : HeadView{sums + row * dim_, dim_, ALIBI_FLOAT32};
  }

  // Tile t of the rows of head h; `item` is its number in the order of turns.
  void visit_rows(int64_t h, int64_t t, int64_t item) {
    const int64_t head = b_ * problem_.heads_q + h;
    const KeyRange visited = call_.tiles[head * call_.row_tiles + t].keys;
    const KeyRange keys = intersect(visited, chunk_);
    if (keys.empty()) return;
    const RowTile rows =
        make_row_tile<V>(problem_, span_of(problem_, args_.spans, b_), args_.slopes[h], t);
    const HeadView dq = head_view(args_.dq, problem_.dtype, b_, h);
    const HeadView sum = sums_view(call_.dq_sum, head * problem_.len_q, dq);
    self().load_rows(rows, head, h);
    const PreparedTile* tile = &call_.tiles[head * call_.row_tiles + t];
    const bool more = t > 0 && !intersect(tile[-1].keys, chunk_).empty();
    self().fetch_rows(h, sum, more ? max_int64(0, rows.row0 - kRows<V>) : rows.row0, rows.row0,
                      divide_up(keys.end - keys.begin, V::kKeys));
    memset(w_.dq_t, 0, sizeof(float) * transposed_scratch<V>(dim_));
    const bool linear = problem_.bias == ALIBI_SIGNED && problem_.causal == 0;
    visit_run(rows, intersect(rows.left, keys), false, rows.slope2, 1.0f);
    visit_run(rows, intersect(rows.diagonal, keys), true, -rows.slope2, -1.0f);
    visit_run(rows, intersect(rows.right, keys), false, rows.right_gradient, linear ? 1.0f : -1.0f);

    const bool first = visited.begin >= chunk_.begin, last = visited.end <= chunk_.end;
    if (!first) call_.turns.wait(call_.chunks.previous_chunk(unit_), item);
    add_share<V>(w_.dq_t, problem_.scale / Operation::kUnit, rows.rows, dim_,
                 {sum, dq, first, last}, rows.row0);
    call_.turns.finish(unit_, item);
  }

  // The keys of one run, tile by tile from its end. dbias/dslope is sign * (j - p_i), on the diagonal
  // sign * |p_i - j|.
  void visit_run(const RowTile& rows, KeyRange keys, bool diagonal, float gradient, float sign) {
    for (int64_t end = keys.end; end > keys.begin;) {
      const int count = min_int(kBwdTileKeys, end - keys.begin);
      end -= count;
      const KeyTile tile{end, count, diagonal, gradient};
      self().compute_tile(rows, tile);
      add_gradients(rows, tile);
      if (args_.dslopes != nullptr) dslope_ += sign * self().slope_sum(rows, tile);
    }
  }

  void add_gradients(const RowTile& rows, const KeyTile& tile) {
    const bool masked = tile.diagonal && problem_.causal != 0;
    for_strips<V>(rows, tile, masked, [&](auto n, int first, int begin, int end) {
      constexpr int N = decltype(n)::value;
      const int lane = first * V::kWidth, count = end - begin;
      const int64_t key = key_offset(tile.begin + begin);
      add_query_gradient<N>(tile.begin + begin, begin, count, lane);
      add_outer<V>(w_.ds.rows + begin * kRows<V> + lane, w_.q.from(lane, padded_), padded_,
                   lanes_of<V>(rows.rows - lane), count, padded_, w_.dkeys + key, padded_);
      self().add_strip(rows, begin, count, lane, key);
    });
  }

  // dQ^T += K^T dS^T for `count` keys from `key` on, number `begin` of the tile. What stands beside
  // the last key of an odd number may be a key that the rows must not see, so that lane is made
  // anew.
  template <int N>
  void add_query_gradient(int64_t key, int begin, int count, int lane) {
    Lane<V>* ds = w_.ds.lanes + begin / kTerms<V> * kRows<V> + lane;
    float* dq_t = w_.dq_t + lane;
    add_products<V, N>(ds, key_lanes(key), padded_, count / kTerms<V>, dim_, dq_t);
    if constexpr (kTerms<V> > 1) {
      if (count % kTerms<V> == 0) return;
      ds += count / kTerms<V> * kRows<V>;
      for (int v = 0; v < N; ++v) {
        Lane<V>* last = ds + v * V::kWidth;
        Operands<V>::store_lanes(last, Operands<V>::first_term(Operands<V>::load(last)));
      }
      pair_rows<V>(w_.keys + key_offset(key + count - 1), padded_, 1, padded_, w_.last_keys);
      add_products<V, N>(ds, w_.last_keys, padded_, 1, dim_, dq_t);
    }
  }

  double dslope_ = 0.0;
};

// dslopes from the sums that tiles and chunks have left, in a fixed order.
template <class Args>
void sum_dslopes(const ChunkCall<Args>& call) {
  const AlibiProblem& p = call.args.problem;
  for (int64_t h = 0; h < p.heads_q; ++h) {
    double sum = 0.0;
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t c = 0; c < call.chunks.count; ++c) {
        sum += *call.dslope_part(c, b, h);
      }
      for (int64_t t = 0; t < call.row_tiles; ++t) {
        sum += call.tiles[(b * p.heads_q + h) * call.row_tiles + t].shift_dslope;
      }
    }
    call.args.dslopes[h] = static_cast<float>(sum);
  }
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_CHUNK_WORK_INL_H_
