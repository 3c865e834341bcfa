// Which keys a tile of query rows sees, in which order, and with which bias. Plain integers; shared
// by every kernel.
//
//                keys  ->   kv_start                        pos0      pos0 + rows          kv_end
//   rows of one tile          [  left: all rows, no mask  ) [ diagonal ) [ right: no mask )
//
// Tiles of keys are visited outward from the diagonal, nearest first: the first one gives every row
// a meaningful maximum, and with a positive slope what is left matters less and less (prune.h).
// Within the left and the right run the bias is linear in the key,
//
//   bias(row i, key j) = gradient * (j - p_i),     p_i = pos0 + i
//
// so a tile needs one ramp over its keys, gradient * (j - anchor), and one number per row,
// gradient * (anchor - p_i). The anchor is the tile's key with the largest bias: sums are formed
// from small numbers where the weights are large, which keeps them accurate at any distance.
//
// Two moves make far-away rows exact and leave one kind of bias. Softmax ignores a constant per
// row, so
// - rows wholly past (or wholly before) the keys are moved next to them: the bias changes by the
//   same constant for every key;
// - without causal mask the signed bias is linear over all keys, so its rows are moved past the
//   keys (slope >= 0) or before them (slope < 0), to the side where the bias is largest.
// lse gets the constant back: bias(true) = bias(moved) + slope * row_shift(i).
#ifndef ALIBI_CPU_GEOMETRY_H_
#define ALIBI_CPU_GEOMETRY_H_

#include <stdint.h>

#include "../alibi_attention.h"
#include "dtype.h"
#include "exp.inl.h"
#include "tile_io.inl.h"

