// Fewer query tiles than the GPU has room for: the keys of a query tile are shared by several blocks.
//
//   each block     its part of the keys, as a forward pass of its own: out_s, lse_s
//   combine        lse = log sum_s exp(lse_s)      out = sum_s exp(lse_s - lse) out_s
//
// Before they share, all blocks of a query tile work out which keys the pruning bound leaves (the
// same for all of them), so that each gets an even part of what has to be read. Parts are added up
// in one order: the result is always the same.
#ifndef ALIBI_CUDA_SM80_SPLIT_CUH_
#define ALIBI_CUDA_SM80_SPLIT_CUH_

#include "../tile_config.h"
#include "block.cuh"

namespace alibi {
namespace cuda {

// The keys of a task that can matter to one of the rows. Every warp computes all of it, one row
// per lane.
template <class T>
__device__ __forceinline__ Range reachable_keys(const ForwardParams& params,
                                                const QueryTask& task) {
  const ProblemView& problem = params.problem;
  const HeadView& head = task.head;
  const Range rows = task.rows, keys = task.keys;
  if (keys.empty() || !can_prune(problem.prune, head.slope, head.causal, head.symmetric)) {
    return keys;
  }
  const float k_norm = params.key_norms[task.place.batch * problem.heads_kv + task.kv_head];
  const float bits = tail_bits(head.slope, problem.len_k);
  const T* q = head_data<const T>(params.q, task.place.batch, task.place.head);
  int begin = keys.end, end = keys.begin;
  for (int row = rows.begin + lane_id(); row < rows.end; row += 32) {
    const int position = head.span.q_start + row;
    if (head.causal && position < head.span.kv_start) continue;  // sees nothing
    float sum = 0.0f;
    for (int x = 0; x < problem.head_dim; ++x) {
      const float value = to_float(q[row * params.q.stride_s + x]);
      sum = fmaf(value, value, sum);
    }
    const float ceiling = score_ceiling(problem.scale, norm_of(sum), k_norm);
    const int nearest = distance_to(position, {head.span.kv_start, head.span.kv_end});
    const int64_t reach = pruning_reach(ceiling, ceiling + bits, head.slope2, nearest);
    if (position - reach < begin)
      begin = position - reach < keys.begin ? keys.begin : static_cast<int>(position - reach);
    if (position + reach >= end)
      end = position + reach >= keys.end ? keys.end : static_cast<int>(position + reach + 1);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    begin = least(begin, __shfl_xor_sync(kAllLanes, begin, step));
    end = most(end, __shfl_xor_sync(kAllLanes, end, step));
  }
  return {begin, end};
}

constexpr int kCombineThreads = 128;
constexpr int kCombineWarps = kCombineThreads / 32;
constexpr int kCombineColumns = 8;  // of each lane: rows of up to 256
constexpr int kCombineShared = kCombineWarps * kCombineColumns * 32 * 4;

// What the parts of a row are weighed by: part s by exp2(lse_s - anchor) / sum.
struct SplitWeights {
  float anchor;
  float sum;
  float lse2;  // -inf: none of the parts has a key; NaN: one of them has a NaN
};

// One warp.
__device__ __forceinline__ SplitWeights split_weights(const float* lse2, int64_t stride,
                                                      int splits) {
  float top = -INFINITY, sum = 0.0f;
  for (int s = lane_id(); s < splits; s += 32) top = fmaxf(top, lse2[s * stride]);
  top = warp_max(top);
  const float anchor = top == -INFINITY ? 0.0f : top;
  for (int s = lane_id(); s < splits; s += 32) sum += exp2_fast(lse2[s * stride] - anchor);
  sum = warp_sum(sum);
  return {anchor, sum, top + log2f(sum)};
}

// One block per row of [B, Hq, Sq]. Each warp adds up every fourth part, the first of them their
// sums.
template <class T>
__global__ void __launch_bounds__(kCombineThreads) combine_splits(const ForwardParams params) {
  const ProblemView& problem = params.problem;
  const int64_t rows = static_cast<int64_t>(problem.batch) * problem.heads_q * problem.len_q;
  const int64_t index = blockIdx.x;
  const auto [anchor, sum, lse2] = split_weights(params.split_lse + index, rows, params.splits);
  if (threadIdx.x == 0) params.lse[index] = lse2 * kLn2;

  float values[kCombineColumns] = {};
#pragma unroll 4
  for (int s = warp_id(); s < params.splits; s += kCombineWarps) {
    if (lse2 == -INFINITY) break;
    const float weight = exp2_fast(params.split_lse[s * rows + index] - anchor) / sum;
    const float* part = params.split_out + (s * rows + index) * problem.head_dim;
#pragma unroll
    for (int i = 0; i < kCombineColumns; ++i) {
      const int x = i * 32 + lane_id();
      if (x < problem.head_dim) values[i] = fmaf(weight, part[x], values[i]);
    }
  }
  const uint32_t own = shared_base() + static_cast<uint32_t>(lane_id() * 4);
#pragma unroll
  for (int i = 0; i < kCombineColumns; ++i)
    store_shared(own + static_cast<uint32_t>((warp_id() * kCombineColumns + i) * 128), values[i]);
  __syncthreads();

  const int row = static_cast<int>(index % problem.len_q);
  const int head = static_cast<int>(index / problem.len_q % problem.heads_q);
  const int batch = static_cast<int>(index / problem.len_q / problem.heads_q);
  T* out = head_data<T>(params.out, batch, head) + row * params.out.stride_s;
  for (int x = static_cast<int>(threadIdx.x); x < problem.head_dim; x += kCombineThreads) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kCombineWarps; ++w) {
      float part;
      load_shared(part, shared_base() + static_cast<uint32_t>((w * kCombineColumns * 32 + x) * 4));
      total += part;
    }
    from_float(out[x], total);
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_SPLIT_CUH_
