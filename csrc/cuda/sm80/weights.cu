// Launches of the kernels for the attention weights, forward and backward.
#include "../dispatch.cuh"
#include "../kernels.h"
#include "prepass.cuh"
#include "weights.cuh"

namespace alibi {
namespace cuda {

void run_weights_forward(Call& call, int32_t dtype, const WeightsForwardParams& params) {
  const ProblemView& problem = params.problem;
  const bool found =
      dispatch(call.gpu(), dtype, problem.head_dim, [&](auto type, auto dim, auto gpu) {
        using T = decltype(type);
        constexpr int D = decltype(dim)::value;
        constexpr TileConfig kTile = kForwardTile<T, D, decltype(gpu)::value>;
        const int64_t blocks =
            int64_t{problem.batch} * problem.heads_q * ceil_div(problem.len_q, kTile.rows());
        call.launch(weights_forward<T, D, kTile.gpu>, blocks, kTile.threads(),
                    kWeightsForwardShared<T, D, kTile.gpu>, params);
      });
  if (!found) call.fail(ALIBI_UNSUPPORTED, "no kernel for this dtype and head_dim");
}

void run_weights_backward(Call& call, int32_t dtype, const WeightsBackwardParams& params) {
  const ProblemView& problem = params.problem;
  const bool found =
      dispatch(call.gpu(), dtype, problem.head_dim, [&](auto type, auto dim, auto gpu) {
        using T = decltype(type);
        constexpr int D = decltype(dim)::value;
        constexpr Gpu kGpu = decltype(gpu)::value;
        constexpr TileConfig kQueries = kQueryGradTile<T, D, kGpu>,
                             kKeys = kKeyGradTile<T, D, kGpu>;
        const int64_t heads = int64_t{problem.batch} * problem.heads_q;
        const int64_t warps = heads * problem.len_q;
        call.launch(weight_deltas<T>, (warps + kPrepassWarps - 1) / kPrepassWarps, kPrepassThreads,
                    0, params);
        call.launch(weights_query_grad<T, D, kQueries.gpu>,
                    heads * ceil_div(problem.len_q, kQueries.rows()), kQueries.threads(),
                    kWeightsQueryGradShared<T, D, kQueries.gpu>, params);
        call.launch(
            weights_key_grad<T, D, kKeys.gpu>,
            int64_t{problem.batch} * problem.heads_kv * ceil_div(problem.len_k, kKeys.rows()),
            kKeys.threads(), kWeightsKeyGradShared<T, D, kKeys.gpu>, params);
      });
  if (!found) call.fail(ALIBI_UNSUPPORTED, "no kernel for this dtype and head_dim");
}

}  // namespace cuda
}  // namespace alibi
