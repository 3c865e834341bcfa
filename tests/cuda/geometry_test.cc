// csrc/cuda/geometry.h and tile_config.h against brute force over small sizes. Prints what fails;
// exit status 1 if anything.
#include "cuda/geometry.h"

#include <cstdio>
#include <random>
#include <set>
#include <vector>

#include "cuda/tile_config.h"

using namespace alibi::cuda;

namespace {

int failures = 0;

void expect(bool ok, const char* what, long a = 0, long b = 0, long c = 0) {
  if (!ok && ++failures < 20) printf("FAILED: %s (%ld, %ld, %ld)\n", what, a, b, c);
}

bool allowed(const Span& s, int row, int key, bool causal) {
  return key >= s.kv_start && key < s.kv_end && (!causal || key <= s.q_start + row);
}

bool contains(Range r, int x) { return x >= r.begin && x < r.end; }

// Ranges of keys and rows: hold every allowed pair, and are no larger than need be.
void check_ranges(const Span& s, int len_q, int len_k, bool causal, int rows_per_tile,
                  int keys_per_tile) {
  for (int row0 = 0; row0 < len_q; row0 += rows_per_tile) {
    const Range rows = {row0, least(row0 + rows_per_tile, len_q)};
    const Range keys = visible_keys(s, rows, causal), tiles = covering_tiles(keys, keys_per_tile);
    std::set<int> needed;
    for (int i = rows.begin; i < rows.end; ++i) {
      for (int j = 0; j < len_k; ++j) {
        if (!allowed(s, i, j, causal)) continue;
        needed.insert(j / keys_per_tile);
        expect(contains(keys, j), "visible_keys holds every allowed key", i, j, s.q_start);
      }
    }
    expect(static_cast<int>(needed.size()) == most(0, tiles.end - tiles.begin),
           "only tiles with an allowed pair", row0, tiles.begin, tiles.end);
    for (const int tile : needed) expect(contains(tiles, tile), "covering_tiles", row0, tile);
  }
  for (int key0 = 0; key0 < len_k; key0 += keys_per_tile) {
    const Range keys = {key0, least(key0 + keys_per_tile, len_k)};
    const Range rows = seeing_rows(s, keys, causal, len_q);
    for (int i = 0; i < len_q; ++i) {
      bool sees = false;
      for (int j = keys.begin; j < keys.end; ++j) sees = sees || allowed(s, i, j, causal);
      expect(sees == contains(rows, i), "seeing_rows is exact", key0, i, s.q_start);
    }
  }
}

// all_allowed and side_of_diagonal, over whole tiles.
void check_tile_kinds(const Span& s, bool causal) {
  for (int row0 = 0; row0 < 12; row0 += 3) {
    for (int key0 = 0; key0 < 15; key0 += 5) {
      const Range rows = {row0, row0 + 3}, keys = {key0, key0 + 5};
      bool every = true, before = true, after = true;
      for (int i = rows.begin; i < rows.end; ++i) {
        for (int j = keys.begin; j < keys.end; ++j) {
          every = every && allowed(s, i, j, causal);
          before = before && j <= s.q_start + i;
          after = after && j >= s.q_start + i;
        }
      }
      expect(all_allowed(s, rows, keys, causal) == every, "all_allowed", row0, key0, s.q_start);
      expect(side_of_diagonal(s, rows, keys) == (before  ? -1
                                                 : after ? 1
                                                         : 0),
             "side_of_diagonal", row0, key0, s.q_start);
      for (int p = 0; p < 20; ++p) {
        int nearest = 1000;
        for (int j = keys.begin; j < keys.end; ++j) nearest = least(nearest, most(p - j, j - p));
        expect(distance_to(p, keys) == nearest, "distance_to", p, key0, nearest);
      }
    }
  }
}

// A walk visits every tile once, nearest first on either side; a stop leaves out exactly the rest
// of its side.
void check_walk(Range visible, int position, int size) {
  const TileWalk walk(visible, position, size);
  const Range tiles = covering_tiles(visible, size);
  std::set<int> seen;
  int last_right = -1, last_left = 1000;
  for (int tile = walk.first(); tile != TileWalk::kEnd; tile = walk.after(tile)) {
    expect(contains(tiles, tile) && seen.insert(tile).second, "a tile is visited once", tile,
           position, size);
    if (tile >= walk.start) {
      expect(tile > last_right && last_left == 1000, "rightward first, outward", tile, position,
             size);
      last_right = tile;
    } else {
      expect(tile < last_left, "leftward, outward", tile, position, size);
      last_left = tile;
    }
  }
  expect(static_cast<int>(seen.size()) == most(0, tiles.end - tiles.begin), "every tile is visited",
         position, size);
  for (const int tile : seen) {
    const int next = walk.after(tile), stopped = walk.after_stop(tile);
    const bool was_right = next > walk.start;
    const int left = walk.start > tiles.begin ? walk.start - 1 : TileWalk::kEnd;
    expect(stopped == (was_right ? left : TileWalk::kEnd), "after_stop", tile, next, stopped);
  }
}

void check_spans() {
  std::mt19937 random(1);
  const auto any = [&] { return static_cast<int>(random()); };
  for (int i = 0; i < 2000; ++i) {
    const int len_k = any() & 63;
    const Span s =
        safe_span(i % 2 != 0 ? any() : any() % 64, i % 3 != 0 ? any() : any() % 64, any(), len_k);
    expect(s.kv_start >= 0 && s.kv_start <= s.kv_end && s.kv_end <= len_k, "safe_span stays inside",
           s.kv_start, s.kv_end, len_k);
    expect(most(s.q_start, -s.q_start) <= kMaxLength, "safe_span q_start");
  }
  for (int start = 0; start < 5; ++start) {
    for (int end = start; end < 5; ++end) {
      const Span s = safe_span(start, end, 3 - end, 4);
      expect(s.kv_start == least(start, 4) && s.kv_end == least(end, 4) && s.q_start == 3 - end,
             "safe_span keeps valid ones");
    }
  }
}

// The bound: whatever row_is_done lets go weighs less than 2^-24 of the row, for keys at the
// ceiling of their scores.
void check_prune_bound() {
  for (const float slope : {1e-4f, 0.004f, 0.06f, 0.5f, 3.0f, 40.0f}) {
    for (const int len_k : {10, 1000, 100000}) {
      const float bits = tail_bits(slope, len_k), slope2 = slope * kLog2E;
      for (const float ceiling : {0.1f, 5.0f, 90.0f}) {
        const float weight = -ceiling;  // the worst running maximum that Cauchy-Schwarz allows
        int d = 0;
        while (d < len_k && !row_is_done(weight, slope2, d, ceiling + bits)) d = d * 5 / 4 + 1;
        double tail = 0;
        for (int j = d; j < len_k; ++j) tail += std::exp2(double{ceiling} - double{slope2} * j);
        for (const int nearest : {0, 7}) {
          const int reach = pruning_reach(ceiling, ceiling + bits, slope2, nearest);
          expect(row_is_done(weight - slope2 * static_cast<float>(nearest), slope2, reach,
                             ceiling + bits),
                 "pruning_reach", reach);
        }
        expect(2 * tail <= std::exp2(double{weight} - 24), "both tails below 2^-24 of the row",
               static_cast<long>(slope * 1e4f), len_k, d);
      }
    }
  }
  expect(!row_is_done(100.0f, 1.0f, 1000, NAN) && !row_is_done(NAN, 1.0f, 1000, 0.0f),
         "NaN is never done");
  expect(row_is_done(-INFINITY, 1.0f, 5, -INFINITY), "a row that sees nothing is done");
  expect(norm_of(0.0f) >= 16 * 0x1p-63f && norm_of(9.0f) == 3.0f && norm_of(NAN) != norm_of(NAN),
         "norm_of");
  expect(score_ceiling(-2.0f, 3.0f, 5.0f) >= 30.0f * kLog2E, "score_ceiling takes |scale|");
  expect(!can_prune(true, 0.0f, true, true) && !can_prune(true, -1.0f, true, true) &&
             !can_prune(true, NAN, true, true),
         "slopes");
  expect(!can_prune(true, 1.0f, false, false) && can_prune(true, 1.0f, false, true) &&
             !can_prune(false, 1.0f, true, true),
         "modes");
}

// Rule B: whatever the backward pass lets go is negligible 1 + slope * distance times, and little
// more than that is asked for.
void check_distance_bits() {
  for (const float slope : {1e-4f, 0.06f, 0.5f, 3.0f, 40.0f}) {
    for (const int farthest : {-3, 0, 60, 8000, 100000}) {
      for (const float missing : {-40.0f, -1.0f, 0.0f, 26.0f, 90.0f}) {
        const float bits = distance_bits(missing, slope, farthest);
        const float needed = missing + bits, slope2 = slope * kLog2E;
        for (int d = 0; d <= farthest; d = d * 9 / 8 + 1) {
          const double exact = missing + std::log2(1.0 + double{slope} * d);
          expect(!row_is_done(0.0f, slope2, d, needed) || double{slope2} * d >= exact - 1e-2,
                 "Rule B", static_cast<long>(slope * 1e4f), d, farthest);
        }
        expect(bits >= 0.0f && bits <= std::log2(1.0f + slope * most(farthest, 0)) + 1e-3f,
               "no more bits than the furthest key asks for");
      }
    }
  }
  expect(distance_bits(26.0f, 0.5f, 8000) < 5.0f, "bits of the nearest key left out");
  expect(distance_bits(NAN, 0.5f, 8000) >= 0.0f && distance_bits(INFINITY, 0.5f, 8000) > 11.0f,
         "bits without a bound");
}

// Parts cover the range once, in whole tiles, none larger than the first.
void check_splits() {
  for (int begin = 0; begin < 40; begin += 7) {
    for (int end = begin; end < 90; end += 11) {
      for (int count = 1; count < 9; ++count) {
        int next = begin;
        for (int i = 0; i < count; ++i) {
          const Range part = split_range({begin, end}, count, i, 8);
          if (part.empty()) continue;
          expect(part.begin == next && (part.begin == begin || part.begin % 8 == 0),
                 "split_range is seamless", begin, end, i);
          next = part.end;
        }
        expect(next == most(begin, end), "split_range covers the range", begin, end, count);
      }
    }
  }
  expect(choose_splits(200, 1000, 132) == 1 && choose_splits(8, 1000, 132) == 33 &&
             choose_splits(8, 40, 132) == 10 && choose_splits(1, 3, 132) == 1 &&
             choose_splits(0, 3, 132) == 1,
         "choose_splits");
  const int wide = choose_decode_splits(16, 2048, 264);
  expect(choose_decode_splits(128, 128, 264) == 2 && choose_decode_splits(1024, 32, 264) == 1 &&
             wide * 16 <= 264 && wide * 16 > 200 && choose_decode_splits(1, 3, 264) == 1 &&
             choose_decode_splits(1, 20, 264) == 9 && choose_decode_splits(0, 3, 264) == 1 &&
             choose_decode_splits(8, 64, 0) == 1 && choose_decode_splits(265, 128, 264) > 1,
         "choose_decode_splits");
  expect(pruning_reach(1.0f, NAN, 0.5f, 0) == kMaxLength &&
             pruning_reach(INFINITY, INFINITY, 0.5f, 0) == kMaxLength,
         "pruning_reach without a bound is everything");
}

// Packed rows are those of each head in turn; the nearest keys hold the nearest one; as many weights
// as there are keys stay below the allowance; lanes of a row are a power of two that reads it whole.
void check_decoding() {
  int index = 0;
  for (int head = 0; head < 5; ++head) {
    for (int query = 0; query < 3; ++query) {
      const PackedRow row = packed_row(index++, 3);
      expect(row.head == head && row.query == query, "packed_row", index, row.head, row.query);
    }
  }
  for (int begin = 0; begin < 20; begin += 3) {
    for (int end = begin; end < 40; end += 4) {
      for (int position = -5; position < 50; ++position) {
        const Range keys = {begin, end}, near = nearest_keys(keys, position, 8);
        const int nearest = least(most(position, begin), end - 1);
        expect(near.begin >= begin && near.end <= end &&
                   near.end - near.begin == least(8, end - begin),
               "nearest_keys stays inside", begin, end, position);
        expect(end == begin || contains(near, nearest), "nearest_keys holds it", begin, end,
               position);
      }
    }
  }
  for (const int len_k : {0, 1, 1000, 1 << 20, 1 << 30}) {
    const double all = double{negligible_weight(len_k)} * len_k;
    expect(all < std::exp2(-24.9) && negligible_weight(len_k) > 0, "negligible_weight", len_k);
  }
  for (int pieces = 1; pieces <= 64; ++pieces) {
    const int lanes = lanes_per_row(pieces);
    expect((lanes & (lanes - 1)) == 0 && lanes <= 32 && (lanes >= pieces || lanes == 32) &&
               (lanes == 1 || lanes / 2 < pieces),
           "lanes_per_row", pieces, lanes);
  }
}

// tile_offset is a bijection without bank conflicts, and tile_step agrees with it.
void check_swizzle() {
  for (const int chunks : {4, 8, 12, 16, 24, 32, 64}) {
    std::vector<int> used(static_cast<size_t>(64 * chunks), 0);
    for (int row = 0; row < 64; ++row) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const uint32_t at = tile_offset(row, chunk, chunks);
        expect(at % 16 == 0 && at / 16 < used.size() && used[at / 16]++ == 0,
               "tile_offset is a bijection", row, chunk, chunks);
        const uint32_t base = 4096 + tile_offset(row, chunk % 2, chunks);
        expect(tile_step(base, chunk / 2 * 2, chunks) == 4096 + at, "tile_step", row, chunk,
               chunks);
      }
    }
    for (int row = 0; row < 64; row += 8) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
        std::set<uint32_t> banks;
        for (int i = 0; i < 8; ++i) banks.insert(tile_offset(row + i, chunk, chunks) / 16 % 8);
        expect(banks.size() == 8, "eight rows in eight bank groups", row, chunk, chunks);
      }
    }
  }
}

