// Small kernels before and after the large ones. Each is bound by memory bandwidth and reads its
// input once.
//
//   pack_rows     rows that do not start on 16-byte boundaries are copied into a padded buffer,
//                 so that there is one way to load a tile
//   largest_norms largest |k_j| of every key head, or |q_i| of every query tile, for the pruning
//                 bound
//   row_deltas    delta_i = <dout_i, out_i> - dlse_i, and slack_i = lse_i minus what the pruning
//                 bound needs, in base 2
//   weight_deltas delta_i = sum_j p_ij dp_ij
//   sum_slopes    dslopes from one part per tile of query rows, in a fixed order
#ifndef ALIBI_CUDA_SM80_PREPASS_CUH_
#define ALIBI_CUDA_SM80_PREPASS_CUH_

#include "block.cuh"

namespace alibi {
namespace cuda {

constexpr int kPrepassThreads = 128;
constexpr int kPrepassWarps = kPrepassThreads / 32;
constexpr int kNormRows = 64;  // per block of largest_norms

struct PackParams {
  TensorView source;  // [B, H, S, D], any strides
  TensorView target;  // the same, rows padded with zeros up to stride_s
  int heads;
  int len;
  int head_dim;
};

// One warp per row of [B, H, S].
template <class T>
__global__ void __launch_bounds__(kPrepassThreads)
    pack_rows(const PackParams params, int64_t rows) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPrepassWarps + warp_id();
  if (index >= rows) return;
  const int row = static_cast<int>(index % params.len);
  const int head = static_cast<int>(index / params.len % params.heads);
  const int batch = static_cast<int>(index / params.len / params.heads);
  const T* source = head_data<const T>(params.source, batch, head) + row * params.source.stride_s;
  T* target = head_data<T>(params.target, batch, head) + row * params.target.stride_s;
  for (int x = lane_id(); x < params.target.stride_s; x += 32) {
    if (x < params.head_dim) {
      target[x] = source[x];
    } else {
      from_float(target[x], 0.0f);
    }
  }
}

// Squared length of a row, NaN turned into infinity, so that a row that cannot be bounded bounds
// nothing. One warp.
template <class T>
__device__ __forceinline__ float squared_norm(const T* row, int head_dim) {
  float sum = 0.0f;
  for (int x = lane_id(); x < head_dim; x += 32) {
    const float value = to_float(row[x]);
    sum = fmaf(value, value, sum);
  }
  sum = warp_sum(sum);
  return sum == sum ? sum : INFINITY;
}

struct NormParams {
  ProblemView problem;
  TensorView tensor;  // [B, heads, len, D]
  int heads;
  int len;
  int rows;      // that share a norm: all of them, or a multiple of kNormRows
  bool in_span;  // only rows of [kv_start, kv_end)
  float* norms;  // [B, heads, ceil(len / rows)], zero at the start
};

// The largest of non-negative floats is the largest of their bit patterns, in any order.
template <class T>
__global__ void __launch_bounds__(kPrepassThreads) largest_norms(const NormParams params) {
  const BlockPlace place = place_block(blockIdx.x, ceil_div(params.len, kNormRows), params.heads);
  const Span span = load_span(params.problem, place.batch);
  const Range valid = params.in_span ? Range{span.kv_start, span.kv_end} : Range{0, params.len};
  const int first = place.tile * kNormRows, end = least(valid.end, first + kNormRows);
  const T* data = head_data<const T>(params.tensor, place.batch, place.head);
  float largest = 0.0f;
  for (int row = most(valid.begin, first) + warp_id(); row < end; row += kPrepassWarps) {
    const T* values = data + row * params.tensor.stride_s;
    largest = fmaxf(largest, squared_norm(values, params.problem.head_dim));
  }
  if (lane_id() == 0) {
    const int sequence = place.batch * params.heads + place.head;
    const int index = sequence * ceil_div(params.len, params.rows) + first / params.rows;
    atomicMax(reinterpret_cast<int*>(params.norms) + index, __float_as_int(sqrtf(largest)));
  }
}

// One warp per row of [B, Hq, Sq].
template <class T>
__global__ void __launch_bounds__(kPrepassThreads) row_deltas(const BackwardParams params) {
  const ProblemView& problem = params.problem;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPrepassWarps + warp_id();
  if (index >= static_cast<int64_t>(problem.batch) * problem.heads_q * problem.len_q) return;
  const int row = static_cast<int>(index % problem.len_q);
  const int head = static_cast<int>(index / problem.len_q % problem.heads_q);
  const int batch = static_cast<int>(index / problem.len_q / problem.heads_q);
  const T* out = head_data<const T>(params.out, batch, head) + row * params.out.stride_s;
  const T* dout = head_data<const T>(params.dout, batch, head) + row * params.dout.stride_s;
  float sum = 0.0f;
  for (int x = lane_id(); x < problem.head_dim; x += 32)
    sum = fmaf(to_float(out[x]), to_float(dout[x]), sum);
  sum = warp_sum(sum);
  if (lane_id() == 0) params.delta[index] = params.dlse == nullptr ? sum : sum - params.dlse[index];
  if (params.slack == nullptr) return;

  const HeadView view = load_head(problem, batch, head);
  const T* q = head_data<const T>(params.q, batch, head) + row * params.q.stride_s;
  const float q_norm = sqrtf(squared_norm(q, problem.head_dim));
  const float k_norm = params.key_norms[batch * problem.heads_kv + key_head(problem, head)];
  const float needed =
      score_ceiling(problem.scale, q_norm, k_norm) + tail_bits(view.slope, problem.len_k);
  const float lse2 = params.lse[index] * kLog2E;
  if (lane_id() == 0) {
    // -inf: the row sees nothing, so everything is negligible to it. NaN never compares: nothing
    // is.
    const bool prunable = can_prune(problem.prune, view.slope, view.causal, view.symmetric);
    params.slack[index] = !prunable ? NAN : lse2 == -INFINITY ? INFINITY : lse2 - needed;
  }
}

// One warp per row of [B, Hq, Sq].
template <class T>
__global__ void __launch_bounds__(kPrepassThreads)
    weight_deltas(const WeightsBackwardParams params) {
  const ProblemView& problem = params.problem;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kPrepassWarps + warp_id();
  if (index >= static_cast<int64_t>(problem.batch) * problem.heads_q * problem.len_q) return;
  const int row = static_cast<int>(index % problem.len_q);
  const int head = static_cast<int>(index / problem.len_q % problem.heads_q);
  const int batch = static_cast<int>(index / problem.len_q / problem.heads_q);
  const T* p = head_data<const T>(params.p, batch, head) + row * params.p.stride_s;
  const T* dp = head_data<const T>(params.dp, batch, head) + row * params.dp.stride_s;
  float sum = 0.0f;
  for (int j = lane_id(); j < problem.len_k; j += 32)
    sum = fmaf(to_float(p[j]), to_float(dp[j]), sum);
  sum = warp_sum(sum);
  if (lane_id() == 0) params.delta[index] = sum;
}

// dslopes[h] = sum of parts[h, :]. One warp per head; lanes and the tree add in a fixed order, in
// the precision of Sum.
template <class Sum>
__global__ void __launch_bounds__(32)
    sum_slopes(const float* parts, float* dslopes, int64_t count) {
  const float* part = parts + blockIdx.x * count;
  Sum sum = 0;
  for (int64_t i = lane_id(); i < count; i += 32) sum += part[i];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (lane_id() == 0) dslopes[blockIdx.x] = static_cast<float>(sum);
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_PREPASS_CUH_