namespace alibi::cpu {
namespace {

struct Span {
  int64_t kv_start, kv_end, q_start;
};

ALIBI_INLINE Span span_of(const AlibiProblem& p, const int32_t* spans, int64_t b) {
  if (spans == nullptr) return {0, p.len_k, p.len_k - p.len_q};
  return {spans[3 * b], spans[3 * b + 1], spans[3 * b + 2]};
}

struct KeyRange {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

ALIBI_INLINE KeyRange key_range(int64_t begin, int64_t end) {
  return {begin, end > begin ? end : begin};
}

struct RowTile {
  int64_t row0;                    // first query row
  int rows;                        // 1 .. kRows<V>
  int vecs;                        // row vectors in use
  int64_t pos0;                    // position of row0 on the key axis, after the moves above
  double shift;                    // bias(true) = bias(moved) + slope * shift
  bool linear;                     // signed bias without mask
  float first_row, last_row;       // rows beyond these stand where these stand: clamp_rows
  float slope2;                    // slope in log2 units
  float right_gradient;            // of the right run, log2 units per key; the left run's is slope2
  KeyRange left, diagonal, right;  // the diagonal run is never longer than `rows`
};

ALIBI_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tiles of rows of a head. If not all are full, the first one is short: under a causal mask its
// rows see the fewest keys.
template <class V>
int64_t row_tiles(const AlibiProblem& p) {
  return divide_up(p.len_q, kRows<V>);
}

template <class V>
RowTile make_row_tile(const AlibiProblem& p, const Span& span, float slope, int64_t tile) {
  const int64_t end = p.len_q - (row_tiles<V>(p) - 1 - tile) * kRows<V>;
  const int64_t row0 = max_int64(0, end - kRows<V>);
  RowTile t;
  t.row0 = row0;
  t.rows = static_cast<int>(end - row0);
  t.vecs = (t.rows + V::kWidth - 1) / V::kWidth;
  t.slope2 = slope * kLog2E;
  const int64_t pos = span.q_start + row0;
  const int64_t past = span.kv_end, before = span.kv_start - t.rows;
  t.linear = p.bias == ALIBI_SIGNED && p.causal == 0;
  t.first_row = 0.0f;
  t.last_row = static_cast<float>(kRows<V> - 1);
  t.pos0 = pos;
  if (t.linear) {
    t.pos0 = slope < 0 ? before : past;
  } else if (pos > past) {
    t.pos0 = past;
  } else if (p.causal == 0 && pos < before) {
    t.pos0 = before;
  }
  const int64_t move = t.pos0 - pos;
  t.shift = static_cast<double>(!t.linear && move > 0 ? -move : move);
  t.right_gradient = t.linear ? t.slope2 : -t.slope2;
  const int64_t diagonal_end = t.pos0 + t.rows;
  t.left = key_range(span.kv_start, min_int64(span.kv_end, t.pos0));
  t.diagonal = key_range(max_int64(span.kv_start, t.pos0), min_int64(span.kv_end, diagonal_end));
  t.right = p.causal != 0 ? KeyRange{0, 0}
                          : key_range(max_int64(span.kv_start, diagonal_end), span.kv_end);
  return t;
}

// Lets the rows of a tile that lie past the last key, or before the first, stand next to it.
template <class V>
void clamp_rows(const Span& span, RowTile* t) {
  const int end = kRows<V> - 1;
  t->first_row = static_cast<float>(min_int(end, max_int64(0, span.kv_start - 1 - t->pos0)));
  t->last_row = static_cast<float>(min_int(end, max_int64(0, span.kv_end - t->pos0)));
}

// Positions of the rows [lane, lane + kWidth) of a tile, relative to pos0.
template <class V>
ALIBI_INLINE typename V::Reg row_positions(const RowTile& t, int lane) {
  const typename V::Reg first = V::set1(t.first_row), last = V::set1(t.last_row);
  typename V::Reg row = V::add(V::iota(), V::set1(static_cast<float>(lane)));
  row = V::select(V::lt(row, first), first, row);
  return V::select(V::lt(last, row), last, row);
}

// bias(true) = bias(moved) + slope * row_shift(i): both moves of row i together.
ALIBI_INLINE double row_shift(const RowTile& t, int i) {
  const float row = static_cast<float>(i);
  float moved = row < t.first_row ? t.first_row : row;
  moved = moved > t.last_row ? t.last_row : moved;
  const double move = static_cast<double>(moved - row);
  return t.shift + (t.linear ? move : -__builtin_fabs(move));
}

// One step of the walk.
struct KeyTile {
  int64_t begin;
  int count;       // 1 .. kTileKeys
  bool diagonal;   // bias = -slope2 * |p_i - j| and, if causal, the mask
  float gradient;  // otherwise: bias = gradient * (j - p_i), log2 units
};

// The keys of a tile relative to the one with the largest bias.
struct TileBias {
  float gradient;
  int anchor;        // index of that key within the tile
  float row_offset;  // its position minus pos0: bias(row, anchor) = gradient * (row_offset - row)
};

ALIBI_INLINE TileBias tile_bias(const RowTile& rows, const KeyTile& keys) {
  const int anchor = keys.gradient < 0 ? 0 : keys.count - 1;
  return {keys.gradient, anchor, static_cast<float>(keys.begin + anchor - rows.pos0)};
}

// ramp[k] = factor * (bias of key k minus bias of the anchor); factor * -inf for the keys that pad
// the last group of kKeys.
template <class V>
void fill_ramp(const TileBias& bias, int count, float factor, float* ramp) {
  const typename V::Reg gradient = V::set1(bias.gradient * factor);
  for (int k = 0; k < count; k += V::kWidth) {
    V::store(ramp + k,
             V::mul(gradient, V::add(V::iota(), V::set1(static_cast<float>(k - bias.anchor)))));
  }
  for (int k = count; k < round_up(count, V::kKeys); ++k) ramp[k] = factor * -__builtin_inff();
}
constexpr int kRampFloats = kTileKeys + 16;

ALIBI_INLINE int64_t count_tiles(const KeyRange& run) {
  return (run.end - run.begin + kTileKeys - 1) / kTileKeys;
}
ALIBI_INLINE int64_t count_tiles(const RowTile& t) {
  return (t.diagonal.empty() ? 0 : 1) + count_tiles(t.left) + count_tiles(t.right);
}

// Calls visit(KeyTile) for the tiles of a row tile, nearest first. Before each tile but the very
// first it asks reach(gradient, next key, left, most): how many of the next `most` keys on that
// side have to be visited. 0 ends the side.
template <class Visit, class Reach>
ALIBI_INLINE void walk_keys(const RowTile& t, Visit&& visit, Reach&& reach) {
  if (!t.diagonal.empty()) {
    visit(KeyTile{t.diagonal.begin, static_cast<int>(t.diagonal.end - t.diagonal.begin), true,
                  -t.slope2});
  }
  bool seen = !t.diagonal.empty();
  for (int64_t end = t.left.end; end > t.left.begin;) {
    const int most = min_int(kTileKeys, end - t.left.begin);
    const int count = seen ? reach(t.slope2, end - 1, true, most) : most;
    if (count == 0) break;
    end -= count;
    visit(KeyTile{end, count, false, t.slope2});
    seen = true;
  }
  for (int64_t begin = t.right.begin; begin < t.right.end;) {
    const int most = min_int(kTileKeys, t.right.end - begin);
    const int count = seen ? reach(t.right_gradient, begin, false, most) : most;
    if (count == 0) break;
    visit(KeyTile{begin, count, false, t.right_gradient});
    begin += count;
    seen = true;
  }
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_GEOMETRY_H_