// `row_tiles` tiles of the rows that stay and two of those that pass by lie in shared memory, and
// `column_bytes` for every column.
template <int N>
void check_tile_table(const TileConfig (&table)[N], int row_tiles, int column_bytes) {
  for (int i = 0; i < N; ++i) {
    const TileConfig& t = table[i];
    const int row_bytes = t.bytes * t.head_dim;
    expect(t.columns * row_bytes % 128 == 0 && t.rows() * row_bytes % 128 == 0,
           "tiles start on 128 bytes", t.bytes, t.head_dim);
    expect(t.columns % (t.bytes == 2 ? 16 : 8) == 0 && t.head_dim % 16 == 0, "whole matrices",
           t.bytes, t.head_dim);
    const bool own = t.gpu == kTuring;
    expect(!own || (i + 1 < N && table[i + 1].gpu == kAmpere && table[i + 1].bytes == t.bytes &&
                    table[i + 1].head_dim == t.head_dim),
           "a row of Turing comes before the one that it stands in for", t.bytes, t.head_dim);
    expect(i == 0 || own || table[i - 1].bytes < t.bytes ||
               table[i - 1].head_dim < t.head_dim + (table[i - 1].gpu == kTuring),
           "head sizes grow", t.bytes, t.head_dim);
    for (const Gpu gpu : {kAmpere, kTuring}) {
      const TileConfig found = find_tile(table, gpu, t.bytes, t.head_dim);
      expect(found.bytes == t.bytes && found.head_dim == t.head_dim, "every GPU has a row", t.bytes,
             t.head_dim);
      expect(gpu == kTuring || found.gpu == kAmpere, "Turing's rows are its own", t.head_dim);
      expect(gpu == kAmpere || !own || found.gpu == kTuring, "Turing takes its own", t.head_dim);
      const int shared =
          (row_tiles * found.rows() + 2 * found.columns) * row_bytes + column_bytes * found.columns;
      expect(shared <= (gpu == kTuring ? 64 : 99) * 1024, "a block fits the shared memory", shared,
             t.bytes, t.head_dim);
    }
  }
}

