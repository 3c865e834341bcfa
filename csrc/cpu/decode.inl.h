// Forward pass for few query rows against many keys: a decode step. The same result as
// attention_fwd.inl.h, where 1 row would leave the other lanes of a tile idle. Here every byte of K
// and V is read once, and reading them is all that should take time.
//
// A unit of work is one chunk of the keys of one (batch item, key head), with all query rows that
// read them: the rows of every query head of the group. Where the rows of a head lie apart because
// those of other heads lie between them, a unit has some of these heads, which take turns block by
// block: what is read is then near together again. Chunk 0 is the keys nearest to the rows:
//
//   keys ->   [ left chunk [ left chunk [ chunk 0 )[ right chunk )     right: without causal mask
//                               rows stand here  ^
//
// A unit walks its chunk in blocks of keys, in the order of memory: the scores of a block, lanes =
// head dim (micro_decode.inl.h); bias, maximum and 2^x, lanes = keys; weights times V. A block is
// as many bytes in any dtype and head dim: K and V take turns, and nothing is read while its scores
// become weights, so that blocks of few bytes wait too often and those of many for too long. Each
// row keeps a true running maximum m, the sum l of its weights relative to 2^m, and o. The parts of
// a row are combined in the order of the chunks. Which chunks there are depends on the shapes, the
// strides, the spans, pruning and whether there are norms, so results do not depend on the threads.
//
// Pruning (docs/maths.md, Rule D). Chunk 0 goes first; its sums tell the other chunks what is
// negligible. Half of 2^-24 may be lost to each of two tests:
// - Weights: the scores of a block need its K; where they turn out to be negligible, its V is left
//   unread. Every chunk may drop its share; lse counts what is dropped.
// - The bound of prune.h: ends a chunk without reading its K, but needs key norms, and computing
//   those would read K. So it applies only when the caller keeps them (key_norms).
//
// Non-finite numbers: as in attention_fwd.inl.h. A key beyond the limit of a row (causal, more rows
// than one) never enters its products.
#ifndef ALIBI_CPU_DECODE_INL_H_
#define ALIBI_CPU_DECODE_INL_H_

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <new>

#include "exp.inl.h"
#include "geometry.h"
#include "micro_decode.inl.h"
#include "parallel.h"
#include "prune.h"
#include "tile_io.inl.h"
#include "work.h"

