// Tiles in shared memory and the two products made of them. All three element types share one
// register layout, that of the m16n8 accumulator: a thread holds, of each 16x8 piece, elements (g,
// 2q), (g, 2q+1), (g+8, 2q), (g+8, 2q+1), where g = lane / 4 and q = lane % 4. Scores come out of
// the first product in this layout and go into the second one as they are.
//
// float16 and bfloat16 run on the tensor cores. float32 runs on plain fused multiply-adds, which
// keep float32 accuracy.
#ifndef ALIBI_CUDA_SM80_TILE_CUH_
#define ALIBI_CUDA_SM80_TILE_CUH_

#include "../geometry.h"
#include "device.cuh"

namespace alibi {
namespace cuda {

// Elements of a 16-byte piece, and pieces of a row.
template <class T>
constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
template <class T, int D>
constexpr int kPieces = D / kPiece<T>;
template <class T, int D>
constexpr int kRowBytes = D * static_cast<int>(sizeof(T));

// What a thread reads or writes at once.
struct alignas(16) Words {
  uint32_t word[4];
};

template <class T>
constexpr bool kOnTensorCores = sizeof(T) == 2;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / 32; }

// Rows of one head of a tensor, each on a 16-byte boundary. Rows outside [valid.begin, valid.end)
// read as zeros, and so do columns from head_dim on.
template <class T>
struct RowSource {
  const T* data;
  int64_t stride;
  Range valid;
  int head_dim;
};

// Starts the copy of pieces [piece0, piece0 + kAcross) of rows [row0, row0 + kRows) into a tile.
template <class T, int D, int kRows, int kThreads, int kAcross>
__device__ __forceinline__ void load_strip(uint32_t tile, const RowSource<T>& source, int row0,
                                           int piece0) {
  constexpr int kRowPieces = kPieces<T, D>;
  constexpr int kFit =
      kThreads / kAcross;  // rows that the threads can copy at once, below as a power of two
  constexpr int kStep = kFit >= 16 ? 16 : kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  static_assert(kRows % kStep == 0 && kFit >= 1, "a tile must be whole passes of the block");
  const int thread = static_cast<int>(threadIdx.x);
  const int first = thread / kAcross;
  const int piece = piece0 + thread % kAcross;
  if (first >= kStep) return;
  const int count = most(0, least(source.head_dim - piece * kPiece<T>, kPiece<T>));
  int row = row0 + first;
  const T* from = source.data + row * source.stride + piece * kPiece<T>;
#pragma unroll 2  // more keeps too many addresses in registers
  for (int i = 0; i < kRows / kStep; ++i) {
    const bool valid = row >= source.valid.begin && row < source.valid.end && count > 0;
    const uint32_t target = tile + tile_offset(first + i * kStep, piece, kRowPieces);
    copy_async(target, valid ? from : source.data, valid ? count * static_cast<int>(sizeof(T)) : 0);
    row += kStep;
    from += kStep * source.stride;
  }
}

// Starts the copy of rows [row0, row0 + kRows) into a tile. All threads of the block take part; a
// block with fewer threads than a row has pieces goes over the rows more than once.
template <class T, int D, int kRows, int kThreads>
__device__ __forceinline__ void load_tile(uint32_t tile, const RowSource<T>& source, int row0) {
  constexpr int kAcross = least(kPieces<T, D>, kThreads);
#pragma unroll
  for (int piece = 0; piece < kPieces<T, D>; piece += kAcross)
    load_strip<T, D, kRows, kThreads, kAcross>(tile, source, row0, piece);
}

template <int kM, int kN>
__device__ __forceinline__ void set_zero(float (&x)[kM][kN][4]) {
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int t = 0; t < kN; ++t) x[m][t][0] = x[m][t][1] = x[m][t][2] = x[m][t][3] = 0.0f;
  }
}