void check_tile_tables() {
  check_tile_table(kForwardTiles, 1, 0);
  check_tile_table(kSplitTiles, 1, 0);
  for (const DecodeTile& t : kDecodeTiles) {
    expect(t.tile_bytes() % 128 == 0 && t.keys % (t.bytes == 2 ? 16 : 8) == 0,
           "decoding: whole tiles", t.bytes, t.head_dim);
    for (const Gpu gpu : {kAmpere, kTuring}) {
      const DecodeTile found = find_tile(kDecodeTiles, gpu, t.bytes, t.head_dim);
      expect(found.head_dim == t.head_dim && found.shared_bytes() <= shared_limit(gpu),
             "decoding: a block fits the shared memory", found.shared_bytes(), t.bytes, t.head_dim);
    }
  }
  check_tile_table(kQueryGradTiles, 2, 0);
  check_tile_table(kKeyGradTiles, 2, 8);
}

// Every key within reach of a position is kept, and no other.
void check_within_reach() {
  for (int first = -20; first < 40; first += 3) {
    for (int count = 1; count <= 5; count += 2) {
      for (int reach = 0; reach < 12; ++reach) {
        const Range keys = {4, 23}, left = within_reach(keys, {first, first + count}, reach);
        for (int j = keys.begin; j < keys.end; ++j) {
          bool near = false;
          for (int p = first; p < first + count; ++p)
            near = near || (j - p <= reach && p - j <= reach);
          expect(near == contains(left, j), "within_reach is exact", first, j, reach);
        }
      }
    }
  }
  const int far = static_cast<int>(kMaxLength);
  const Range all = within_reach({0, far}, {2 * (far - 1), 2 * (far - 1) + 1}, far);
  expect(all.begin == far - 2 && all.end == far, "within_reach does not overflow", all.begin);
}