namespace alibi::cpu {
namespace {

constexpr int64_t kDecodeRows = 8;    // more rows per head are faster in the lanes of a tile
constexpr int64_t kDecodeUnits = 64;  // wanted: enough for many threads; more would be short runs
constexpr int64_t kMinChunkKeys = 512;
constexpr int64_t kBlockBytes = 8192;
constexpr int64_t kMostHeads = 16;    // of a unit
constexpr int64_t kEnoughUnits = 16;  // of several heads
constexpr int64_t kNearKeys = 128;    // of chunk 0 when the others wait for it

ALIBI_INLINE bool is_decode(const AlibiProblem& p) {
  return p.batch > 0 && p.heads_q > 0 && p.len_q > 0 && p.len_q <= kDecodeRows && p.len_k > 0;
}

// Keys of a block: as many as make kBlockBytes of K, in whole blocks of key norms.
constexpr int block_keys(const AlibiProblem& p) {
  const int64_t bytes = p.head_dim * (p.dtype == ALIBI_FLOAT32 ? 4 : 2);
  const int64_t keys = kBlockBytes / bytes / kNormBlock * kNormBlock;
  return keys < kNormBlock ? kNormBlock : keys > kBlockKeys ? kBlockKeys : static_cast<int>(keys);
}

// Among how many units the heads of a batch item are divided. A unit has several where the rows of
// other heads lie between those of a head, as long as there are kEnoughUnits, and no norms that the
// caller keeps, by which every head reads other keys.
ALIBI_INLINE int64_t head_groups(const AlibiAttentionFwdArgs& a) {
  const AlibiProblem& p = a.problem;
  const bool between = a.k.stride_h < a.k.stride_s && a.v.stride_h < a.v.stride_s;
  if (!between || a.key_norms != nullptr) return p.heads_kv;
  const int64_t pieces = p.batch * p.heads_kv * divide_up(p.len_k, kMinChunkKeys);
  return divide_up(p.heads_kv, max_int64(1, min_int64(kMostHeads, pieces / kEnoughUnits)));
}

// One query row of a unit. Sums are relative to 2^m.
struct DecodeRow {
  int64_t position, limit;  // on the key axis, after the moves of geometry.h; it sees keys < limit
  float slope2;             // log2 units
  float m, l;               // maximum, and sum of the weights that reached o
  float near;               // the sum of chunk 0, in the other chunks
  float q_norm, reach;      // for the bound: q_norm * |k| + bias <= reach is negligible
  float dropped, block;     // sums of the weights left out, and of the current block
};

// What a unit leaves about a row, behind its o.
struct DecodePart {
  float m, l, dropped;
};

// The keys of a batch item that some row may see.
struct DecodeKeys {
  KeyRange near, left, right;  // near is chunk 0
  int64_t left_chunks, right_chunks;
  int64_t chunks() const { return near.empty() ? 0 : 1 + left_chunks + right_chunks; }
};

// The order in which the heads take their turns. Norms that are kept leave a head with a gentle slope
// many keys and one with a steep slope few, so the gentle ones come first, of the whole batch.
class DecodeOrder {
 public:
  DecodeOrder(const AlibiProblem& p, const float* slopes)
      : batch_(p.batch), heads_(p.heads_kv), buffer_(2 * sizeof(float) * p.heads_kv) {
    sorted_ = prunable(p) && allocated();
    if (!sorted_) return;
    const int64_t group = p.heads_q / p.heads_kv;
    float* gentlest = buffer_.floats();
    for (int64_t h = 0; h < p.heads_q; ++h) {
      float& least = gentlest[h / group];
      if (h % group == 0 || slopes[h] < least) least = slopes[h];
    }
    order_heads(gentlest, heads_, heads());
  }
  bool allocated() const { return buffer_.data() != nullptr; }

  // Of batch * heads_kv.
  int64_t head(int64_t turn) const {
    return sorted_ ? turn % batch_ * heads_ + heads()[turn / batch_] : turn;
  }

 private:
  int32_t* heads() const { return reinterpret_cast<int32_t*>(buffer_.floats() + heads_); }

  int64_t batch_, heads_;
  Buffer buffer_;
  bool sorted_;
};

template <class V>
struct DecodeCall {
  static_assert(kDecodeRows <= kRows<V>, "the rows of a head are one tile of geometry.h");
  const AlibiAttentionFwdArgs& args;
  int64_t group, rows;                    // query heads of a key head; their query rows
  int64_t head_groups, together;          // of a batch item; key heads of a unit, at most
  int64_t near_keys, chunk_keys, chunks;  // at most so many
  int dim, padded;
  int block;  // keys of a block
  bool prune;
  const KeyNormTable<V>& norms;
  const DecodeOrder& order;
  float* parts;                  // [B * Hkv, chunks, rows] of part_floats()
  int64_t first = 0, count = 0;  // the chunks of this round: [first, first + count)

  DecodeCall(const AlibiAttentionFwdArgs& a, const KeyNormTable<V>& key_norms,
             const DecodeOrder& turns)
      : args(a),
        group(a.problem.heads_q / a.problem.heads_kv),
        rows(group * a.problem.len_q),
        head_groups(cpu::head_groups(a)),
        together(divide_up(a.problem.heads_kv, head_groups)),
        dim(static_cast<int>(a.problem.head_dim)),
        padded(round_up(dim, V::kWidth)),
        block(block_keys(a.problem)),
        prune(prunable(a.problem)),
        norms(key_norms),
        order(turns),
        parts(nullptr) {
    const AlibiProblem& p = a.problem;
    const int64_t even = p.batch * head_groups * p.len_k / kDecodeUnits;
    chunk_keys = max_int64(kMinChunkKeys, (even + block - 1) / block * block);
    near_keys = prune ? kNearKeys : chunk_keys;
    chunks = 2 + (p.len_k + chunk_keys - 1) / chunk_keys;  // both sides may end in a part of one
  }

