// Tiles in shared memory as the copy engine leaves them, and products of them on the tensor cores.
//
// A tile of R rows and D columns is D / 64 panels, one after another; a panel is R rows of 128
// bytes. The 128-byte swizzle exchanges the eight 16-byte pieces of a row: piece p of row r lies at
// p ^ (r % 8). Panels therefore start on multiples of 1024 bytes, and a step along the columns of a
// panel is a plain addition to a descriptor's address, which the hardware swizzles afterwards.
//
//   operand with rows along M or N (Q, K)    columns are k: one instruction takes 16 of them, 32
//                                            bytes; stride = 1024, from 8 rows to the next 8
//   operand with rows along k (V)            "transposed": one instruction takes 16 rows, 2048
//                                            bytes; stride = 1024, from 8 rows to the next 8;
//                                            leading = from a panel, 64 columns of N, to the next
#ifndef ALIBI_CUDA_SM90_MATRIX_CUH_
#define ALIBI_CUDA_SM90_MATRIX_CUH_

#include "../tile_config.h"
#include "device.cuh"
#include "tensor_map.h"

namespace alibi {
namespace cuda {

constexpr int kEightRows = 8 * kPanelRowBytes;  // 1024 bytes, after which the swizzle repeats

template <int kRows>
constexpr int kPanelBytes = kRows * kPanelRowBytes;
template <int kRows, int D>
constexpr int kTileBytes = D / kPanelColumns * kPanelBytes<kRows>;

// The same descriptor with its address moved on, which never carries beyond the low half.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, int bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + static_cast<uint32_t>(bytes >> 4);
  return (descriptor & 0xffffffff00000000u) | low;
}

// Starts s = a b^T: 64 rows of tile a, from `a` on (a multiple of 8 rows), times 8 kN rows of tile b,
// from `b` on, both D wide. kRowsA, kRowsB: rows of the whole tiles.
template <class T, int D, int kRowsA, int kRowsB, int kN>
__device__ __forceinline__ void start_scores(float (&s)[kN][4], uint32_t a, uint32_t b) {
  const uint64_t left = matrix_descriptor(a, 16, kEightRows);
  const uint64_t right = matrix_descriptor(b, 16, kEightRows);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    const int panel = k / 4, column_bytes = k % 4 * 32;
    multiply_shared<false, false>(s, advance(left, panel * kPanelBytes<kRowsA> + column_bytes),
                                  advance(right, panel * kPanelBytes<kRowsB> + column_bytes),
                                  k != 0, T{});
  }
}

// The same with a (64 x D) in registers, as load_rows leaves it.
template <class T, int D, int kRowsB, int kN>
__device__ __forceinline__ void start_scores(float (&s)[kN][4], const uint32_t (&a)[D / 16][4],
                                             uint32_t b) {
  const uint64_t right = matrix_descriptor(b, 16, kEightRows);
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    multiply_held<false>(s, a[k], advance(right, k / 4 * kPanelBytes<kRowsB> + k % 4 * 32), k != 0,
                         T{});
  }
}

// 16 rows of a tile per warp, from `row` on, as the left operand of products.
template <int D, int kRows>
__device__ __forceinline__ void load_rows(uint32_t (&a)[D / 16][4], uint32_t tile, int row) {
  const int line = row + lane_id() % 16;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    const int piece = k % 4 * 2 + lane_id() / 16;
    load_matrices<false>(
        a[k], tile + k / 4 * kPanelBytes<kRows> + line * kPanelRowBytes + (piece ^ line % 8) * 16);
  }
}

// Starts o += p b: p (64 x 16 kK) in registers, times 16 kK rows of tile b, from `b` on, D wide.
template <class T, int D, int kRowsB, int kK>
__device__ __forceinline__ void start_sum(float (&o)[D / 8][4], const uint32_t (&p)[kK][4],
                                          uint32_t b) {
  const uint64_t right = matrix_descriptor(b, kPanelBytes<kRowsB>, kEightRows);
#pragma unroll
  for (int k = 0; k < kK; ++k)
    multiply_held<true>(o, p[k], advance(right, k * 2 * kEightRows), true, T{});
}

// Accumulators, rounded to T, as the left operand of the next product.
template <class T, int kN>
__device__ __forceinline__ void pack_tile(uint32_t (&p)[kN / 2][4], const float (&s)[kN][4]) {
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      p[k][i] = pack<T>(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
  }
}

// Starts the copies of kRows rows of a tile, all D columns; counted in `barrier`, which must expect
// kTileBytes. One thread.
template <int kRows, int D>
__device__ __forceinline__ void copy_tile(uint32_t tile, const CUtensorMap& map, uint32_t barrier,
                                          int row, int head, int batch) {
#pragma unroll
  for (int panel = 0; panel < D / kPanelColumns; ++panel) {
    copy_box(tile + panel * kPanelBytes<kRows>, map, barrier, panel * kPanelColumns, row, head,
             batch);
  }
}

// Clears the rows of a tile that lie outside `valid`; the tile holds rows from `first` on. All lanes
// of a warp. What copies and threads have written is ready for products when every lane has come
// back and one of them has arrived at a barrier.
template <int kRows, int D>
__device__ __forceinline__ void clear_rows(uint32_t tile, int first, Range valid) {
#pragma unroll 1  // the warp that copies has few registers
  for (int row = lane_id(); row < kRows; row += 32) {
    if (first + row >= valid.begin && first + row < valid.end) continue;
#pragma unroll
    for (int piece = 0; piece < D / 8; ++piece) {
      store_shared_zeros(tile + piece / 8 * kPanelBytes<kRows> + row * kPanelRowBytes +
                         piece % 8 * 16);
    }
  }
  fence_async_proxy();
  __syncwarp();
}

// Whether rows [first, first + kRows) reach beyond `valid`.
template <int kRows>
__device__ __forceinline__ bool needs_clearing(int first, Range valid) {
  return first < valid.begin || first + kRows > valid.end;
}

// Position in a ring of kStages buffers. The buffer's barriers complete once per round, so the
// parity to wait for changes when the ring starts over.
template <int kStages>
struct RingPlace {
  int stage = 0;
  int parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_MATRIX_CUH_