// What lies at the reach or beyond is negligible; what a little nearer is negligible is not far off.
void check_reach_of_slack() {
  for (const float slope2 : {0.01f, 0.7f, 20.0f}) {
    for (float slack = -300.0f; slack < 40.0f; slack += 1.7f) {
      const int reach = reach_of_slack(slack, slope2);
      for (int d = most(reach, 0); d < reach + 20; ++d)
        expect(row_is_done(slack, slope2, d, 0.0f), "done beyond the reach", d, reach);
      expect(reach < 3 || !row_is_done(slack, slope2, reach - 3, 0.0f), "reach is tight", reach);
    }
  }
  expect(reach_of_slack(NAN, 1.0f) == kMaxLength, "no bound, no reach");
  expect(reach_of_slack(INFINITY, 1.0f) < 0, "a row that sees nothing reaches nothing");
}

// Every tile of every sequence once, few sequences at a time, the last tiles first.
void check_longest_first() {
  for (int tiles = 1; tiles <= 4; ++tiles) {
    for (int sequences = 1; sequences <= 7; ++sequences) {
      for (int together = 1; together <= sequences; ++together) {
        std::set<int> seen;
        TilePlace before = {0, tiles - 1};
        for (int i = 0; i < tiles * sequences; ++i) {
          const TilePlace at = longest_first(static_cast<unsigned>(i), tiles, sequences, together);
          expect(at.tile >= 0 && at.tile < tiles && at.sequence >= 0 && at.sequence < sequences,
                 "longest_first stays inside", i, at.sequence, at.tile);
          seen.insert(at.sequence * tiles + at.tile);
          const int section = at.sequence / together, last = before.sequence / together;
          expect(section > last || (section == last && at.tile <= before.tile),
                 "sections in turn, tiles from the last", i, section, at.tile);
          before = at;
        }
        expect(static_cast<int>(seen.size()) == tiles * sequences, "every tile once", tiles,
               sequences, together);
      }
    }
  }
}