  int64_t heads() const { return args.problem.batch * args.problem.heads_kv; }
  int64_t part_floats() const { return padded + 16; }
  int64_t scratch_floats() const;  // of a head
  float* part(int64_t head, int64_t chunk, int64_t row) const {
    return parts + ((head * chunks + chunk) * rows + row) * part_floats();
  }
  DecodePart& sums(int64_t head, int64_t chunk, int64_t row) const {
    return *reinterpret_cast<DecodePart*>(part(head, chunk, row) + padded);
  }
  Span span(int64_t head) const {
    return span_of(args.problem, args.spans, head / args.problem.heads_kv);
  }
  RowTile row_tile(const Span& span, int64_t query_head) const {
    RowTile t = make_row_tile<V>(args.problem, span, args.slopes[query_head], 0);
    clamp_rows<V>(span, &t);
    return t;
  }

  // Where a row stands depends on its slope only when no weight falls off on either side (signed, no
  // mask): then any order of the keys will do.
  DecodeKeys keys(const Span& span) const {
    const RowTile t = make_row_tile<V>(args.problem, span, 1.0f, 0);
    const KeyRange left = key_range(t.left.begin, max_int64(t.left.end, t.diagonal.end));
    const int64_t cut = left.empty() ? min_int64(t.right.end, t.right.begin + near_keys)
                                     : max_int64(left.begin, left.end - near_keys);
    DecodeKeys k{{cut, left.end}, {left.begin, cut}, t.right, 0, 0};
    if (left.empty()) k = {{t.right.begin, cut}, left, key_range(cut, t.right.end), 0, 0};
    k.left_chunks = (k.left.end - k.left.begin + chunk_keys - 1) / chunk_keys;
    k.right_chunks = (k.right.end - k.right.begin + chunk_keys - 1) / chunk_keys;
    return k;
  }
  KeyRange chunk(const DecodeKeys& k, int64_t index) const {
    if (index == 0) return k.near;
    const bool left = index <= k.left_chunks;
    const KeyRange& side = left ? k.left : k.right;
    const int64_t begin = side.begin + (index - 1 - (left ? 0 : k.left_chunks)) * chunk_keys;
    return {begin, min_int64(begin + chunk_keys, side.end)};
  }
};

template <class V>
struct DecodeScratch {
  float* q;    // [rows][padded], in log2 units
  float* s;    // [rows][kBlockKeys]: scores, then weights
  float* sum;  // [padded]: add_values
  DecodeRow* row;
  int64_t floats;

  DecodeScratch(float* base, const DecodeCall<V>& call) {
    Carver carve{base, 0};
    q = carve.take(call.rows * call.padded);
    s = carve.take(call.rows * kBlockKeys);
    sum = carve.take(call.padded);
    row = reinterpret_cast<DecodeRow*>(carve.take(call.rows * (sizeof(DecodeRow) / sizeof(float))));
    floats = carve.used;
  }
};

template <class V>
int64_t DecodeCall<V>::scratch_floats() const {
  return DecodeScratch<V>(nullptr, *this).floats;
}

// kMost: no block has more keys. Where blocks are small, the compiler knows it.
template <class V, int kMost>
class DecodeUnit {
 public:
  DecodeUnit(const DecodeCall<V>& call, int64_t head, int64_t chunk, float* scratch)
      : call_(call),
        problem_(call.args.problem),
        head_(head),
        chunk_(chunk),
        span_(call.span(head)),
        keys_(call.keys(span_)),
        w_(scratch, call),
        o_(call.part(head, chunk, 0)) {
    const int64_t b = head / problem_.heads_kv, g = head % problem_.heads_kv;
    k_ = head_view(call.args.k, problem_.dtype, b, g);
    v_ = head_view(call.args.v, problem_.dtype, b, g);
  }

