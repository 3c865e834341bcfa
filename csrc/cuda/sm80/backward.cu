// Launches of the portable backward kernels: row statistics, then dq and dslopes, then dk and dv.
#include "../dispatch.cuh"
#include "../kernels.h"
#include "backward_key.cuh"
#include "prepass.cuh"

namespace alibi {
namespace cuda {
namespace {

template <class T, int D, Gpu kGpu>
void run_key_grad(Call& call, const BackwardParams& params) {
  constexpr TileConfig kTile = kKeyGradTile<T, D, kGpu>;
  constexpr int kShared = kKeyGradShared<T, D, kTile.gpu>;
  static_assert(kShared <= shared_limit(kGpu), "a block has less");
  const ProblemView& problem = params.problem;
  const int64_t blocks =
      int64_t{problem.batch} * problem.heads_kv * ceil_div(problem.len_k, kTile.rows());
  if constexpr (D <= 128) {
    call.launch(attention_key_grad<T, D, true, true, kTile.gpu>, blocks, kTile.threads(), kShared,
                params);
  } else {  // both accumulators together would not fit the registers
    call.launch(attention_key_grad<T, D, true, false, kTile.gpu>, blocks, kTile.threads(), kShared,
                params);
    call.launch(attention_key_grad<T, D, false, true, kTile.gpu>, blocks, kTile.threads(), kShared,
                params);
  }
}

}  // namespace

void run_backward(Call& call, int32_t dtype, const BackwardParams& given) {
  BackwardParams params = given;
  const ProblemView& problem = params.problem;
  const int64_t rows = int64_t{problem.batch} * problem.heads_q * problem.len_q;
  params.delta = call.scratch<float>(rows);
  params.slack = problem.prune ? call.scratch<float>(rows) : nullptr;
  const bool found =
      dispatch(call.gpu(), dtype, problem.head_dim, [&](auto type, auto dim, auto gpu) {
        using T = decltype(type);
        constexpr int D = decltype(dim)::value;
        constexpr Gpu kGpu = decltype(gpu)::value;
        constexpr TileConfig kTile = kQueryGradTile<T, D, kGpu>;
        constexpr int kShared = kQueryGradShared<T, D, kTile.gpu>;
        static_assert(kShared <= shared_limit(kGpu), "a block has less");
        const int64_t heads = int64_t{problem.batch} * problem.heads_q;
        call.launch(row_deltas<T>, heads * ceil_div(problem.len_q, kPrepassRows), kPrepassThreads,
                    0, params);
        call.launch(attention_query_grad<T, D, kTile.gpu>,
                    heads * ceil_div(problem.len_q, kTile.rows()), kTile.threads(), kShared,
                    params);
        run_key_grad<T, D, kGpu>(call, params);
      });
  if (!found) call.fail(ALIBI_UNSUPPORTED, "no kernel for this dtype and head_dim");
}

}  // namespace cuda
}  // namespace alibi
