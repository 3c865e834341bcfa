// How a decode step is divided into units of work, for decode.inl.h, which teaches the algorithm. All
// of it follows from the arguments of the call.
#ifndef ALIBI_CPU_DECODE_CALL_INL_H_
#define ALIBI_CPU_DECODE_CALL_INL_H_

#include <stdint.h>

#include "exp.inl.h"
#include "geometry.h"
#include "micro_decode.inl.h"
#include "parallel.h"
#include "prune.h"
#include "tile_io.inl.h"
#include "tuning.h"

namespace alibi::cpu {
namespace {

constexpr int64_t kDecodeRows = 8;    // more rows per head are faster in the lanes of a tile
constexpr int64_t kDecodeUnits = 64;  // wanted: enough for many threads; more would be short runs
constexpr int64_t kMinChunkKeys = 512;
constexpr int64_t kNearKeys = 128;  // of chunk 0 when the others wait for it

// Units of several heads: how many heads, how few such units are enough, the shortest chunk; how many
// keys and values are a turn, and how many bytes of a token's rows are asked for ahead.
constexpr int kMostHeads = 32;
constexpr int64_t kEnoughUnits = 16;
constexpr int64_t kMinTurnsKeys = 128;
constexpr int kTurnKeys = 16, kTurnValues = 8;
constexpr int64_t kTurnAhead = 1024;

ALIBI_INLINE bool is_decode(const AlibiProblem& p) {
  return p.batch > 0 && p.heads_q > 0 && p.len_q > 0 && p.len_q <= kDecodeRows && p.len_k > 0;
}

// Keys of a block: as many as make block_bytes of K, in whole blocks of key norms.
ALIBI_INLINE int block_keys(const AlibiProblem& p, int64_t block_bytes) {
  const int64_t bytes = p.head_dim * (p.dtype == ALIBI_FLOAT32 ? 4 : 2);
  const int64_t keys = block_bytes / bytes / kNormBlock * kNormBlock;
  return keys < kNormBlock ? kNormBlock : keys > kBlockKeys ? kBlockKeys : static_cast<int>(keys);
}

// Among how many units the heads of a batch item are divided. A unit has several where the rows of
// other heads lie between those of a head, as long as there are kEnoughUnits, and no norms that the
// caller keeps, by which every head reads other keys.
ALIBI_INLINE int64_t head_groups(const AlibiAttentionFwdArgs& a) {
  const AlibiProblem& p = a.problem;
  const bool between = a.k.stride_h < a.k.stride_s && a.v.stride_h < a.v.stride_s;
  if (!between || a.key_norms != nullptr) return p.heads_kv;
  const int64_t pieces = p.batch * p.heads_kv * divide_up(p.len_k, kMinTurnsKeys);
  return divide_up(p.heads_kv, max_int64(1, min_int64(kMostHeads, pieces / kEnoughUnits)));
}

// One query row of a unit. Sums are relative to 2^m.
struct DecodeRow {
  int64_t position, limit;  // on the key axis, after the moves of geometry.h; it sees keys < limit
  float slope2;             // log2 units
  float m, l;               // maximum, and sum of the weights that reached o, if blocks may be
                            // dropped: else DecodeScratch has it
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
  int block;      // keys of a block
  int64_t ahead;  // bytes from what is read to what is asked for
  bool near;      // into the first level of the cache
  int lead;       // heads between one whose turn it is and the one whose rows it asks for
  bool pairs;     // of elements: K meets q as such where rows are enough for arithmetic to count
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
        padded(round_up(dim, V::kWidth * kTerms<V>)),
        block(block_keys(a.problem, tuning().block_bytes[size() == 2])),
        ahead(tuning().ahead_bytes[size() == 2]),
        near(tuning().near),
        lead(static_cast<int>(max_int64(1, kTurnAhead / (dim * size())))),
        pairs(kTerms<V> > 1 && rows > 2),
        prune(prunable(a.problem)),
        norms(key_norms),
        order(turns),
        parts(nullptr) {
    const AlibiProblem& p = a.problem;
    // Chunks of several heads hold more than others of as many keys, so they may be shorter where that
    // makes more units.
    const int64_t keys = p.batch * head_groups * p.len_k;
    const int64_t short_keys = max_int64(kMinTurnsKeys, keys / kEnoughUnits);
    const int64_t least = together > 1 ? min_int64(kMinChunkKeys, short_keys) : kMinChunkKeys;
    chunk_keys = divide_up(max_int64(least, keys / kDecodeUnits), block) * block;
    near_keys = prune ? kNearKeys : chunk_keys;
    chunks = 2 + (p.len_k + chunk_keys - 1) / chunk_keys;  // both sides may end in a part of one
  }

  int64_t heads() const { return args.problem.batch * args.problem.heads_kv; }
  int64_t size() const { return args.problem.dtype == ALIBI_FLOAT32 ? 4 : 2; }  // of an element
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

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_DECODE_CALL_INL_H_