  // Begins, and returns the keys to take in, the same ones for every head of a unit.
  KeyRange begin() {
    if (chunk_ >= keys_.chunks()) return {0, 0};
    for (int64_t r = 0; r < call_.rows; ++r) {
      load_row(r);
      memset(o_ + r * call_.part_floats(), 0, sizeof(float) * call_.padded);
    }
    all_ = call_.chunk(keys_, chunk_);
    reach_ = within_reach(all_);
    return reach_;
  }

  // Takes in the block that begins at a key.
  void take(int64_t key) {
    const int count = min_int(block(), reach_.end - key);
    score(key, count);
    if (!weigh(key, count)) return;
    add(key, count);
    ++visited_;
  }

  void finish() const {
    if (all_.empty()) return;
    count_work(call_.args.options, visited_, blocks(all_));
    count_decode(call_.args.options, blocks(reach_), 0);
    for (int64_t r = 0; r < call_.rows; ++r) {
      const DecodeRow& row = w_.row[r];
      call_.sums(head_, chunk_, r) = {row.m, row.l, row.dropped};
    }
  }

  int block() const { return kMost == kNormBlock ? kMost : min_int(kMost, call_.block); }

 private:
  void load_row(int64_t r) {
    const int64_t b = head_ / problem_.heads_kv, g = head_ % problem_.heads_kv;
    const int64_t h = g * call_.group + r / problem_.len_q, i = r % problem_.len_q;
    const typename V::Reg factor = V::set1(problem_.scale * kLog2E);
    with_row(head_view(call_.args.q, problem_.dtype, b, h), i, [&](const auto* src) {
      for (int d = 0; d < call_.padded; d += V::kWidth) {
        const typename V::Reg x = V::load_first(src + d, min_int(V::kWidth, call_.dim - d));
        V::store(w_.q + r * call_.padded + d, V::mul(x, factor));
      }
    });
    const RowTile t = call_.row_tile(span_, h);
    const int64_t first = static_cast<int64_t>(t.first_row);
    const int64_t last = static_cast<int64_t>(t.last_row);
    DecodeRow& row = w_.row[r];
    row.position = t.pos0 + min_int64(last, max_int64(first, i));
    row.limit = problem_.causal != 0 ? min_int64(span_.kv_end, row.position + 1) : span_.kv_end;
    limit_ = r == 0 ? row.limit : min_int64(limit_, row.limit);
    row.slope2 = t.slope2;
    row.m = -FLT_MAX;
    row.l = row.near = row.dropped = 0.0f;
    drops_ = call_.prune && (r == 0 || drops_) && call_.args.slopes[h] > 0;
    linear_ = t.linear;
    if (!call_.prune || chunk_ == 0) return;
    const DecodePart& near = call_.sums(head_, 0, r);
    row.m = near.m;
    row.near = near.l;
    if (!drops_) return;
    row.q_norm = enlarged_norm(squared_norm<V>(w_.q + r * call_.padded, call_.padded));
    row.reach = static_cast<float>(::log2(static_cast<double>(near.l)) + near.m) -
                prune_constant(problem_, call_.args.slopes[h]);
  }

  int64_t blocks(const KeyRange& keys) const {
    return (keys.end - keys.begin + block() - 1) / block();
  }

  // The chunk without the far end that the bound proves negligible.
  KeyRange within_reach(const KeyRange& keys) const {
    const KeyNorms norms = call_.norms.head(head_ / problem_.heads_kv, head_ % problem_.heads_kv);
    if (chunk_ == 0 || !drops_ || norms.prefix == nullptr) return keys;
    if (chunk_ <= keys_.left_chunks) {
      int64_t last = keys.end - 1;
      while (last >= keys.begin && !negligible(norms.prefix, last)) last -= kNormBlock;
      return {max_int64(keys.begin, last + 1), keys.end};
    }
    int64_t first = keys.begin;
    while (first < keys.end && !negligible(norms.suffix, first)) first += kNormBlock;
    return {keys.begin, min_int64(keys.end, first)};
  }

