// Backward pass, first part: dq and dslopes. One thread block per tile of query rows, walking over
// key tiles.
//
//   P = exp(S - lse)      dP = dO V^T      dS = P * (dP - delta)
//   dq_i = scale * sum_j dS_ij k_j         dslope = sum_ij dS_ij f(j - p_i)
//
// S and dP stay in registers and become dS there, which is the left operand of dS K as it is. The
// sum over j is kept by one block in one order, so the result does not depend on how blocks are
// scheduled, and no atomic addition is needed; the price is that P is computed once here and once
// for dk and dv.
//
// V is used before K, so that copies overlap products with one buffer each: the next V loads while
// dS K runs, the next K while the next dO V^T does.
#ifndef ALIBI_CUDA_SM80_BACKWARD_QUERY_CUH_
#define ALIBI_CUDA_SM80_BACKWARD_QUERY_CUH_

#include "../tile_config.h"
#include "block.cuh"

namespace alibi {
namespace cuda {

template <class T, int D, Gpu kGpu>
constexpr int kQueryGradShared =
    2 * (kQueryGradTile<T, D, kGpu>.rows() + kQueryGradTile<T, D, kGpu>.columns) * kRowBytes<T, D>;

// What this thread knows of its rows. Rows that see nothing, or lie beyond the tensor, get P = 0
// from lse2 = +inf.
template <int kM>
struct RowGradState {
  float lse2[kM][2];
  float delta[kM][2];
  float slack[kM][2];

  __device__ __forceinline__ void load(const BackwardParams& params, const BlockPlace& place,
                                       int row0) {
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) {
      const int row = row0 + 8 * i + lane_id() / 4;
      const bool inside = row < params.problem.len_q;
      const int64_t index = inside ? row_index(params.problem, place.batch, place.head, row) : 0;
      const float lse = inside ? params.lse[index] : -INFINITY;
      lse2[i / 2][i % 2] = lse == -INFINITY ? INFINITY : lse * kLog2E;
      delta[i / 2][i % 2] = inside ? params.delta[index] : 0.0f;
      slack[i / 2][i % 2] = params.slack == nullptr ? NAN : inside ? params.slack[index] : INFINITY;
    }
  }

  __device__ __forceinline__ bool done(const HeadView& head, int row0, Range keys) const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) {
      const int position = head.span.q_start + row0 + 8 * i + lane_id() / 4;
      all = all && row_is_done(slack[i / 2][i % 2], head.slope2, distance_to(position, keys), 0.0f);
    }
    return all;
  }

  // s becomes dS; returns this thread's share of sum_ij dS_ij f(j - p_i).
  template <int kN>
  __device__ __forceinline__ float score_grads(float (&s)[kM][kN][4], const float (&dp)[kM][kN][4],
                                               const HeadView& head, int row0, int column0) const {
    float slope_sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kM; ++i) {
      const int distance0 =
          column0 + lane_id() % 4 * 2 - (head.span.q_start + row0 + 8 * i + lane_id() / 4);
      const float first = static_cast<float>(distance0);
#pragma unroll
      for (int c = 0; c < 2 * kN; ++c) {
        const int e = i % 2 * 2 + c % 2;
        float& x = s[i / 2][c / 2][e];
        x = exp2_fast(x - lse2[i / 2][i % 2]) * (dp[i / 2][c / 2][e] - delta[i / 2][i % 2]);
        slope_sum =
            fmaf(x, bias_factor(head, first + static_cast<float>(c / 2 * 8 + c % 2)), slope_sum);
      }
    }
    return slope_sum;
  }
};

// Adds up the shares of a block in a fixed order and writes its part. `scratch` holds one float per
// warp; a barrier since the last use of that memory is the caller's business.
// `sync` is a barrier of the `warps` warps that call this.
template <int kRows, class Sync>
__device__ __forceinline__ void store_slope_part(float* parts, const ProblemView& problem,
                                                 const BlockPlace& place, float share,
                                                 uint32_t scratch, int warps, const Sync& sync) {
  if (parts == nullptr) return;
  share = warp_sum(share);
  if (lane_id() == 0) store_shared(scratch + warp_id() * 4, share);
  sync();
  if (threadIdx.x != 0) return;
  float sum = 0.0f;
  for (int warp = 0; warp < warps; ++warp) {
    float x;
    load_shared(x, scratch + warp * 4);
    sum += x;
  }
  const int64_t sequence = static_cast<int64_t>(place.head) * problem.batch + place.batch;
  parts[sequence * ceil_div(problem.len_q, kRows) + place.tile] = sum;
}

