// Backward pass, second part: dk and dv. One thread block per tile of keys, walking over the query
// tiles that see them, for every query head that shares the key head.
//
//   dv_j = sum_i P_ij dout_i         P  = exp(S - lse)
//   dk_j = scale * sum_i dS_ij q_i   dS = P * (dP - delta)
//
// Scores are computed transposed, S^T = K Q^T and dP^T = V dO^T: keys are then the rows that a warp
// owns, and P^T and dS^T are the left operands of P^T dO and dS^T Q as they lie in registers. One
// block adds up everything about a key in one order, so nothing depends on scheduling.
//
// A query tile is skipped when the bound says that this key tile is negligible for all of its rows
// (geometry.h).
#ifndef ALIBI_CUDA_SM80_BACKWARD_KEY_CUH_
#define ALIBI_CUDA_SM80_BACKWARD_KEY_CUH_

#include "backward_query.cuh"

namespace alibi {
namespace cuda {

template <class T, int D, Gpu kGpu>
constexpr int kKeyGradShared =
    2 * (kKeyGradTile<T, D, kGpu>.rows() + kKeyGradTile<T, D, kGpu>.columns) * kRowBytes<T, D> +
    2 * kKeyGradTile<T, D, kGpu>.columns * static_cast<int>(sizeof(float));

// The (query head, query tile) pairs that a block visits: the heads of the group in turn, each tile
// that sees the keys.
struct PairWalk {
  const BackwardParams& params;
  int batch;
  int first_head;  // of the group
  int group;
  Range keys;
  Range tiles;

  static constexpr int kEnd = -1;

  __device__ __forceinline__ int head(int pair) const {
    return first_head + pair / (tiles.end - tiles.begin);
  }
  __device__ __forceinline__ int tile(int pair) const {
    return tiles.begin + pair % (tiles.end - tiles.begin);
  }

  // The first pair from `pair` on that cannot be left out; every thread of the block finds the
  // same.
  template <int kColumns>
  __device__ __forceinline__ int from(int pair) const {
    while (pair < group * (tiles.end - tiles.begin)) {
      if (params.slack == nullptr || !negligible<kColumns>(pair)) return pair;
      ++pair;
    }
    return kEnd;
  }

 private:
  template <int kColumns>
  __device__ __forceinline__ bool negligible(int pair) const {
    const ProblemView& problem = params.problem;
    const HeadView view = load_head(problem, batch, head(pair));
    bool all = true;
    for (int c = lane_id(); c < kColumns; c += 32) {
      const int row = tile(pair) * kColumns + c;
      if (row >= problem.len_q) continue;
      const float slack = params.slack[row_index(problem, batch, head(pair), row)];
      all =
          all && row_is_done(slack, view.slope2, distance_to(view.span.q_start + row, keys), 0.0f);
    }
    return __all_sync(kAllLanes, all) != 0;
  }
};

// lse2 and delta of query row `c` of a tile, to shared memory; +inf makes P = 0 for rows that see
// nothing or do not exist.
template <int kColumns>
__device__ __forceinline__ void load_row_stats(uint32_t stats, const BackwardParams& params,
                                               int batch, int head, int row0, int c) {
  if (c >= kColumns) return;
  const int row = row0 + c;
  const bool inside = row < params.problem.len_q;
  const int64_t index = inside ? row_index(params.problem, batch, head, row) : 0;
  const float lse = inside ? params.lse[index] : -INFINITY;
  store_shared(stats + c * 4, lse == -INFINITY ? INFINITY : lse * kLog2E);
  store_shared(stats + (kColumns + c) * 4, inside ? params.delta[index] : 0.0f);
}

// s: scores become P. dp: becomes dS. Rows are keys, columns are query rows with their lse2 and
// delta in shared memory.
template <int kM, int kN>
__device__ __forceinline__ void weights_and_grads(float (&s)[kM][kN][4], float (&dp)[kM][kN][4],
                                                  uint32_t stats) {
#pragma unroll
  for (int t = 0; t < kN; ++t) {
    float lse2[2], delta[2];
    load_shared(lse2, stats + (8 * t + lane_id() % 4 * 2) * 4);
    load_shared(delta, stats + (8 * kN + 8 * t + lane_id() % 4 * 2) * 4);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[m][t][e] = exp2_fast(s[m][t][e] - lse2[e % 2]);
        dp[m][t][e] = s[m][t][e] * (dp[m][t][e] - delta[e % 2]);
      }
    }
  }
}