  // Is the run of keys that begins at `next` and goes outward negligible for every row?
  bool negligible(const float* norms, int64_t next) const {
    for (int64_t r = 0; r < call_.rows; ++r) {
      const DecodeRow& row = w_.row[r];
      if (row.limit <= span_.kv_start) continue;  // sees nothing
      const float bias = row.slope2 * -__builtin_fabsf(static_cast<float>(next - row.position));
      if (!(row.q_norm * norms[next / kNormBlock] + bias <= row.reach)) return false;
    }
    return true;
  }

  // Keys of the block that row r sees.
  int seen(int64_t r, int64_t begin, int count) const {
    return static_cast<int>(max_int64(0, min_int64(count, w_.row[r].limit - begin)));
  }

  // Calls f(Count<N>(), first row, keys) for groups of rows that see the same keys of a block.
  template <class F>
  void for_rows(int64_t begin, int count, F&& f) const {
    if (begin + count <= limit_) {
      for_row_groups(call_.rows, [&](auto n, int64_t r) { f(n, r, count); });
      return;
    }
    for (int64_t r = 0; r < call_.rows; ++r) {
      const int keys = seen(r, begin, count);
      if (keys > 0) f(Count<1>(), r, keys);
    }
  }

  void score(int64_t begin, int count) {
    with_row(k_, begin, [&](const auto* keys) {
      for_rows(begin, count, [&](auto n, int64_t r, int seen_keys) {
        constexpr int N = decltype(n)::value;
        with_dim(call_.dim, [&](auto kDim) {
          dot_rows<V, decltype(kDim)::value, N>(w_.q + r * call_.padded, call_.padded, keys,
                                                k_.stride, seen_keys, call_.dim, prefetch(k_, r, N),
                                                w_.s + r * kBlockKeys);
        });
      });
    });
  }

  // Few rows ask for keys that are just ahead. More of them take their time over a block, so each
  // group asks for its share of the next one; and rows that lie apart need more time to arrive.
  Prefetch prefetch(const HeadView& head, int64_t r, int64_t n) const {
    const int64_t size = problem_.dtype == ALIBI_FLOAT32 ? 4 : 2, bytes = call_.dim * size;
    const int64_t begin = bytes * r / call_.rows / 64 * 64;
    const int64_t end = r + n == call_.rows ? bytes : bytes * (r + n) / call_.rows / 64 * 64;
    const bool near = call_.rows <= 4 && head.stride == call_.dim;
    return {(near ? kAheadKeys : block()) * head.stride * size + begin, end - begin};
  }

  // Scores become weights. False: no row needs the values of this block.
  bool weigh(int64_t begin, int count) {
    bool needed = !drops_;
    const float share = kDropShare / static_cast<float>(keys_.chunks());
    for (int64_t r = 0; r < call_.rows; ++r) {
      DecodeRow& row = w_.row[r];
      row.block = weigh_row(r, begin, seen(r, begin, count));
      needed |= !(row.dropped + row.block <= share * (row.near + row.l));
    }
    for (int64_t r = 0; r < call_.rows; ++r) {
      (needed ? w_.row[r].l : w_.row[r].dropped) += w_.row[r].block;
    }
    return needed;
  }