// Every task once, in rounds, and no block's share much longer than another's when tasks shrink.
void check_serpentine() {
  for (int blocks = 1; blocks <= 6; ++blocks) {
    for (int rounds = 2; rounds <= 8; rounds += 2) {
      const int tasks = rounds * blocks;
      std::set<int> seen;
      int shortest = tasks * tasks, longest = 0;
      for (int block = 0; block < blocks; ++block) {
        int length = 0;
        for (int round = 0; round < rounds; ++round) {
          const int index = serpentine(round, block, blocks);
          expect(index / blocks == round, "a task of the round", blocks, round, block);
          seen.insert(index);
          length += tasks - index;
        }
        shortest = least(shortest, length);
        longest = most(longest, length);
      }
      expect(static_cast<int>(seen.size()) == tasks, "every task once", blocks, rounds, 0);
      expect(longest == shortest, "shares are even", blocks, longest, shortest);
    }
  }
}

// What the groups of a block may hold is what it started with, and not the whole register file: 168
// registers for each of 384 threads, 128 for each of 512.
void check_registers() {
  expect(fits_registers(2, 240, 24) && fits_registers(3, 160, 32), "a block has these registers");
  expect(!fits_registers(2, 240, 32) && !fits_registers(3, 168, 24),
         "a block has no more registers");
}

}  // namespace

int main() {
  for (const bool causal : {false, true}) {
    for (int q_start = -4; q_start <= 14; q_start += 3) {
      for (int start = 0; start <= 15; start += 5) {
        for (int end = start; end <= 15; end += 4) {
          const Span s = {start, end, q_start};
          check_ranges(s, 7, 15, causal, 3, 4);
          check_ranges(s, 8, 15, causal, 4, 2);
          check_tile_kinds(s, causal);
        }
      }
    }
  }
  for (int position = -5; position < 40; ++position) {
    for (int end = 0; end <= 30; end += 3) {
      for (const int size : {1, 4, 16}) check_walk({end / 3, end}, position, size);
    }
  }
  check_spans();
  check_prune_bound();
  check_distance_bits();
  check_splits();
  check_decoding();
  check_within_reach();
  check_longest_first();
  check_serpentine();
  check_reach_of_slack();
  check_swizzle();
  check_tile_tables();
  check_registers();
  if (failures > 0) printf("%d failures\n", failures);
  return failures > 0 ? 1 : 0;
}
