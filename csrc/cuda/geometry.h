// Index arithmetic of the CUDA kernels: which keys a row sees, which tiles hold them, in which
// order, and when to stop.
//
// Plain functions on integers and floats, the same on the host and on the device, so that
// tests/cuda/geometry_test.cc can hold every one of them against brute force without a GPU.
#ifndef ALIBI_CUDA_GEOMETRY_H_
#define ALIBI_CUDA_GEOMETRY_H_

#include <math.h>
#include <stdint.h>

#if defined(__CUDACC__)
#define ALIBI_HD __host__ __device__ __forceinline__
#else
#define ALIBI_HD inline
#endif

namespace alibi {
namespace cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Longest sequence: positions, distances and tile bounds then fit an int with room for one
// addition.
constexpr int64_t kMaxLength = int64_t{1} << 30;

ALIBI_HD constexpr int least(int a, int b) { return a < b ? a : b; }
ALIBI_HD int most(int a, int b) { return a > b ? a : b; }
ALIBI_HD constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
ALIBI_HD int round_up(int a, int b) { return ceil_div(a, b) * b; }

// Half-open interval; empty when end <= begin.
struct Range {
  int begin;
  int end;
  ALIBI_HD bool empty() const { return end <= begin; }
};

// Query row i stands at position q_start + i of the key axis and may see keys of [kv_start,
// kv_end).
struct Span {
  int kv_start;
  int kv_end;
  int q_start;
};

// Spans lie in device memory, where the host cannot check them: whatever they hold, the result
// stays inside the tensors.
ALIBI_HD Span safe_span(int kv_start, int kv_end, int q_start, int len_k) {
  constexpr int kFar = static_cast<int>(kMaxLength);
  const int start = most(0, least(kv_start, len_k));
  return {start, most(start, least(kv_end, len_k)), most(-kFar, least(q_start, kFar))};
}

ALIBI_HD Span default_span(int len_q, int len_k) { return {0, len_k, len_k - len_q}; }

// Keys that at least one of the query rows [rows.begin, rows.end) may see.
ALIBI_HD Range visible_keys(const Span& span, Range rows, bool causal) {
  return {span.kv_start, causal ? least(span.kv_end, span.q_start + rows.end) : span.kv_end};
}

// Query rows of [0, len_q) that may see at least one of the keys [keys.begin, keys.end).
ALIBI_HD Range seeing_rows(const Span& span, Range keys, bool causal, int len_q) {
  const int first = most(keys.begin, span.kv_start);
  if (first >= least(keys.end, span.kv_end)) return {0, 0};
  return {causal ? most(0, least(first - span.q_start, len_q)) : 0, len_q};
}

// Tiles of `size` that cover a range of keys or rows.
ALIBI_HD Range covering_tiles(Range range, int size) {
  if (range.empty()) return {0, 0};
  return {range.begin / size, ceil_div(range.end, size)};
}

// Whether every (row, key) pair of a tile is allowed, so that the kernels need not look at single
// pairs.
ALIBI_HD bool all_allowed(const Span& span, Range rows, Range keys, bool causal) {
  return keys.begin >= span.kv_start && keys.end <= span.kv_end &&
         (!causal || keys.end - 1 <= span.q_start + rows.begin);
}

// -1 when every key of the tile lies at or before every row's position, +1 when at or after, 0 when
// the diagonal crosses.
ALIBI_HD int side_of_diagonal(const Span& span, Range rows, Range keys) {
  if (keys.end - 1 <= span.q_start + rows.begin) return -1;
  if (keys.begin >= span.q_start + rows.end - 1) return 1;
  return 0;
}

// The order in which a tile of query rows visits its key tiles: from the diagonal to the right,
// then from the diagonal to the left, so that the running maximum is meaningful at once and either
// side can stop as soon as its rest is negligible. A causal tile starts at the diagonal, its last
// one, and only walks left.
struct TileWalk {
  Range tiles;
  int start;

  static constexpr int kEnd = -1;

  ALIBI_HD TileWalk(Range visible, int position, int size)
      : tiles(covering_tiles(visible, size)), start(0) {
    start = most(tiles.begin, least(most(position, 0) / size, tiles.end - 1));
  }
  ALIBI_HD int first() const { return tiles.empty() ? kEnd : start; }
  // The tile after `tile` when nothing may be left out.
  ALIBI_HD int after(int tile) const {
    return tile >= start && tile + 1 < tiles.end ? tile + 1 : leftward(tile);
  }
  // The tile after `tile` when after(tile) and all beyond it on the same side are negligible.
  ALIBI_HD int after_stop(int tile) const {
    return after(tile) > start ? (start > tiles.begin ? start - 1 : kEnd) : kEnd;
  }