template <int kRows>
__device__ __forceinline__ void store_slope_part(float* parts, const ProblemView& problem,
                                                 const BlockPlace& place, float share,
                                                 uint32_t scratch) {
  store_slope_part<kRows>(parts, problem, place, share, scratch, static_cast<int>(blockDim.x) / 32,
                          [] { __syncthreads(); });
}

template <class T, int kM, int kN>
__device__ __forceinline__ void store_grad_rows(const TensorView& grad, const BlockPlace& place,
                                                int row0, int len, int head_dim,
                                                const float (&x)[kM][kN][4], float factor) {
  T* data = head_data<T>(grad, place.batch, place.head);
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int row = row0 + 8 * i + lane_id() / 4;
    if (row < len)
      store_row(data + row * grad.stride_s, x[i / 2], i % 2, factor, head_dim, grad.aligned);
  }
}

template <class T, int D, Gpu kGpu>
__global__ void __launch_bounds__(kQueryGradThreads<T, D, kGpu>, 1)
    attention_query_grad(const BackwardParams params) {
  if (!runs_here<T>(kGpu, kQueryGradTile<T, D, kTuring>.gpu)) return wrong_gpu();
  constexpr TileConfig kTile = kQueryGradTile<T, D, kGpu>;
  constexpr int kM = kTile.row_blocks, kRows = kTile.rows(), kColumns = kTile.columns,
                kThreads = kTile.threads();
  const ProblemView& problem = params.problem;
  const QueryTask task = query_task<kRows>(problem, blockIdx.x);
  const TileWalk walk(task.keys, task.start_position(), kColumns);
  const RowSource<T> k = key_rows<T>(params.k, task, problem);
  const RowSource<T> v = key_rows<T>(params.v, task, problem);
  const uint32_t q_tile = shared_base(), dout_tile = q_tile + kRows * kRowBytes<T, D>;
  const uint32_t k_tile = dout_tile + kRows * kRowBytes<T, D>,
                 v_tile = k_tile + kColumns * kRowBytes<T, D>;
  const int warp_row = warp_id() * 16 * kM, row0 = task.rows.begin + warp_row;

  float dq[kM][D / 8][4];
  set_zero(dq);
  float slope_sum = 0.0f;
  if (!task.keys.empty()) {
    const RowSource<T> q = query_rows<T>(params.q, task, problem);
    const RowSource<T> dout = query_rows<T>(params.dout, task, problem);
    load_tile<T, D, kRows, kThreads>(dout_tile, dout, task.rows.begin);
    load_tile<T, D, kColumns, kThreads>(v_tile, v, walk.first() * kColumns);
    copy_commit();
    load_tile<T, D, kRows, kThreads>(q_tile, q, task.rows.begin);
    load_tile<T, D, kColumns, kThreads>(k_tile, k, walk.first() * kColumns);
    copy_commit();
    RowGradState<kM> state;
    state.load(params, task.place, row0);

    for (int tile = walk.first(); tile != TileWalk::kEnd;) {
      const int after = walk.after(tile);
      const Range beyond = {after * kColumns, after * kColumns + kColumns};
      const bool stop = state.done(task.head, row0, beyond);
      copy_wait<1>();
      const int next =
          __syncthreads_and(stop) ? walk.after_stop(tile) : after;  // V has landed for everyone
      float dp[kM][kColumns / 8][4], s[kM][kColumns / 8][4];
      set_zero(dp);
      multiply_tiles<T, D>(dp, dout_tile, warp_row, v_tile);
      copy_wait<0>();
      __syncthreads();  // K has landed for everyone, and everyone has read V
      if (next != TileWalk::kEnd) load_tile<T, D, kColumns, kThreads>(v_tile, v, next * kColumns);
      copy_commit();
      set_zero(s);
      multiply_tiles<T, D>(s, q_tile, warp_row, k_tile);
      add_bias_and_mask<false>(s, task.head, row0, tile * kColumns);
      slope_sum += state.score_grads(s, dp, task.head, row0, tile * kColumns);
      multiply_registers<T, D>(dq, s, k_tile);
      __syncthreads();  // everyone has read K
      if (next != TileWalk::kEnd) load_tile<T, D, kColumns, kThreads>(k_tile, k, next * kColumns);
      copy_commit();
      tile = next;
    }
    copy_wait<0>();
  }
  store_grad_rows<T>(params.dq, task.place, row0, problem.len_q, problem.head_dim, dq,
                     problem.scale);
  store_slope_part<kRows>(params.slope_parts, problem, task.place, slope_sum, q_tile);
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_BACKWARD_QUERY_CUH_
