// The attention weights themselves: p = softmax(s) as a [B, Hq, Sq, Sk] tensor, and its backward
// pass.
//
//   forward   a first walk over the key tiles finds row_max and row_sum, a second one computes the
//             scores again and writes p
//   backward  dS = P * (dP - delta), delta_i = sum_j P_ij dP_ij, straight from the two tensors
//             dq_i = scale * sum_j dS_ij k_j     dk_j = scale * sum_i dS_ij q_i
//             dslope = sum_ij dS_ij f(j - p_i)
//
// Writing or reading the [Sq, Sk] tensors sets the pace, so one buffer without overlap is enough,
// and nothing is pruned.
#ifndef ALIBI_CUDA_SM80_WEIGHTS_CUH_
#define ALIBI_CUDA_SM80_WEIGHTS_CUH_

#include "backward_query.cuh"
#include "softmax.cuh"

namespace alibi {
namespace cuda {

template <class T, int D, Gpu kGpu>
constexpr int kWeightsForwardShared =
    (kForwardTile<T, D, kGpu>.rows() + kForwardTile<T, D, kGpu>.columns) * kRowBytes<T, D>;
// At least one float per warp, for the slope sums.
template <class T, int D, Gpu kGpu>
constexpr int kWeightsQueryGradShared = kQueryGradTile<T, D, kGpu>.columns * kRowBytes<T, D>;
template <class T, int D, Gpu kGpu>
constexpr int kWeightsKeyGradShared = kKeyGradTile<T, D, kGpu>.columns * kRowBytes<T, D>;

// Fetches a tile for the whole block and waits for it. The caller sees to it that the old one has
// been read.
template <class T, int D, int kRows, int kThreads>
__device__ __forceinline__ void load_tile_now(uint32_t tile, const RowSource<T>& source, int row0) {
  load_tile<T, D, kRows, kThreads>(tile, source, row0);
  copy_commit();
  copy_wait<0>();
  __syncthreads();
}

// exp2(s - row_max) / row_sum, and not exp2(s - lse): the log-sum-exp of a row far from its keys is a
// large number, whose rounding would scale the whole row. row_max is among the scores, so that the
// weights that count come from small differences.
template <class T, int kM, int kN>
__device__ __forceinline__ void store_weights(const WeightsForwardParams& params,
                                              const BlockPlace& place, const float (&s)[kM][kN][4],
                                              const RowState<kM>& state, int row0, int column0) {
  T* p = head_data<T>(params.p, place.batch, place.head);
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int row = row0 + 8 * i + lane_id() / 4;
    if (row >= params.problem.len_q) continue;
    const float top = state.row_max[i / 2][i % 2], anchor = top == -INFINITY ? 0.0f : top;
    const float factor = state.inverse_sum(i);
#pragma unroll
    for (int c = 0; c < 2 * kN; ++c) {
      const int column = column0 + c / 2 * 8 + lane_id() % 4 * 2 + c % 2;
      if (column >= params.problem.len_k) continue;
      from_float(p[row * params.p.stride_s + column],
                 exp2_fast(s[i / 2][c / 2][i % 2 * 2 + c % 2] - anchor) * factor);
    }
  }
}

template <class T, int D, Gpu kGpu>
__global__ void __launch_bounds__(kForwardThreads<T, D, kGpu>, 1)
    weights_forward(const WeightsForwardParams params) {
  if (!runs_here<T>(kGpu, kForwardTile<T, D, kTuring>.gpu)) return wrong_gpu();
  constexpr TileConfig kTile = kForwardTile<T, D, kGpu>;
  constexpr int kM = kTile.row_blocks, kRows = kTile.rows(), kColumns = kTile.columns,
                kThreads = kTile.threads();
  const ProblemView& problem = params.problem;
  const QueryTask task = query_task<kRows>(problem, blockIdx.x);
  const Range seen = covering_tiles(task.keys, kColumns);
  const Range all = {0, ceil_div(problem.len_k, kColumns)};
  const RowSource<T> k = key_rows<T>(params.k, task, problem);
  const uint32_t q_tile = shared_base(), k_tile = q_tile + kRows * kRowBytes<T, D>;
  const int warp_row = warp_id() * 16 * kM, row0 = task.rows.begin + warp_row;
  load_tile_now<T, D, kRows, kThreads>(q_tile, query_rows<T>(params.q, task, problem),
                                       task.rows.begin);

  float s[kM][kColumns / 8][4];
  const auto score = [&](int tile) {
    load_tile_now<T, D, kColumns, kThreads>(k_tile, k, tile * kColumns);
    set_zero(s);
    multiply_tiles<T, D>(s, q_tile, warp_row, k_tile);
    add_bias_and_mask<false>(s, task.head, row0, tile * kColumns);
    __syncthreads();  // everyone has read K
  };
  RowState<kM> state;
  for (int tile = seen.begin; tile < seen.end; ++tile) {
    float rescale[kM][2];
    score(tile);
    state.absorb(s, rescale);
  }
  state.finish();
  for (int tile = all.begin; tile < all.end; ++tile) {
    score(tile);  // tiles that no row may see come out as zeros
    store_weights<T>(params, task.place, s, state, row0, tile * kColumns);
  }
}

// dS of one element, 0 outside the tensor.
template <class T>
__device__ __forceinline__ float weight_grad(const WeightsBackwardParams& params, const T* p,
                                             const T* dp, const float* delta, int row, int column) {
  if (row >= params.problem.len_q || column >= params.problem.len_k) return 0.0f;
  const float weight = to_float(p[row * params.p.stride_s + column]);
  return weight * (to_float(dp[row * params.dp.stride_s + column]) - delta[row]);
}

// Fills a tile of dS: rows are queries and columns keys, or the other way round with kRowsAreKeys.
template <class T, bool kRowsAreKeys, int kM, int kN>
__device__ __forceinline__ void load_weight_grads(float (&ds)[kM][kN][4],
                                                  const WeightsBackwardParams& params, int batch,
                                                  int head, int row0, int column0) {
  const T* p = head_data<const T>(params.p, batch, head);
  const T* dp = head_data<const T>(params.dp, batch, head);
  const float* delta = params.delta + row_index(params.problem, batch, head, 0);
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int row = row0 + 8 * i + lane_id() / 4;
#pragma unroll
    for (int c = 0; c < 2 * kN; ++c) {
      const int column = column0 + c / 2 * 8 + lane_id() % 4 * 2 + c % 2;
      ds[i / 2][c / 2][i % 2 * 2 + c % 2] = kRowsAreKeys
                                                ? weight_grad(params, p, dp, delta, column, row)
                                                : weight_grad(params, p, dp, delta, row, column);
    }
  }
}

