// Running softmax of a tile of query rows, in base 2: row_max and row_sum follow the scores from
// tile to tile, and what has been accumulated is rescaled whenever the maximum moves.
#ifndef ALIBI_CUDA_SM80_SOFTMAX_CUH_
#define ALIBI_CUDA_SM80_SOFTMAX_CUH_

#include "tile.cuh"

namespace alibi {
namespace cuda {

template <int kM>
struct RowState {
  float row_max[kM][2];  // the same in the four lanes of a row
  float row_sum[kM][2];  // this lane's share

  __device__ __forceinline__ RowState() {
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) {
      row_max[i / 2][i % 2] = -INFINITY;
      row_sum[i / 2][i % 2] = 0.0f;
    }
  }

  // Takes in one score tile, which becomes its weights exp2(s - row_max); returns in `rescale` what
  // older sums must be multiplied by. A row that has seen nothing allowed keeps row_max = -inf and
  // gets weights 0. Scores of row i may be handed in without a part that they share, offset[i].
  // kChains: of maxima and of sums, in which every step waits for the one before.
  template <int kChains = 1, int kN>
  __device__ __forceinline__ void absorb(float (&s)[kM][kN][4], float (&rescale)[kM][2],
                                         const float (&offset)[kM][2] = {}) {
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) {
      float& top = row_max[i / 2][i % 2];
      float tops[kChains];
#pragma unroll
      for (int c = 0; c < 2 * kN; ++c) {
        const float x = s[i / 2][c / 2][i % 2 * 2 + c % 2];
        tops[c % kChains] = c < kChains ? x : fmaxf(tops[c % kChains], x);
      }
#pragma unroll
      for (int c = 1; c < kChains; ++c) tops[0] = fmaxf(tops[0], tops[c]);
      const float largest = fmaxf(top, quad_max(tops[0]) + offset[i / 2][i % 2]);
      const float anchor = largest == -INFINITY ? 0.0f : largest;
      rescale[i / 2][i % 2] = exp2_fast(top - anchor);
      top = largest;
      const float shift = anchor - offset[i / 2][i % 2];
      float sums[kChains];
#pragma unroll
      for (int c = 0; c < 2 * kN; ++c) {
        float& x = s[i / 2][c / 2][i % 2 * 2 + c % 2];
        x = exp2_fast(x - shift);
        sums[c % kChains] = c < kChains ? x : sums[c % kChains] + x;
      }
#pragma unroll
      for (int c = 1; c < kChains; ++c) sums[0] += sums[c];
      row_sum[i / 2][i % 2] = fmaf(row_sum[i / 2][i % 2], rescale[i / 2][i % 2], sums[0]);
    }
  }

  // Adds the four shares of every row. Called once, by all lanes, after the last tile.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) row_sum[i / 2][i % 2] = quad_sum(row_sum[i / 2][i % 2]);
  }

  // A row without allowed keys has a sum of 0, and one with a NaN among its scores a sum of NaN. The
  // sum alone tells them apart: fmaxf passes over NaN, so that row_max is -inf for both.

  // log2 of the row's sum of 2^score; -inf for a row without allowed keys.
  __device__ __forceinline__ float log2_sum(int i) const {
    return row_max[i / 2][i % 2] + log2f(row_sum[i / 2][i % 2]);
  }

  // 1 / sum, or 0 for a row without allowed keys.
  __device__ __forceinline__ float inverse_sum(int i) const {
    const float sum = row_sum[i / 2][i % 2];
    return sum == 0.0f ? 0.0f : 1.0f / sum;
  }
};

template <int kM, int kN>
__device__ __forceinline__ void rescale_rows(float (&o)[kM][kN][4], const float (&rescale)[kM][2]) {
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
#pragma unroll
    for (int t = 0; t < kN; ++t) {
      o[i / 2][t][i % 2 * 2] *= rescale[i / 2][i % 2];
      o[i / 2][t][i % 2 * 2 + 1] *= rescale[i / 2][i % 2];
    }
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_SOFTMAX_CUH_
