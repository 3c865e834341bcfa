// The tile sizes: the one table of each kernel. First the portable ones.
//
// A thread block works on `warps * row_blocks * 16` rows that stay in shared memory and walks over
// tiles of `columns` rows of the other kind. Rows are queries in the forward, dq and weights
// kernels and keys in the dk/dv kernels. A warp owns 16 or 32 rows: two blocks of 16 read each tile
// of the other operand once for both, which halves the shared memory traffic, where the registers
// allow it. Sizes keep shared memory below the 99 KiB of sm_86 and sm_89, and accumulators below
// 192 registers.
//
// Turing (sm_75) has rows of its own where the others do not fit it: a block has 64 KiB there, and
// a copy passes through registers. The GPU of a call is known when it runs, so a row is a template
// parameter of the kernel: the library holds both, each compiled for the architectures that use it
// (runs_here), and the launch takes its sizes from the instantiation that it launches.
//
// Every row of a table is one template instantiation; other head sizes run in the next larger one,
// padded with zeros.
#ifndef ALIBI_CUDA_TILE_CONFIG_H_
#define ALIBI_CUDA_TILE_CONFIG_H_

#include "geometry.h"

namespace alibi {
namespace cuda {

enum class Gpu { kAmpere, kTuring };  // compute capability 8.0 and later; 7.5
constexpr Gpu kAmpere = Gpu::kAmpere, kTuring = Gpu::kTuring;

ALIBI_HD constexpr Gpu gpu_of_capability(int major) { return major < 8 ? kTuring : kAmpere; }
// Bytes of shared memory that a block may have on every GPU of the kind.
ALIBI_HD constexpr int shared_limit(Gpu gpu) { return (gpu == kTuring ? 64 : 99) * 1024; }

struct TileConfig {
  Gpu gpu;         // kAmpere: of Turing too, unless the row before is its own
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
    {kAmpere, 2, 32, 4, 2, 64},  {kAmpere, 2, 64, 4, 2, 64},   //
    {kTuring, 2, 96, 4, 1, 64},  {kAmpere, 2, 96, 4, 2, 64},   //
    {kAmpere, 2, 128, 4, 2, 32},                               //
    {kTuring, 2, 256, 4, 1, 32}, {kAmpere, 2, 256, 4, 1, 64},  //
    {kAmpere, 4, 32, 4, 2, 64},  {kAmpere, 4, 64, 4, 2, 64},   //
    {kAmpere, 4, 128, 4, 1, 32},                               //
    {kTuring, 4, 256, 2, 1, 16}, {kAmpere, 4, 256, 4, 1, 16},
};

// The same with the keys split over several blocks, for a few query rows against many keys: smaller
// tiles of rows.
constexpr TileConfig kSplitTiles[] = {
    {kAmpere, 2, 32, 4, 1, 64},  {kAmpere, 2, 64, 4, 1, 64},   //
    {kAmpere, 2, 96, 4, 1, 64},  {kAmpere, 2, 128, 4, 1, 64},  //
    {kTuring, 2, 256, 4, 1, 32}, {kAmpere, 2, 256, 4, 1, 64},  //
    {kAmpere, 4, 32, 4, 1, 64},  {kAmpere, 4, 64, 4, 1, 64},   //
    {kAmpere, 4, 128, 4, 1, 32},                               //
    {kTuring, 4, 256, 2, 1, 16}, {kAmpere, 4, 256, 4, 1, 16},
};

// The pass for few query rows. Every warp walks over tiles of `keys` rows of its own, with two
// buffers each for K and V. Small tiles: what counts is how many copies are in flight on a
// multiprocessor. Head sizes above 128 have no row: O alone would take half of the registers.
constexpr int kDecodeHeadDim = 128;
struct DecodeTile {
  Gpu gpu;       // as in TileConfig
  int bytes;     // of one element
  int head_dim;  // of the instantiation
  int warps;     // per block
  int keys;      // per tile
  int resident;  // blocks that the registers of a multiprocessor hold

