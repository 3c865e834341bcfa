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
constexpr int kPrepassRows = 64;  // per block of largest_norms and row_deltas

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

// ---- dot products of rows
//
// A row of 256 bytes is 16 pieces of 16 bytes, one for each of 16 lanes: a warp then reads two rows
// at once. To keep the memory busy it starts with kBatch such reads before it adds anything up. Rows
// that do not start on 16 bytes, and what is left at the end of one, are read element by element.

constexpr int kBatch = 4;

template <class T>
__device__ __forceinline__ float add_products(const Words& a, const Words& b, float sum) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kOnTensorCores<T>) {
      const float2 x = unpack<T>(a.word[i]), y = unpack<T>(b.word[i]);
      sum = fmaf(x.x, y.x, fmaf(x.y, y.y, sum));
    } else {
      sum = fmaf(__uint_as_float(a.word[i]), __uint_as_float(b.word[i]), sum);
    }
  }
  return sum;
}

// How a warp shares out rows of `width` elements: row `row` of every `step` belongs to `lanes`
// neighbouring lanes, of which this is number `lane`.
struct RowLanes {
  int lanes;
  int lane;
  int row;
  int step;
};

template <class T>
__device__ __forceinline__ RowLanes row_lanes(int width) {
  const int lanes = lanes_per_row(ceil_div(width, kPiece<T>));
  return {lanes, lane_id() % lanes, lane_id() / lanes, 32 / lanes};
}

// Rows of one head, as the dot products read them.
template <class T>
struct DotRows {
  const T* data;
  int64_t stride;
  bool aligned;
};

template <class T>
__device__ __forceinline__ DotRows<T> dot_rows(const TensorView& tensor, int batch, int head) {
  return {head_data<const T>(tensor, batch, head), tensor.stride_s, tensor.aligned};
}

// sums[u] = <a, b> of row first + u * split.step + split.row, or of row end - 1 where that is past the
// end: reads without a condition all start at once. One warp; first < end.
template <class T>
__device__ __forceinline__ void dot_products(const DotRows<T>& a, const DotRows<T>& b, int width,
                                             const RowLanes& split, int first, int end,
                                             float (&sums)[kBatch]) {
  const int whole = a.aligned && b.aligned ? width / kPiece<T> : 0;
#pragma unroll
  for (int u = 0; u < kBatch; ++u) sums[u] = 0.0f;
#pragma unroll 1
  for (int piece = split.lane; piece < whole; piece += split.lanes) {
    Words x[kBatch], y[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int64_t row = least(first + u * split.step + split.row, end - 1);
      x[u] = *reinterpret_cast<const Words*>(a.data + row * a.stride + piece * kPiece<T>);
      y[u] = *reinterpret_cast<const Words*>(b.data + row * b.stride + piece * kPiece<T>);
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) sums[u] = add_products<T>(x[u], y[u], sums[u]);
  }
#pragma unroll 1
  for (int x = whole * kPiece<T> + split.lane; x < width; x += split.lanes) {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int64_t row = least(first + u * split.step + split.row, end - 1);
      const T* left = a.data + row * a.stride;
      const T* right = b.data + row * b.stride;
      sums[u] = fmaf(to_float(left[x]), to_float(right[x]), sums[u]);
    }
  }
#pragma unroll
  for (int u = 0; u < kBatch; ++u) {
    for (int step = split.lanes / 2; step > 0; step /= 2)
      sums[u] += __shfl_xor_sync(kAllLanes, sums[u], step);
  }
}

// NaN becomes infinity, so that a row that cannot be bounded bounds nothing.
__device__ __forceinline__ float bounding(float squared_norm) {
  return squared_norm == squared_norm ? squared_norm : INFINITY;
}

struct NormParams {
  ProblemView problem;
  TensorView tensor;  // [B, heads, len, D]
  int heads;
  int len;
  int rows;      // that share a norm: all of them, or a multiple of kPrepassRows
  bool in_span;  // only rows of [kv_start, kv_end)
  float* norms;  // [B, heads, ceil(len / rows)], zero at the start
};

