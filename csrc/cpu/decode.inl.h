// Forward pass for few query rows against many keys: a decode step. The same result as
// attention_fwd.inl.h, where 1 row would leave the other lanes of a tile idle. Here every byte of K
// and V is read once, and reading them is all that should take time.
//
// A unit of work is one chunk of the keys of one (batch item, key head), with all query rows that
// read them: the rows of every query head of the group. Where the rows of a head lie apart because
// those of other heads lie between them, a unit has these heads, too, and they take turns, a few
// keys each: what is read is then near together again. Chunk 0 is the keys nearest to the rows:
//
//   keys ->   [ left chunk [ left chunk [ chunk 0 )[ right chunk )     right: without causal mask
//                               rows stand here  ^
//
// A unit walks its chunk in blocks of keys, in the order of memory: the scores of a block, lanes =
// head dim (micro_decode.inl.h); bias, maximum and 2^x, lanes = keys; weights times V. A block is
// as many bytes in any head dim: K and V take turns, and nothing is read while its scores become
// weights, so that blocks of few bytes wait too often and those of many for too long. How many bytes,
// and how far ahead to ask for the next ones, is the CPU's (tuning.h). Each row keeps a true running
// maximum m, the sum l of its weights relative to 2^m, and o. The parts of a row are combined in the
// order of the chunks. Which chunks there are depends on the shapes, the strides, the spans, pruning
// and whether there are norms, so results do not depend on the threads.
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

#include "decode_call.inl.h"
#include "exp.inl.h"
#include "geometry.h"
#include "micro_decode.inl.h"
#include "parallel.h"
#include "prune.h"
#include "tile_io.inl.h"
#include "work.h"

namespace alibi::cpu {
namespace {

template <class V>
struct DecodeScratch {
  float* q;    // [rows][padded], in log2 units; or terms, where they are pairs (decode_call.inl.h)
  float* s;    // [rows][kBlockKeys]: scores, then weights
  float* l;    // [rows][kWidth]: sums of weights, lane by lane, where no block may be dropped
  float* sum;  // [padded]: add_values
  float* factor;  // [rows]: what sums from before this block are worth
  DecodeRow* row;
  int64_t floats;