  ALIBI_HD constexpr int threads() const { return warps * 32; }
  ALIBI_HD constexpr int tile_bytes() const { return keys * head_dim * bytes; }
  ALIBI_HD constexpr int ring_bytes() const { return 4 * tile_bytes(); }
  // The query rows, a ring for each warp, and two floats for each row of each warp.
  ALIBI_HD constexpr int shared_bytes() const {
    return kDecodeRows * head_dim * bytes + warps * (ring_bytes() + kDecodeRows * 8);
  }
};
constexpr DecodeTile kDecodeTiles[] = {
    {kAmpere, 2, 32, 4, 32, 4},                                //
    {kTuring, 2, 64, 2, 32, 3},  {kAmpere, 2, 64, 4, 32, 3},   //
    {kAmpere, 2, 96, 4, 16, 3},                                //
    {kTuring, 2, 128, 2, 16, 2}, {kAmpere, 2, 128, 4, 16, 2},  //
    {kAmpere, 4, 32, 4, 16, 4},  {kAmpere, 4, 64, 4, 8, 4},    //
    {kTuring, 4, 128, 2, 8, 2},  {kAmpere, 4, 128, 4, 8, 3},
};

// dq = ds k: accumulators row_blocks * (columns + head_dim / 2).
constexpr TileConfig kQueryGradTiles[] = {
    {kAmpere, 2, 32, 4, 1, 64},  {kAmpere, 2, 64, 4, 1, 64},   //
    {kAmpere, 2, 96, 4, 1, 64},                                //
    {kAmpere, 2, 128, 4, 1, 64},                               //
    {kTuring, 2, 256, 2, 1, 16}, {kAmpere, 2, 256, 4, 1, 32},  //
    {kAmpere, 4, 32, 4, 1, 64},  {kAmpere, 4, 64, 4, 1, 32},   //
    {kTuring, 4, 128, 2, 1, 32}, {kAmpere, 4, 128, 4, 1, 32},  //
    {kTuring, 4, 256, 1, 1, 16}, {kAmpere, 4, 256, 2, 1, 16},
};

// dk = ds^T q, dv = p^T dout: accumulators row_blocks * (columns + head_dim). Head size 256 runs
// once for dk, once for dv.
constexpr TileConfig kKeyGradTiles[] = {
    {kAmpere, 2, 32, 4, 1, 64},  {kAmpere, 2, 64, 4, 1, 64},   //
    {kAmpere, 2, 96, 4, 1, 32},                                //
    {kAmpere, 2, 128, 4, 1, 32},                               //
    {kTuring, 2, 256, 2, 1, 16}, {kAmpere, 2, 256, 4, 1, 32},  //
    {kAmpere, 4, 32, 4, 1, 32},  {kAmpere, 4, 64, 4, 1, 32},   //
    {kTuring, 4, 128, 2, 1, 16}, {kAmpere, 4, 128, 4, 1, 16},  //
    {kTuring, 4, 256, 1, 1, 8},  {kAmpere, 4, 256, 2, 1, 16},
};

// The Hopper kernels: `groups` warpgroups of 64 rows each, and one more that starts copies
// into `stages` buffers for each tensor that passes by. The block has all registers of the
// multiprocessor that 65536 leave to each thread in multiples of 8; what a group gives back, another
// may take, and no more.
ALIBI_HD constexpr bool fits_registers(int groups, int consumer_registers, int producer_registers) {
  return groups * consumer_registers + producer_registers <=
         65536 / ((groups + 1) * 128) / 8 * 8 * (groups + 1);
}

struct WarpgroupTile {
  int head_dim;
  int groups;
  int columns;
  int stages;
  int consumer_registers;
  int producer_registers;