// s += a b^T: rows [row0, row0 + 16 kM) of tile a times the 8 kN rows of tile b, both of width D.
template <class T, int D, int kM, int kN>
__device__ __forceinline__ void multiply_tiles(float (&s)[kM][kN][4], uint32_t a, int row0,
                                               uint32_t b) {
  constexpr int kRowPieces = kPieces<T, D>;
  const int lane = lane_id();
  if constexpr (kOnTensorCores<T>) {
    static_assert(kN % 2 == 0, "matrices of b are read in fours");
    // Matrices of a: rows (0-7, 8-15) x columns (0-7, 8-15). Of b the other way round: columns
    // first.
    const uint32_t a0 = a + tile_offset(row0 + lane % 16, lane / 16, kRowPieces);
    const uint32_t b0 = b + tile_offset(lane % 8 + lane / 16 * 8, lane / 8 % 2, kRowPieces);
#pragma unroll kUnrolledSteps
    for (int k = 0; k < D / 16; ++k) {
      uint32_t left[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        load_matrices<false>(left[m], tile_step(a0, 2 * k, kRowPieces) + 16 * m * kRowBytes<T, D>);
      }
#pragma unroll
      for (int t = 0; t < kN / 2; ++t) {
        uint32_t right[4];
        load_matrices<false>(right, tile_step(b0, 2 * k, kRowPieces) + 16 * t * kRowBytes<T, D>);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply_16816(s[m][2 * t], left[m], right[0], right[1], T{});
          multiply_16816(s[m][2 * t + 1], left[m], right[2], right[3], T{});
        }
      }
    }
  } else {
#pragma unroll 1
    for (int piece = 0; piece < kRowPieces; ++piece) {
      float left[kM][2][4];
#pragma unroll
      for (int i = 0; i < 2 * kM; ++i) {
        load_shared(left[i / 2][i % 2],
                    a + tile_offset(row0 + 8 * i + lane / 4, piece, kRowPieces));
      }
#pragma unroll
      for (int c = 0; c < 2 * kN; ++c) {
        float right[4];
        load_shared(right, b + tile_offset(c / 2 * 8 + lane % 4 * 2 + c % 2, piece, kRowPieces));
#pragma unroll
        for (int i = 0; i < 2 * kM; ++i) {
          float& sum = s[i / 2][c / 2][i % 2 * 2 + c % 2];
#pragma unroll
          for (int x = 0; x < 4; ++x) sum = fmaf(left[i / 2][i % 2][x], right[x], sum);
        }
      }
    }
  }
}

// o += p b: p (16 kM rows x 8 kN columns, in registers, rounded to T) times the 8 kN rows of tile
// b, of width D.
template <class T, int D, int kM, int kN>
__device__ __forceinline__ void multiply_registers(float (&o)[kM][D / 8][4],
                                                   const float (&p)[kM][kN][4], uint32_t b) {
  constexpr int kRowPieces = kPieces<T, D>;
  const int lane = lane_id();
  if constexpr (kOnTensorCores<T>) {
    const uint32_t b0 = b + tile_offset(lane % 16, lane / 16, kRowPieces);
#pragma unroll
    for (int k = 0; k < kN / 2; ++k) {
      uint32_t left[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          left[m][i] = pack<T>(p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int c = 0; c < D / 16; ++c) {
        uint32_t right
            [4];  // rows 16k + (0-7, 8-15) of b, transposed, each with columns 16c + (0-7, 8-15)
        load_matrices<true>(right, tile_step(b0, 2 * c, kRowPieces) + 16 * k * kRowBytes<T, D>);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          multiply_16816(o[m][2 * c], left[m], right[0], right[1], T{});
          multiply_16816(o[m][2 * c + 1], left[m], right[2], right[3], T{});
        }
      }
    }
  } else {
#pragma unroll
    for (int t = 0; t < kN; ++t) {
#pragma unroll 1
      for (int q = 0; q < 4; ++q) {  // columns 8t + 2q + {0, 1} of p lie with lane q of every quad
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const uint32_t b0 =
              b + tile_offset(8 * t + 2 * q + e, lane % 4 / 2, kRowPieces) + lane % 2 * 8;
          float left[kM][2];
#pragma unroll
          for (int i = 0; i < 2 * kM; ++i) {
            left[i / 2][i % 2] = __shfl_sync(kAllLanes, p[i / 2][t][i % 2 * 2 + e], q, 4);
          }
#pragma unroll
          for (int c = 0; c < D / 8; ++c) {
            float right[2];
            load_shared(right, tile_step(b0, 2 * c, kRowPieces));
#pragma unroll
            for (int i = 0; i < 2 * kM; ++i) {
              o[i / 2][c][i % 2 * 2] = fmaf(left[i / 2][i % 2], right[0], o[i / 2][c][i % 2 * 2]);
              o[i / 2][c][i % 2 * 2 + 1] =
                  fmaf(left[i / 2][i % 2], right[1], o[i / 2][c][i % 2 * 2 + 1]);
            }
          }
        }
      }
    }
  }
}

// Sum over the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// Writes this thread's part of row `row` (elements 2*half, 2*half + 1 of each 16x8 piece), times
// `factor`.
template <class T, int kN>
__device__ __forceinline__ void store_row(T* row, const float (&x)[kN][4], int half, float factor,
                                          int head_dim, bool aligned) {
  const int column0 = lane_id() % 4 * 2;
#pragma unroll
  for (int t = 0; t < kN; ++t) {
    const int column = 8 * t + column0;
    const float low = x[t][2 * half] * factor, high = x[t][2 * half + 1] * factor;
    if constexpr (kOnTensorCores<T>) {
      if (aligned && column + 1 < head_dim) {
        *reinterpret_cast<uint32_t*>(row + column) = pack<T>(low, high);
        continue;
      }
    }
    if (column < head_dim) from_float(row[column], low);
    if (column + 1 < head_dim) from_float(row[column + 1], high);
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_TILE_CUH_