template <class T, int D, bool kWantDk, bool kWantDv, Gpu kGpu>
__global__ void __launch_bounds__(kKeyGradThreads<T, D, kGpu>, 1)
    attention_key_grad(const BackwardParams params) {
  if (!runs_here<T>(kGpu, kKeyGradTile<T, D, kTuring>.gpu)) return wrong_gpu();
  constexpr TileConfig kTile = kKeyGradTile<T, D, kGpu>;
  constexpr int kM = kTile.row_blocks, kRows = kTile.rows(), kColumns = kTile.columns,
                kThreads = kTile.threads();
  const ProblemView& problem = params.problem;
  const BlockPlace place =
      place_block(blockIdx.x, ceil_div(problem.len_k, kRows), problem.heads_kv);
  const Span span = load_span(problem, place.batch);
  const Range keys = {place.tile * kRows, least(place.tile * kRows + kRows, problem.len_k)};
  const int group = problem.heads_q / problem.heads_kv;
  const PairWalk walk = {
      params,
      place.batch,
      place.head * group,
      group,
      keys,
      covering_tiles(seeing_rows(span, keys, problem.causal, problem.len_q), kColumns)};
  const uint32_t k_tile = shared_base(), v_tile = k_tile + kRows * kRowBytes<T, D>;
  const uint32_t q_tile = v_tile + kRows * kRowBytes<T, D>,
                 dout_tile = q_tile + kColumns * kRowBytes<T, D>;
  const uint32_t stats = dout_tile + kColumns * kRowBytes<T, D>;
  const int warp_row = warp_id() * 16 * kM, row0 = keys.begin + warp_row;

  const auto load_queries = [&](uint32_t tile, const TensorView& tensor, int pair) {
    const Range all_rows = {0, problem.len_q};
    load_tile<T, D, kColumns, kThreads>(
        tile, head_rows<T>(tensor, place.batch, walk.head(pair), all_rows, problem.head_dim),
        walk.tile(pair) * kColumns);
  };
  float dk[kM][kWantDk ? D / 8 : 1][4], dv[kM][kWantDv ? D / 8 : 1][4];
  set_zero(dk);
  set_zero(dv);
  int pair = walk.from<kColumns>(0);
  if (pair != PairWalk::kEnd) {
    const Range held = {span.kv_start, span.kv_end};
    load_tile<T, D, kRows, kThreads>(
        k_tile, head_rows<T>(params.k, place.batch, place.head, held, problem.head_dim),
        keys.begin);
    if (kWantDk) {
      load_tile<T, D, kRows, kThreads>(
          v_tile, head_rows<T>(params.v, place.batch, place.head, held, problem.head_dim),
          keys.begin);
    }
    load_queries(dout_tile, params.dout, pair);
    copy_commit();
    load_queries(q_tile, params.q, pair);
    copy_commit();
    load_row_stats<kColumns>(stats, params, place.batch, walk.head(pair),
                             walk.tile(pair) * kColumns, static_cast<int>(threadIdx.x));
  }
  while (pair != PairWalk::kEnd) {
    const int next = walk.from<kColumns>(pair + 1);
    float s[kM][kColumns / 8][4], dp[kM][kColumns / 8][4];
    set_zero(s);
    set_zero(dp);
    copy_wait<1>();
    __syncthreads();  // dO and the row statistics have landed for everyone
    if (kWantDk) multiply_tiles<T, D>(dp, v_tile, warp_row, dout_tile);
    copy_wait<0>();
    __syncthreads();  // Q has landed for everyone
    multiply_tiles<T, D>(s, k_tile, warp_row, q_tile);
    add_bias_and_mask<true>(s, load_head(problem, place.batch, walk.head(pair)), row0,
                            walk.tile(pair) * kColumns);
    weights_and_grads(s, dp, stats);
    if constexpr (kWantDv) multiply_registers<T, D>(dv, s, dout_tile);
    __syncthreads();  // everyone has read dO and the row statistics
    if (next != PairWalk::kEnd) load_queries(dout_tile, params.dout, next);
    copy_commit();
    if constexpr (kWantDk) multiply_registers<T, D>(dk, dp, q_tile);
    __syncthreads();  // everyone has read Q
    if (next != PairWalk::kEnd) {
      load_queries(q_tile, params.q, next);
      load_row_stats<kColumns>(stats, params, place.batch, walk.head(next),
                               walk.tile(next) * kColumns, static_cast<int>(threadIdx.x));
    }
    copy_commit();
    pair = next;
  }
  copy_wait<0>();
  if constexpr (kWantDk)
    store_grad_rows<T>(params.dk, place, row0, problem.len_k, problem.head_dim, dk, problem.scale);
  if constexpr (kWantDv)
    store_grad_rows<T>(params.dv, place, row0, problem.len_k, problem.head_dim, dv, 1.0f);
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_BACKWARD_KEY_CUH_