 private:
  ALIBI_HD int leftward(int tile) const {
    const int next = least(tile, start) - 1;
    return next >= tiles.begin ? next : kEnd;
  }
};

// Distance from a position to the nearest key of a tile; 0 when the tile holds or straddles the
// position.
ALIBI_HD int distance_to(int position, Range keys) {
  return most(0, most(keys.begin - position, position - (keys.end - 1)));
}

// Pruning. All keys at distance >= d of a row together weigh at most exp(u - slope*d) / (1 -
// exp(-slope)), u being a ceiling of that row's scores without bias. They cannot move the float32
// result when that is below 2^-24 of exp(log-sum-exp); two sides of the diagonal share that
// allowance, hence 25 bits. In base 2 a row is done when
//     weight + slope2 * d >= needed = ceiling + tail_bits
// where weight is the running maximum, or the log-sum-exp once it is known.
ALIBI_HD float tail_bits(float slope, int len_k) {
  const float series = -log2f(-expm1f(-slope));
  const float count = log2f(static_cast<float>(len_k) + 1.0f);
  return 25.0f + fmaxf(0.0f, fminf(series, count));
}

// A norm from the sum of its squares. The floor covers up to 256 squares that underflow: a large scale
// makes scores of what they leave out.
ALIBI_HD float norm_of(float squares) {
  constexpr float kFloor = 256 * 0x1p-126f;
  return sqrtf(squares + kFloor);
}

// Cauchy-Schwarz ceiling of scale * <q, k> in base 2. The margin covers the rounding of the norms
// and of the products.
ALIBI_HD float score_ceiling(float scale, float q_norm, float k_norm) {
  return fabsf(scale) * kLog2E * q_norm * k_norm * 1.002f + 0.03125f;
}

// `needed` is NaN when nothing may be left out, and -inf for a row that sees nothing.
ALIBI_HD bool row_is_done(float weight, float slope2, int distance, float needed) {
  return weight + slope2 * static_cast<float>(distance) >= needed;
}

// What the backward pass needs besides, for keys at distance >= d: log2(1 + slope*d), since there a
// key counts in dslopes as many times as it is far away, and a column loses a little to every row
// (Rule B of docs/maths.md). `missing` is needed - weight, which slope2 * d has to exceed by these
// bits. Those of the furthest key would do. Where they leave keys out, the bits of the nearest one
// left out will, too: beyond it the bias grows faster than they do.
ALIBI_HD float distance_bits(float missing, float slope, int farthest) {
  const float far = static_cast<float>(most(farthest, 0));
  const float reach = (missing + log2f(fmaf(slope, far, 1.0f))) / (slope * kLog2E);
  return log2f(fmaf(slope, fminf(fmaxf(reach, 0.0f), far), 1.0f));
}

// Whether the bound holds at all: a bias that falls with the distance on every side that a row can
// see.
ALIBI_HD bool can_prune(bool wanted, float slope, bool causal, bool symmetric) {
  return wanted && slope > 0.0f && (causal || symmetric);
}

// How far from the nearest key that it may see a row can still find keys that matter, known before
// any score is: its maximum is at least the nearest key's score, -ceiling in the worst case.
// Everything when the bound does not hold (NaN).
ALIBI_HD int pruning_reach(float ceiling, float needed, float slope2, int nearest) {
  const float reach = ceilf((needed + ceiling) / slope2) + static_cast<float>(nearest) + 1.0f;
  return reach < static_cast<float>(kMaxLength) ? static_cast<int>(reach)
                                                : static_cast<int>(kMaxLength);
}

// The keys of `keys` that lie within `reach` of at least one of the positions.
ALIBI_HD Range within_reach(Range keys, Range positions, int reach) {
  const int64_t first = int64_t{positions.begin} - reach, last = int64_t{positions.end} - 1 + reach;
  return {first <= keys.begin ? keys.begin
          : first < keys.end  ? static_cast<int>(first)
                              : keys.end,
          last >= keys.end - 1 ? keys.end
          : last >= keys.begin ? static_cast<int>(last + 1)
                               : keys.begin};
}

// From which distance on keys are negligible to a row, once its log-sum-exp is known: where
// row_is_done(slack, slope2, distance, 0) holds. Below zero for a row that sees nothing, everything
// when the bound does not hold (NaN).
ALIBI_HD int reach_of_slack(float slack, float slope2) {
  const float reach = ceilf(-slack / slope2) + 1.0f;
  if (reach < 0.0f) return -1;
  return reach < static_cast<float>(kMaxLength) ? static_cast<int>(reach)
                                                : static_cast<int>(kMaxLength);
}

// What block `index` of a grid works on: tile `tile` of (batch, head) pair number `sequence`.
struct TilePlace {
  int sequence;
  int tile;
};

// Blocks start in the order of their index. `together` sequences are in work at a time, few enough
// for their keys to stay in the second-level cache; among these the last tiles start first, which
// are the longest under a causal mask, so that the short ones fill the gaps at the end.
ALIBI_HD TilePlace longest_first(unsigned index, int tiles, int sequences, int together) {
  const unsigned section = index / (static_cast<unsigned>(tiles) * static_cast<unsigned>(together));
  const int first = static_cast<int>(section) * together;
  const unsigned count = static_cast<unsigned>(least(together, sequences - first));
  const unsigned rest =
      index - section * static_cast<unsigned>(tiles) * static_cast<unsigned>(together);
  return {first + static_cast<int>(rest % count), tiles - 1 - static_cast<int>(rest / count)};
}

// The task that a block takes in a round, when blocks share out tasks that grow shorter and shorter:
// every other round starts with the block that came last, so that none has always the longer ones.
ALIBI_HD int serpentine(int round, int block, int blocks) {
  return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
}

// Part `index` of `count` of a range, in whole tiles of `size`, as even as tiles allow; trailing
// parts may be empty.
ALIBI_HD Range split_range(Range range, int count, int index, int size) {
  const Range tiles = covering_tiles(range, size);
  const int each = ceil_div(tiles.end - tiles.begin, count);
  const int begin = tiles.begin + least(index * each, tiles.end - tiles.begin);
  const int end = least(begin + each, tiles.end);
  return {most(range.begin, begin * size), least(range.end, end * size)};
}

// Into how many parts the keys should be split so that `blocks` blocks for a whole walk become
// enough for the GPU: about two per multiprocessor, but no part below four tiles. 1: the grid is
// large enough as it is.
ALIBI_HD int choose_splits(int64_t blocks, int key_tiles, int multiprocessors) {
  if (blocks <= 0 || blocks * 5 >= int64_t{multiprocessors} * 4) return 1;
  const int wanted = static_cast<int>((int64_t{multiprocessors} * 2 + blocks - 1) / blocks);
  return most(1, least(wanted, key_tiles / 4));
}

// Decoding: the query rows of the heads that share a key head stand one below the other, head by
// head, in tiles of this many. A call with more rows per head fills tiles of its own.
constexpr int kDecodeRows = 16;
ALIBI_HD constexpr bool is_decode(int len_q) { return len_q <= kDecodeRows; }

struct PackedRow {
  int head;  // of those that share the key head
  int query;
};
ALIBI_HD PackedRow packed_row(int index, int len_q) { return {index / len_q, index % len_q}; }

// Up to `count` neighbouring keys of `keys`, among them the one nearest to a position.
ALIBI_HD Range nearest_keys(Range keys, int position, int count) {
  const int begin = most(keys.begin, least(position + 1 - count, keys.end - count));
  return {begin, least(begin + count, keys.end)};
}

// Weights relative to a score of the row: as many of these as there are keys add up to less than
// 2^-25 of the row.
ALIBI_HD float negligible_weight(int len_k) {
  return exp2f(-25.0f) / (static_cast<float>(len_k) + 1.0f);
}

// Into how many parts a decoding kernel should split the keys. `slots` blocks run at a time: the
// fewest parts that keep them nearly as busy as any other number would, none below two steps of a
// block. 1 where there is nothing to do, or no GPU.
inline int choose_decode_splits(int64_t blocks, int steps, int slots) {
  if (blocks <= 0 || slots <= 0) return 1;
  const int limit = most(1, least(steps / 2, 128));
  const auto busy = [&](int splits) {
    const int64_t all = blocks * splits, rounds = (all + slots - 1) / slots;
    return static_cast<float>(all) / static_cast<float>(rounds * slots);
  };
  float best = 0.0f;
  for (int splits = 1; splits <= limit; ++splits) best = fmaxf(best, busy(splits));
  int splits = 1;
  while (busy(splits) < 0.85f * best) ++splits;
  return splits;
}

// How many lanes of a warp read a row of `pieces` times 16 bytes together: a power of two.
ALIBI_HD int lanes_per_row(int pieces) {
  int lanes = 1;
  while (lanes < pieces && lanes < 32) lanes *= 2;
  return lanes;
}

// Shared memory tiles: row r is `chunks` pieces of 16 bytes, stored in the order piece ^
// swizzle(r). Eight consecutive rows then put equal pieces into eight different bank groups, so
// that ldmatrix reads without conflicts. Rows of 4 or 12 pieces already alternate between two
// halves of the banks, so two bits are enough for them.
ALIBI_HD int swizzle_mask(int chunks) { return chunks % 8 == 0 ? 7 : 3; }
ALIBI_HD int swizzle(int row, int chunks) { return chunks % 8 == 0 ? row & 7 : (row >> 1) & 3; }
ALIBI_HD uint32_t tile_offset(int row, int chunk, int chunks) {
  return static_cast<uint32_t>((row * chunks + (chunk ^ swizzle(row, chunks))) * 16);
}

// The address of piece 0 or 1 of a row, moved `step` pieces on (an even number). The same as
// tile_offset of that piece when tiles start on multiples of 128 bytes, but with one register for
// all steps instead of one for each.
ALIBI_HD uint32_t tile_step(uint32_t address, int step, int chunks) {
  const int mask = swizzle_mask(chunks);
  return (address ^ static_cast<uint32_t>((step & mask) * 16)) +
         static_cast<uint32_t>((step & ~mask) * 16);
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_GEOMETRY_H_
