// The tile sizes: the one table of each kernel. First the portable ones.
//
// A thread block works on `warps * row_blocks * 16` rows that stay in shared memory and walks over
// tiles of `columns` rows of the other kind. Rows are queries in the forward, dq and weights
// kernels and keys in the dk/dv kernels. A warp owns 16 or 32 rows: two blocks of 16 read each tile
// of the other operand once for both, which halves the shared memory traffic, where the registers
// allow it. Sizes keep shared memory below the 99 KiB of sm_86 and sm_89, and accumulators below
// 192 registers.
//
// Every row of a table is one template instantiation; other head sizes run in the next larger one,
// padded with zeros.
#ifndef ALIBI_CUDA_TILE_CONFIG_H_
#define ALIBI_CUDA_TILE_CONFIG_H_

#include "geometry.h"

namespace alibi {
namespace cuda {

struct TileConfig {
  int bytes;       // of one element
  int head_dim;    // of the instantiation
  int warps;       // per block
  int row_blocks;  // of 16 rows, per warp
  int columns;     // per tile of the other operand

  ALIBI_HD constexpr int rows() const { return warps * row_blocks * 16; }
  ALIBI_HD constexpr int threads() const { return warps * 32; }
};

// out = softmax(q k^T) v: accumulators row_blocks * (columns + head_dim) / 2 registers.
constexpr TileConfig kForwardTiles[] = {
    {2, 32, 4, 2, 64},  {2, 64, 4, 2, 64},  {2, 96, 4, 2, 64},
    {2, 128, 4, 2, 32}, {2, 256, 4, 1, 64}, {4, 32, 4, 2, 64},
    {4, 64, 4, 2, 64},  {4, 128, 4, 1, 32}, {4, 256, 4, 1, 16},
};

// The same with the keys split over several blocks, for a few query rows against many keys: smaller
// tiles of rows.
constexpr TileConfig kSplitTiles[] = {
    {2, 32, 4, 1, 64},  {2, 64, 4, 1, 64},  {2, 96, 4, 1, 64},
    {2, 128, 4, 1, 64}, {2, 256, 4, 1, 64}, {4, 32, 4, 1, 64},
    {4, 64, 4, 1, 64},  {4, 128, 4, 1, 32}, {4, 256, 4, 1, 16},
};

// dq = ds k: accumulators row_blocks * (columns + head_dim / 2).
constexpr TileConfig kQueryGradTiles[] = {
    {2, 32, 4, 1, 64},  {2, 64, 4, 1, 64},  {2, 96, 4, 1, 64},
    {2, 128, 4, 1, 64}, {2, 256, 4, 1, 32}, {4, 32, 4, 1, 64},
    {4, 64, 4, 1, 32},  {4, 128, 4, 1, 32}, {4, 256, 2, 1, 16},
};

// dk = ds^T q, dv = p^T dout: accumulators row_blocks * (columns + head_dim). Head size 256 runs
// once for dk, once for dv.
constexpr TileConfig kKeyGradTiles[] = {
    {2, 32, 4, 1, 64},  {2, 64, 4, 1, 64},  {2, 96, 4, 1, 32},
    {2, 128, 4, 1, 32}, {2, 256, 4, 1, 32}, {4, 32, 4, 1, 32},
    {4, 64, 4, 1, 32},  {4, 128, 4, 1, 16}, {4, 256, 2, 1, 16},
};

// The Hopper kernels: `groups` warpgroups of 64 rows each, and one more that starts copies
// into `stages` buffers for each tensor that passes by. The block has all 65536 registers of the
// multiprocessor: they are dealt out evenly when it starts and then moved to where the accumulators
// are.
struct WarpgroupTile {
  int head_dim;
  int groups;
  int columns;
  int stages;
  int consumer_registers;
  int producer_registers;

  ALIBI_HD constexpr int rows() const { return groups * 64; }
  ALIBI_HD constexpr int threads() const { return (groups + 1) * 128; }
  ALIBI_HD constexpr bool fits_registers() const {
    return (groups * consumer_registers + producer_registers) * 128 <= 65536;
  }
};

// out = softmax(q k^T) v: accumulators (columns + head_dim) / 2 registers, and columns / 4 for P.
constexpr WarpgroupTile kHopperForwardTiles[] = {{64, 2, 128, 2, 240, 24},
                                                 {128, 2, 128, 2, 240, 24}};

// dq: rows are queries. Accumulators columns + head_dim / 2, and columns / 4 for dS.
constexpr WarpgroupTile kHopperQueryGradTiles[] = {{64, 2, 64, 2, 240, 24},
                                                   {128, 2, 64, 2, 240, 24}};

// dk, dv: rows are keys, columns queries. Accumulators columns + head_dim, columns / 2 for P and dS.
constexpr WarpgroupTile kHopperKeyGradTiles[] = {{64, 2, 64, 2, 240, 24}, {128, 2, 64, 2, 240, 24}};

template <int D>
constexpr WarpgroupTile kHopperQueryGradTile = kHopperQueryGradTiles[D == 64 ? 0 : 1];
template <int D>
constexpr WarpgroupTile kHopperKeyGradTile = kHopperKeyGradTiles[D == 64 ? 0 : 1];
template <int D>
constexpr WarpgroupTile kHopperForwardTile = kHopperForwardTiles[D == 64 ? 0 : 1];
static_assert(kHopperForwardTile<64>.head_dim == 64 && kHopperForwardTile<64>.fits_registers(), "");
static_assert(kHopperForwardTile<128>.head_dim == 128 && kHopperForwardTile<128>.fits_registers(),
              "");

template <int N>
constexpr TileConfig find_tile(const TileConfig (&table)[N], int bytes, int head_dim) {
  for (const TileConfig& tile : table) {
    if (tile.bytes == bytes && tile.head_dim >= head_dim) return tile;
  }
  return TileConfig{};
}

template <class T, int D>
constexpr TileConfig kSplitTile = find_tile(kSplitTiles, sizeof(T), D);
template <class T, int D>
constexpr TileConfig kForwardTile = find_tile(kForwardTiles, sizeof(T), D);
template <class T, int D>
constexpr TileConfig kQueryGradTile = find_tile(kQueryGradTiles, sizeof(T), D);
template <class T, int D>
constexpr TileConfig kKeyGradTile = find_tile(kKeyGradTiles, sizeof(T), D);

// For __launch_bounds__, in which the compiler of CUDA 11.2 takes no member of a variable template.
template <class T, int D>
constexpr int kForwardThreads = kForwardTile<T, D>.threads();
template <class T, int D>
constexpr int kQueryGradThreads = kQueryGradTile<T, D>.threads();
template <class T, int D>
constexpr int kKeyGradThreads = kKeyGradTile<T, D>.threads();

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_TILE_CONFIG_H_