  float weigh_row(int64_t r, int64_t begin, int count) {
    DecodeRow& row = w_.row[r];
    float* s = w_.s + r * kBlockKeys;
    const float distance = static_cast<float>(begin - row.position);
    const typename V::Reg none = V::set1(-__builtin_inff()), slope = V::set1(row.slope2);
    typename V::Reg largest = none;
    for (int k = 0; k < count; k += V::kWidth) {
      const typename V::Reg lane = V::add(V::iota(), V::set1(static_cast<float>(k)));
      const typename V::Reg ahead = V::add(lane, V::set1(distance));
      const typename V::Reg bias = linear_ ? ahead : V::sub(V::zero(), V::abs(ahead));
      typename V::Reg x = V::fma(slope, bias, V::load(s + k));
      x = V::select(V::lt(lane, V::set1(static_cast<float>(count))), x, none);
      largest = V::max(x, largest);  // NaN is passed over
      V::store(s + k, x);
    }
    if (V::any(V::lt(V::set1(row.m), largest))) raise(r, largest);
    const typename V::Reg m = V::set1(row.m);
    typename V::Reg sum = V::zero();
    for (int k = 0; k < count; k += V::kWidth) {
      const typename V::Reg p = exp2<V>(V::sub(V::load(s + k), m));
      sum = V::add(sum, p);
      V::store(s + k, p);
    }
    return V::reduce_add(sum);
  }

  // The maximum of row r grows: what has been summed is rescaled.
  void raise(int64_t r, typename V::Reg largest) {
    DecodeRow& row = w_.row[r];
    float lanes[V::kWidth];
    V::store(lanes, largest);
    const float old = row.m;
    for (const float x : lanes) row.m = x > row.m ? x : row.m;
    const typename V::Reg factor = exp2<V>(V::set1(old - row.m));
    V::store(lanes, factor);
    row.l *= lanes[0];
    row.near *= lanes[0];
    row.dropped *= lanes[0];
    float* o = o_ + r * call_.part_floats();
    for (int d = 0; d < call_.padded; d += V::kWidth) {
      V::store(o + d, V::mul(factor, V::load(o + d)));
    }
  }

  void add(int64_t begin, int count) {
    with_row(v_, begin, [&](const auto* values) {
      for_rows(begin, count, [&](auto n, int64_t r, int seen_keys) {
        constexpr int N = decltype(n)::value;
        with_dim(call_.dim, [&](auto kDim) {
          add_values<V, decltype(kDim)::value, N>(
              w_.s + r * kBlockKeys, values, v_.stride, seen_keys, call_.dim, prefetch(v_, r, N),
              o_ + r * call_.part_floats(), call_.part_floats(), w_.sum);
        });
      });
    });
  }