template <int kM, int kN>
__device__ __forceinline__ float slope_share(const float (&ds)[kM][kN][4], const HeadView& head,
                                             int row0, int column0) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
#pragma unroll
    for (int c = 0; c < 2 * kN; ++c) {
      const int distance = column0 + c / 2 * 8 + lane_id() % 4 * 2 + c % 2 -
                           (head.span.q_start + row0 + 8 * i + lane_id() / 4);
      sum = fmaf(ds[i / 2][c / 2][i % 2 * 2 + c % 2],
                 bias_factor(head, static_cast<float>(distance)), sum);
    }
  }
  return sum;
}

template <class T, int D, Gpu kGpu>
__global__ void __launch_bounds__(kQueryGradThreads<T, D, kGpu>, 1)
    weights_query_grad(const WeightsBackwardParams params) {
  if (!runs_here<T>(kGpu, kQueryGradTile<T, D, kTuring>.gpu)) return wrong_gpu();
  constexpr TileConfig kTile = kQueryGradTile<T, D, kGpu>;
  constexpr int kM = kTile.row_blocks, kRows = kTile.rows(), kColumns = kTile.columns,
                kThreads = kTile.threads();
  const ProblemView& problem = params.problem;
  const QueryTask task = query_task<kRows>(problem, blockIdx.x);
  const Range seen = covering_tiles(task.keys, kColumns);
  const RowSource<T> k = key_rows<T>(params.k, task, problem);
  const int row0 = task.rows.begin + warp_id() * 16 * kM;
  float dq[kM][D / 8][4], ds[kM][kColumns / 8][4];
  set_zero(dq);
  float slope_sum = 0.0f;
  for (int tile = seen.begin; tile < seen.end; ++tile) {
    load_tile_now<T, D, kColumns, kThreads>(shared_base(), k, tile * kColumns);
    load_weight_grads<T, false>(ds, params, task.place.batch, task.place.head, row0,
                                tile * kColumns);
    slope_sum += slope_share(ds, task.head, row0, tile * kColumns);
    multiply_registers<T, D>(dq, ds, shared_base());
    __syncthreads();  // everyone has read K
  }
  store_grad_rows<T>(params.dq, task.place, row0, problem.len_q, problem.head_dim, dq,
                     problem.scale);
  store_slope_part<kRows>(params.slope_parts, problem, task.place, slope_sum, shared_base());
}

template <class T, int D, Gpu kGpu>
__global__ void __launch_bounds__(kKeyGradThreads<T, D, kGpu>, 1)
    weights_key_grad(const WeightsBackwardParams params) {
  if (!runs_here<T>(kGpu, kKeyGradTile<T, D, kTuring>.gpu)) return wrong_gpu();
  constexpr TileConfig kTile = kKeyGradTile<T, D, kGpu>;
  constexpr int kM = kTile.row_blocks, kRows = kTile.rows(), kColumns = kTile.columns,
                kThreads = kTile.threads();
  const ProblemView& problem = params.problem;
  const BlockPlace place =
      place_block(blockIdx.x, ceil_div(problem.len_k, kRows), problem.heads_kv);
  const Range keys = {place.tile * kRows, least(place.tile * kRows + kRows, problem.len_k)};
  const Range rows =
      seeing_rows(load_span(problem, place.batch), keys, problem.causal, problem.len_q);
  const Range seen = covering_tiles(rows, kColumns), all_rows = {0, problem.len_q};
  const int group = problem.heads_q / problem.heads_kv;
  const int row0 = keys.begin + warp_id() * 16 * kM;
  float dk[kM][D / 8][4], ds[kM][kColumns / 8][4];
  set_zero(dk);
  for (int head = place.head * group; head < (place.head + 1) * group; ++head) {
    const RowSource<T> q = head_rows<T>(params.q, place.batch, head, all_rows, problem.head_dim);
    for (int tile = seen.begin; tile < seen.end; ++tile) {
      load_tile_now<T, D, kColumns, kThreads>(shared_base(), q, tile * kColumns);
      load_weight_grads<T, true>(ds, params, place.batch, head, row0, tile * kColumns);
      multiply_registers<T, D>(dk, ds, shared_base());
      __syncthreads();  // everyone has read Q
    }
  }
  store_grad_rows<T>(params.dk, place, row0, problem.len_k, problem.head_dim, dk, problem.scale);
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_WEIGHTS_CUH_