// The largest of non-negative floats is the largest of their bit patterns, in any order.
template <class T>
__global__ void __launch_bounds__(kPrepassThreads) largest_norms(const NormParams params) {
  const BlockPlace place =
      place_block(blockIdx.x, ceil_div(params.len, kPrepassRows), params.heads);
  const Span span = load_span(params.problem, place.batch);
  const Range valid = params.in_span ? Range{span.kv_start, span.kv_end} : Range{0, params.len};
  const int begin = place.tile * kPrepassRows, end = least(valid.end, begin + kPrepassRows);
  const DotRows<T> rows = dot_rows<T>(params.tensor, place.batch, place.head);
  const RowLanes split = row_lanes<T>(params.problem.head_dim);
  const int each = kBatch * split.step;
  float largest = 0.0f;
  for (int row = most(valid.begin, begin) + warp_id() * each; row < end;
       row += kPrepassWarps * each) {
    float sums[kBatch];
    dot_products(rows, rows, params.problem.head_dim, split, row, end, sums);
#pragma unroll
    for (int u = 0; u < kBatch; ++u) largest = fmaxf(largest, bounding(sums[u]));
  }
  largest = warp_max(largest);
  if (lane_id() == 0) {
    const int sequence = place.batch * params.heads + place.head;
    const int index = sequence * ceil_div(params.len, params.rows) + begin / params.rows;
    atomicMax(reinterpret_cast<int*>(params.norms) + index, __float_as_int(norm_of(largest)));
  }
}

// lse of a row minus what the pruning bound needs, in base 2. -inf: the row sees nothing, so
// everything is negligible to it. NaN never compares: nothing is.
__device__ __forceinline__ float row_slack(const ProblemView& problem, const HeadView& view,
                                           int row, float lse, float q_norm, float k_norm) {
  if (!can_prune(problem.prune, view.slope, view.causal, view.symmetric)) return NAN;
  if (lse == -INFINITY) return INFINITY;
  const Range keys = visible_keys(view.span, {row, row + 1}, view.causal);
  const int position = view.span.q_start + row;
  const int farthest = most(position - keys.begin, keys.end - 1 - position);
  const float missing = score_ceiling(problem.scale, q_norm, k_norm) +
                        tail_bits(view.slope, problem.len_k) - lse * kLog2E;
  return -missing - distance_bits(missing, view.slope, farthest);
}

// One block per kPrepassRows rows of a head.
template <class T>
__global__ void __launch_bounds__(kPrepassThreads) row_deltas(const BackwardParams params) {
  const ProblemView& problem = params.problem;
  const BlockPlace place =
      place_block(blockIdx.x, ceil_div(problem.len_q, kPrepassRows), problem.heads_q);
  const int begin = place.tile * kPrepassRows, end = least(problem.len_q, begin + kPrepassRows);
  const DotRows<T> out = dot_rows<T>(params.out, place.batch, place.head);
  const DotRows<T> dout = dot_rows<T>(params.dout, place.batch, place.head);
  const DotRows<T> q = dot_rows<T>(params.q, place.batch, place.head);
  const HeadView view = load_head(problem, place.batch, place.head);
  const bool bounded = params.slack != nullptr;
  const float k_norm =
      bounded ? params.key_norms[place.batch * problem.heads_kv + key_head(problem, place.head)]
              : 0.0f;
  const RowLanes split = row_lanes<T>(problem.head_dim);
  const int each = kBatch * split.step;
  for (int first = begin + warp_id() * each; first < end; first += kPrepassWarps * each) {
    float sums[kBatch], squares[kBatch] = {};
    dot_products(out, dout, problem.head_dim, split, first, end, sums);
    if (bounded) dot_products(q, q, problem.head_dim, split, first, end, squares);
    if (split.lane != 0) continue;
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int row = first + u * split.step + split.row;
      if (row >= end) continue;
      const int64_t index = row_index(problem, place.batch, place.head, row);
      const float sum = sums[u];
      params.delta[index] = params.dlse == nullptr ? sum : sum - params.dlse[index];
      if (!bounded) continue;
      const float q_norm = norm_of(bounding(squares[u]));
      params.slack[index] = row_slack(problem, view, row, params.lse[index], q_norm, k_norm);
    }
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
  const int whole = params.p.aligned && params.dp.aligned ? problem.len_k / kPiece<T> : 0;
  float sum = 0.0f;
#pragma unroll 4
  for (int piece = lane_id(); piece < whole; piece += 32) {
    sum = add_products<T>(*reinterpret_cast<const Words*>(p + piece * kPiece<T>),
                          *reinterpret_cast<const Words*>(dp + piece * kPiece<T>), sum);
  }
  for (int j = whole * kPiece<T> + lane_id(); j < problem.len_k; j += 32)
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