  ALIBI_HD constexpr int rows() const { return groups * 64; }
  ALIBI_HD constexpr int threads() const { return (groups + 1) * 128; }
  ALIBI_HD constexpr bool fits() const {
    return fits_registers(groups, consumer_registers, producer_registers);
  }
};

// out = softmax(q k^T) v: accumulators (columns + head_dim) / 2 registers, and columns / 4 for P.
constexpr WarpgroupTile kHopperForwardTiles[] = {{64, 3, 128, 4, 160, 32},
                                                 {128, 2, 128, 3, 232, 40}};

// The Hopper backward kernel: rows are keys, columns queries. Accumulators columns + head_dim + 32
// registers, and columns / 2 for P and dS. Each group makes one piece of dq, of 64 rows and columns.
struct BackwardTile {
  int head_dim;
  int groups;
  int columns;
  int stages;        // of Q, dO and dS
  int piece_stages;  // of the pieces of dq
  int consumer_registers;
  int producer_registers;

  ALIBI_HD constexpr int rows() const { return groups * 64; }
  ALIBI_HD constexpr int threads() const { return (groups + 1) * 128; }
  ALIBI_HD constexpr bool fits() const {
    return fits_registers(groups, consumer_registers, producer_registers) &&
           columns / 64 * (head_dim / 64) == groups;
  }
};
constexpr BackwardTile kHopperBackwardTiles[] = {{64, 2, 128, 2, 2, 240, 24},
                                                 {128, 2, 64, 2, 2, 240, 24}};

template <int D>
constexpr BackwardTile kHopperBackwardTile = kHopperBackwardTiles[D == 64 ? 0 : 1];
static_assert(kHopperBackwardTile<64>.head_dim == 64 && kHopperBackwardTile<64>.fits(), "");
static_assert(kHopperBackwardTile<128>.head_dim == 128 && kHopperBackwardTile<128>.fits(), "");

template <int D>
constexpr WarpgroupTile kHopperForwardTile = kHopperForwardTiles[D == 64 ? 0 : 1];
static_assert(kHopperForwardTile<64>.head_dim == 64 && kHopperForwardTile<64>.fits(), "");
static_assert(kHopperForwardTile<128>.head_dim == 128 && kHopperForwardTile<128>.fits(), "");

template <class Tile, int N>
constexpr Tile find_tile(const Tile (&table)[N], Gpu gpu, int bytes, int head_dim) {
  for (const Tile& tile : table) {
    const bool fits = tile.bytes == bytes && tile.head_dim >= head_dim;
    if (fits && (tile.gpu == gpu || tile.gpu == kAmpere)) return tile;
  }
  return Tile{};
}

template <class T, int D, Gpu kGpu>
constexpr TileConfig kSplitTile = find_tile(kSplitTiles, kGpu, sizeof(T), D);
template <class T, int D, Gpu kGpu>
constexpr DecodeTile kDecodeTile = find_tile(kDecodeTiles, kGpu, sizeof(T), D);
template <class T, int D, Gpu kGpu>
constexpr TileConfig kForwardTile = find_tile(kForwardTiles, kGpu, sizeof(T), D);
template <class T, int D, Gpu kGpu>
constexpr TileConfig kQueryGradTile = find_tile(kQueryGradTiles, kGpu, sizeof(T), D);
template <class T, int D, Gpu kGpu>
constexpr TileConfig kKeyGradTile = find_tile(kKeyGradTiles, kGpu, sizeof(T), D);

// For __launch_bounds__, in which the compiler of CUDA 11.2 takes no member of a variable template.
template <class T, int D, Gpu kGpu>
constexpr int kDecodeThreads = kDecodeTile<T, D, kGpu>.threads();
template <class T, int D, Gpu kGpu>
constexpr int kDecodeResident = kDecodeTile<T, D, kGpu>.resident;
template <class T, int D, Gpu kGpu>
constexpr int kForwardThreads = kForwardTile<T, D, kGpu>.threads();
template <class T, int D, Gpu kGpu>
constexpr int kQueryGradThreads = kQueryGradTile<T, D, kGpu>.threads();
template <class T, int D, Gpu kGpu>
constexpr int kKeyGradThreads = kKeyGradTile<T, D, kGpu>.threads();

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_TILE_CONFIG_H_