  const DecodeCall<V>& call_;
  const AlibiProblem& problem_;
  const int64_t head_, chunk_;
  const Span span_;
  const DecodeKeys keys_;
  const DecodeScratch<V> w_;
  float* const o_;
  HeadView k_, v_;
  KeyRange all_{0, 0}, reach_{0, 0};  // the chunk, and what of it is within reach
  int64_t visited_ = 0;               // blocks whose values were needed
  int64_t limit_ = 0;                 // the smallest of the rows
  bool drops_ = false, linear_ = false;
};

template <class V, int kMost>
void decode_unit(const void* context, int64_t index, float* scratch) {
  using Unit = DecodeUnit<V, kMost>;
  const auto& call = *static_cast<const DecodeCall<V>*>(context);
  const int64_t heads_kv = call.args.problem.heads_kv, turn = index / call.count;
  const int64_t first = turn % call.head_groups * call.together;
  const int count = min_int(call.together, heads_kv - first);
  alignas(Unit) unsigned char memory[kMostHeads * sizeof(Unit)];
  Unit* units = reinterpret_cast<Unit*>(memory);
  KeyRange keys{0, 0};
  for (int i = 0; i < count; ++i) {
    const int64_t head =
        call.together == 1 ? call.order.head(turn) : turn / call.head_groups * heads_kv + first + i;
    if (call.prune && call.first == 0) call.norms.fill_one(head);
    float* own = scratch + i * call.scratch_floats();
    keys = (new (units + i) Unit(call, head, call.first + index % call.count, own))->begin();
  }
  for (int64_t key = keys.begin; key < keys.end; key += units->block()) {
    for (int i = 0; i < count; ++i) units[i].take(key);
  }
  for (int i = 0; i < count; ++i) units[i].finish();
}

// out and lse of the rows of one key head, from their parts.
template <class V>
void combine_parts(const void* context, int64_t head, float* o) {
  const auto& call = *static_cast<const DecodeCall<V>*>(context);
  const AlibiAttentionFwdArgs& a = call.args;
  const AlibiProblem& p = a.problem;
  const int64_t b = head / p.heads_kv, g = head % p.heads_kv;
  const Span span = call.span(head);
  const int64_t chunks = call.keys(span).chunks();
  for (int64_t r = 0; r < call.rows; ++r) {
    const int64_t h = g * call.group + r / p.len_q, i = r % p.len_q;
    float m = -FLT_MAX, l = 0.0f, dropped = 0.0f;
    for (int64_t c = 0; c < chunks; ++c) {
      const DecodePart& part = call.sums(head, c, r);
      m = part.m > m ? part.m : m;
    }
    memset(o, 0, sizeof(float) * call.padded);
    for (int64_t c = 0; c < chunks; ++c) {
      const DecodePart& part = call.sums(head, c, r);
      const typename V::Reg factor = exp2<V>(V::set1(part.m - m));
      float lanes[V::kWidth];
      V::store(lanes, factor);
      l += lanes[0] * part.l;
      dropped += lanes[0] * part.dropped;
      const float* from = call.part(head, c, r);
      for (int d = 0; d < call.padded; d += V::kWidth) {
        V::store(o + d, V::fma(factor, V::load(from + d), V::load(o + d)));
      }
    }
    // A row that may see nothing: out is 0, lse -inf.
    const typename V::Reg scale = V::set1(l == 0.0f ? 0.0f : 1.0f / l);
    with_row(head_view(a.out, p.dtype, b, h), i, [&](auto* dst) {
      for (int d = 0; d < call.dim; d += V::kWidth) {
        V::store_first(dst + d, V::mul(scale, V::load(o + d)), min_int(V::kWidth, call.dim - d));
      }
    });
    const RowTile t = call.row_tile(span, h);
    const double moved = (static_cast<double>(m) + ::log2(static_cast<double>(l + dropped))) * kLn2;
    a.lse[(b * p.heads_q + h) * p.len_q + i] = static_cast<float>(
        moved + static_cast<double>(a.slopes[h]) * row_shift(t, static_cast<int>(i)));
  }
}

template <class V>
int32_t decode_fwd(const AlibiAttentionFwdArgs& a, int threads) {
  const AlibiProblem& p = a.problem;
  const KeyNormTable<V> norms(p, a.k, a.spans, a.key_norms, a.key_norms != nullptr);
  const DecodeOrder order(p, a.slopes);
  if (!norms.allocated() || !order.allocated()) return ALIBI_OUT_OF_MEMORY;
  DecodeCall<V> call(a, norms, order);
  const int64_t heads = call.heads();
  const Buffer parts(sizeof(float) * heads * call.chunks * call.rows * call.part_floats());
  if (parts.data() == nullptr) return ALIBI_OUT_OF_MEMORY;
  call.parts = parts.floats();
  const int64_t scratch = call.together * call.scratch_floats();
  const int64_t near = call.prune ? 1 : 0;  // chunks that the others wait for
  const int64_t rounds[][2] = {{0, near}, {near, call.chunks - near}};
  const WorkItem unit =
      call.block == kNormBlock ? &decode_unit<V, kNormBlock> : &decode_unit<V, kBlockKeys>;
  for (const auto& [first, count] : rounds) {
    call.first = first;
    call.count = count;
    const int64_t keys = first == near ? p.len_k : min_int64(p.len_k, kNearKeys);
    const double pairs = static_cast<double>(heads * call.rows) * keys;
    const int32_t status = run_items(p.batch * call.head_groups * count, threads,
                                     4.0 * pairs * p.head_dim, scratch, unit, &call);
    if (status != ALIBI_OK) return status;
  }
  count_decode(a.options, 0, heads * call.rows);
  const double sums = 2.0 * heads * call.chunks * call.rows * call.part_floats();
  return run_items(heads, threads, sums, call.padded, &combine_parts<V>, &call);
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_DECODE_INL_H_
