// From raw products to scores in base 2: scale, ALiBi bias, mask. One function for both
// orientations of a score tile.
//
//   x = c * <q_i, k_j> + slope2 * f(j - p_i)     -inf where not allowed
//   c = scale * log2(e)     slope2 = slope * log2(e)
//
// Distances are differences of integers, exact in float32. A tile that is wholly allowed and lies
// on one side of the diagonal takes the short way: its bias is linear, so each element is two fused
// multiply-adds with constants of the unrolled loop.
#ifndef ALIBI_CUDA_SM80_BIAS_MASK_CUH_
#define ALIBI_CUDA_SM80_BIAS_MASK_CUH_

#include "../params.h"
#include "tile.cuh"

namespace alibi {
namespace cuda {

// What the scores of one head of one batch item depend on, besides q and k.
struct HeadView {
  Span span;
  bool causal;
  bool symmetric;
  float scale2;  // scale * log2(e)
  float slope;
  float slope2;  // slope * log2(e)
};

__device__ __forceinline__ Span load_span(const ProblemView& problem, int batch) {
  if (problem.spans == nullptr) return default_span(problem.len_q, problem.len_k);
  const int32_t* span = problem.spans + 3 * batch;
  return safe_span(span[0], span[1], span[2], problem.len_k);
}

__device__ __forceinline__ HeadView load_head(const ProblemView& problem, int batch, int head) {
  const float slope = problem.slopes[head];
  return {load_span(problem, batch), problem.causal, problem.symmetric,
          problem.scale * kLog2E,    slope,          slope * kLog2E};
}

// The factor of the slope: -|j - p_i| or j - p_i.
__device__ __forceinline__ float bias_factor(const HeadView& head, float distance) {
  return head.symmetric ? -fabsf(distance) : distance;
}

// Keys of a row that are allowed, counted from `key`, whose distance from the row's position is
// given.
__device__ __forceinline__ Range allowed_from(const HeadView& head, int key, int distance) {
  const int end = head.span.kv_end - key;
  return {head.span.kv_start - key, head.causal ? least(end, 1 - distance) : end};
}

// Turns products into scores. Element (m, t, e) of s belongs to tile row row0 + 16m + l/4 + 8(e/2)
// and tile column column0 + 8t + 2(l%4) + e%2; rows are queries and columns keys, or the other way
// round with kRowsAreKeys. kSelect: pairs that are not allowed are replaced without branches, which
// takes a few registers more.
template <bool kRowsAreKeys, bool kSelect = false, int kM, int kN>
__device__ __forceinline__ void add_bias_and_mask(float (&s)[kM][kN][4], const HeadView& head,
                                                  int row0, int column0) {
  constexpr float kStep =
      kRowsAreKeys ? -1.0f : 1.0f;  // of the distance j - p_i from one column to the next
  const Range rows = {row0, row0 + 16 * kM}, columns = {column0, column0 + 8 * kN};
  const Range queries = kRowsAreKeys ? columns : rows, keys = kRowsAreKeys ? rows : columns;
  const int side = side_of_diagonal(head.span, queries, keys);
  const bool plain =
      all_allowed(head.span, queries, keys, head.causal) && (side != 0 || !head.symmetric);
  const float slope2 = head.symmetric && side > 0 ? -head.slope2 : head.slope2;
  const int lane = lane_id();
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int row = row0 + 8 * i + lane / 4, column = column0 + lane % 4 * 2;
    const int key = kRowsAreKeys ? row : column, query = kRowsAreKeys ? column : row;
    const int distance0 = key - query - head.span.q_start;
    const float first = static_cast<float>(distance0);
    if (plain) {
#pragma unroll
      for (int c = 0; c < 2 * kN; ++c) {
        float& x = s[i / 2][c / 2][i % 2 * 2 + c % 2];
        x = fmaf(slope2, first + kStep * static_cast<float>(c / 2 * 8 + c % 2), x * head.scale2);
      }
    } else if constexpr (kSelect) {
      static_assert(!kRowsAreKeys, "allowed keys are columns");
      const Range allowed = allowed_from(head, key, distance0);
#pragma unroll
      for (int c = 0; c < 2 * kN; ++c) {
        const int offset = c / 2 * 8 + c % 2;
        const float distance = first + static_cast<float>(offset);
        float& x = s[i / 2][c / 2][i % 2 * 2 + c % 2];
        x = fmaf(head.slope2, bias_factor(head, distance), x * head.scale2);
        x = (offset >= allowed.begin) & (offset < allowed.end) ? x : -INFINITY;
      }
    } else {
#pragma unroll
      for (int c = 0; c < 2 * kN; ++c) {
        const int offset = c / 2 * 8 + c % 2;
        const float distance = first + kStep * static_cast<float>(offset);
        const int j = kRowsAreKeys ? key : key + offset;
        const bool allowed =
            j >= head.span.kv_start && j < head.span.kv_end && !(head.causal && distance > 0.0f);
        float& x = s[i / 2][c / 2][i % 2 * 2 + c % 2];
        x = allowed ? fmaf(head.slope2, bias_factor(head, distance), x * head.scale2) : -INFINITY;
      }
    }
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_BIAS_MASK_CUH_