  DecodeScratch(float* base, const DecodeCall<V>& call) {
    Carver carve{base, 0};
    q = carve.take(call.rows * call.padded);
    s = carve.take(call.rows * kBlockKeys);
    l = carve.take(call.rows * V::kWidth);
    sum = carve.take(call.padded);
    factor = carve.take(call.rows);
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

  // Takes in the block that begins at a key: all scores of `count` units of a chunk, then those of
  // their values that are needed.
  static void take(DecodeUnit* units, int count, int64_t key) {
    DecodeUnit* turns[kMostHeads] = {};
    const int keys = min_int(units->block(), units->reach_.end - key);
    for (int i = 0; i < count; ++i) turns[i] = units + i;
    in_turns(
        turns, count, keys, kTurnKeys, &DecodeUnit::k_,
        [&](DecodeUnit& u, int first, int n, int64_t ahead) { u.score(key, first, n, ahead); });
    int needed = 0;
    for (int i = 0; i < count; ++i) {
      if (units[i].weigh(key, keys)) turns[needed++] = units + i;
    }
    in_turns(turns, needed, keys, kTurnValues, &DecodeUnit::v_,
             [&](DecodeUnit& u, int first, int n, int64_t ahead) { u.add(key, first, n, ahead); });
    for (int i = 0; i < needed; ++i) ++turns[i]->visited_;
  }

  void finish() const {
    if (all_.empty()) return;
    count_work(call_.args.options, visited_, blocks(all_));
    count_decode(call_.args.options, blocks(reach_), 0);
    for (int64_t r = 0; r < call_.rows; ++r) {
      const DecodeRow& row = w_.row[r];
      const float l = row.l + V::reduce_add(V::load(lanes(r)));
      call_.sums(head_, chunk_, r) = {row.m, l, row.dropped};
    }
  }

  int block() const { return kMost == kNormBlock ? kMost : min_int(kMost, call_.block); }

 private:
  void load_row(int64_t r) {
    const int64_t b = head_ / problem_.heads_kv, g = head_ % problem_.heads_kv;
    const int64_t h = g * call_.group + r / problem_.len_q, i = r % problem_.len_q;
    with_query(r,
               [&](auto* q) { load_query(head_view(call_.args.q, problem_.dtype, b, h), i, q); });
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
    V::store(lanes(r), V::zero());
    drops_ = call_.prune && (r == 0 || drops_) && call_.args.slopes[h] > 0;
    linear_ = t.linear;
    if (!call_.prune || chunk_ == 0) return;
    const DecodePart& near = call_.sums(head_, 0, r);
    row.m = near.m;
    row.near = near.l;
    if (!drops_) return;
    with_query(r, [&](const auto* q) {
      const float norm = enlarged_norm(squared_norm<V>(q, call_.padded));
      row.q_norm = call_.pairs ? norm * Operands<V>::norm_factor(scale2()) : norm;
    });
    row.reach = static_cast<float>(::log2(static_cast<double>(near.l)) + near.m) -
                prune_constant(problem_, call_.args.slopes[h]);
  }

  float scale2() const { return problem_.scale * kLog2E; }
  float* lanes(int64_t r) const { return w_.l + r * V::kWidth; }

  // Calls f(row r of q).
  template <class F>
  void with_query(int64_t r, F&& f) const {
    if constexpr (kTerms<V> > 1) {
      if (call_.pairs) return f(reinterpret_cast<Element<V>*>(w_.q) + r * call_.padded);
    }
    f(w_.q + r * call_.padded);
  }

  // Zeros beyond the head dim.
  template <class Q>
  void load_query(const HeadView& head, int64_t i, Q* q) const {
    with_operand_row<V>(head, i, [&](const auto* src) {
      for (int d = 0; d < call_.padded; d += V::kWidth) {
        const int n = static_cast<int>(max_int64(0, min_int64(V::kWidth, call_.dim - d)));
        if constexpr (sizeof(Q) == sizeof(float)) {
          V::store(q + d, V::mul(V::load_first(src + d, n), V::set1(scale2())));
        } else {
          Operands<V>::copy(src + d, n, q + d);
        }
      }
    });
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

  // Calls f(unit, first key of the block, keys, bytes to ask ahead) for the turns of some units. Several
  // rows per head are bound by arithmetic and take in a block in one go.
  template <class F>
  static void in_turns(DecodeUnit* const* units, int count, int keys, int turn,
                       HeadView DecodeUnit::* view, F&& f) {
    if (count == 0) return;
    const DecodeCall<V>& call = units[0]->call_;
    if (call.together == 1) return f(*units[0], 0, keys, units[0]->ahead(units[0]->*view));
    const void* heads[kMostHeads];
    for (int i = 0; i < count; ++i) heads[i] = (units[i]->*view).data;
    for_turns(heads, count, (units[0]->*view).stride * call.size(), keys,
              call.rows == 1 ? turn : call.block, call.lead,
              [&](int i, int first, int n, int64_t ahead) { f(*units[i], first, n, ahead); });
  }

  // Scores, and below products with values, of some keys of the block that begins at a key.
  void score(int64_t block_begin, int first, int count, int64_t ahead) {
    const int64_t begin = block_begin + first;
    with_operand_row<V>(k_, begin, [&](const auto* keys) {
      for_rows(begin, count, [&](auto n, int64_t r, int seen_keys) {
        constexpr int N = decltype(n)::value;
        with_dim(call_.dim, [&](auto kDim) {
          with_query(r, [&](const auto* q) {
            dot_rows<V, decltype(kDim)::value, N>(q, call_.padded, keys, k_.stride, seen_keys,
                                                  call_.dim, prefetch(ahead, r, N),
                                                  w_.s + r * kBlockKeys + first);
          });
        });
      });
    });
  }

  // How far ahead a head asks that takes no turns. Few rows ask for keys that are just ahead. More of
  // them take their time over a block, so they ask for the next one; and rows that lie apart need more
  // time to arrive.
  int64_t ahead(const HeadView& head) const {
    const bool near = call_.rows <= 4 && head.stride == call_.dim;
    return near ? call_.ahead : block() * head.stride * call_.size();
  }

  // Each group of rows asks for its share of a key.
  Prefetch prefetch(int64_t ahead, int64_t r, int64_t n) const {
    const int64_t bytes = call_.dim * call_.size();
    if (n == call_.rows) return {ahead, bytes, call_.near};
    const int64_t begin = bytes * r / call_.rows / 64 * 64;
    const int64_t end = r + n == call_.rows ? bytes : bytes * (r + n) / call_.rows / 64 * 64;
    return {ahead + begin, end - begin, call_.near};
  }

  // Scores become weights. Where the maximum of a row grows, what was summed before is worth less: its
  // factor, for which the sums of values have to be visited, too. False: no row needs this block.
  bool weigh(int64_t begin, int count) {
    for_row_groups(call_.rows,
                   [&](auto n, int64_t r) { weigh_rows<decltype(n)::value>(r, begin, count); });
    if (!drops_) return true;
    bool needed = false;
    const float share = kDropShare / static_cast<float>(keys_.chunks());
    for (int64_t r = 0; r < call_.rows; ++r) {
      const DecodeRow& row = w_.row[r];
      needed |= !(row.dropped + row.block <= share * (row.near + row.l) && w_.factor[r] == 1.0f);
    }
    for (int64_t r = 0; r < call_.rows; ++r) {
      (needed ? w_.row[r].l : w_.row[r].dropped) += w_.row[r].block;
    }
    return needed;
  }

  // N rows side by side: each waits for its maximum.
  template <int N>
  void weigh_rows(int64_t r, int64_t begin, int count) {
    using Reg = typename V::Reg;
    DecodeRow* row = w_.row + r;
    float* s = w_.s + r * kBlockKeys;
    Reg m[N], sum[N];
    add_bias<N>(r, begin, count, m);
    float factor[V::kWidth] = {};
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const float old = row[n].m, largest = V::reduce_max(m[n]);
      row[n].m = largest > old ? largest : old;
      factor[n] = old - row[n].m;
      m[n] = V::set1(row[n].m);
      sum[n] = V::zero();
    }
    V::store(factor, exp2<V>(V::load(factor)));
    for (int k = 0; k < count; k += V::kWidth) {
      Reg p[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) p[n] = V::sub(V::load(s + n * kBlockKeys + k), m[n]);
      exp2_each<V>(p);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        sum[n] = V::add(sum[n], p[n]);
        V::store(s + n * kBlockKeys + k, p[n]);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      w_.factor[r + n] = factor[n];
      if (drops_) {
        row[n].block = V::reduce_add(sum[n]);
        row[n].l *= factor[n];
        row[n].near *= factor[n];
        row[n].dropped *= factor[n];
      } else {
        V::store(lanes(r + n), V::fma(V::load(lanes(r + n)), V::set1(factor[n]), sum[n]));
      }
    }
  }

  // The scores of N rows take in the bias; largest[n]: lanes whose maximum is that of a row. -inf beyond
  // the keys that a row sees.
  template <int N>
  void add_bias(int64_t r, int64_t begin, int count, typename V::Reg (&largest)[N]) {
    using Reg = typename V::Reg;
    const Reg none = V::set1(-__builtin_inff()), factor = V::set1(call_.pairs ? scale2() : 1.0f);
    float end[N], distance[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      largest[n] = none;
      end[n] = static_cast<float>(seen(r + n, begin, count));
      distance[n] = static_cast<float>(begin - w_.row[r + n].position);
    }
    for (int k = 0; k < count; k += V::kWidth) {
      const Reg lane = V::add(V::iota(), V::set1(static_cast<float>(k)));
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        float* s = w_.s + (r + n) * kBlockKeys + k;
        const Reg ahead = V::add(lane, V::set1(distance[n]));
        const Reg bias = linear_ ? ahead : V::sub(V::zero(), V::abs(ahead));
        Reg x = V::fma(V::set1(w_.row[r + n].slope2), bias, Operands<V>::score(V::load(s), factor));
        x = V::select(V::lt(lane, V::set1(end[n])), x, none);
        largest[n] = V::max(x, largest[n]);  // NaN is passed over
        V::store(s, x);
      }
    }
  }

  void add(int64_t block_begin, int first, int count, int64_t ahead) {
    const int64_t begin = block_begin + first;
    with_operand_row<V>(v_, begin, [&](const auto* values) {
      for_rows(begin, count, [&](auto n, int64_t r, int seen_keys) {
        constexpr int N = decltype(n)::value;
        with_dim(call_.dim, [&](auto kDim) {
          add_values<V, decltype(kDim)::value, N>(
              w_.s + r * kBlockKeys + first, values, v_.stride, seen_keys, call_.dim,
              prefetch(ahead, r, N), first == 0 ? w_.factor + r : kOnes,
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
    Unit::take(units, count, key);
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
