// Launches of the portable forward kernel, with the keys of a query tile in one block or split over
// several.
#include "../dispatch.cuh"
#include "../kernels.h"
#include "forward.cuh"

namespace alibi {
namespace cuda {

int forward_splits(const Call& call, int32_t dtype, const ProblemView& problem) {
  int splits = 1;
  dispatch(call.gpu(), dtype, problem.head_dim, [&](auto type, auto dim, auto gpu) {
    using T = decltype(type);
    constexpr int D = decltype(dim)::value;
    constexpr Gpu kGpu = decltype(gpu)::value;
    const int64_t heads = int64_t{problem.batch} * problem.heads_q;
    const int64_t blocks = heads * ceil_div(problem.len_q, kForwardTile<T, D, kGpu>.rows());
    splits = choose_splits(blocks, ceil_div(problem.len_k, kSplitTile<T, D, kGpu>.columns),
                           call.multiprocessors());
  });
  return splits;
}

void run_forward(Call& call, int32_t dtype, const ForwardParams& params) {
  const ProblemView& problem = params.problem;
  const int64_t heads = int64_t{problem.batch} * problem.heads_q;
  const auto launch = [&](auto type, auto dim, auto gpu, auto split) {
    using T = decltype(type);
    constexpr int D = decltype(dim)::value;
    constexpr bool kSplit = decltype(split)::value;
    constexpr TileConfig kTile = kWalkTile<T, D, kSplit, decltype(gpu)::value>;
    constexpr int kShared = kForwardShared<T, D, kSplit, kTile.gpu>;
    static_assert(kShared <= shared_limit(decltype(gpu)::value), "a block has less");
    const int64_t blocks = heads * ceil_div(problem.len_q, kTile.rows()) * params.splits;
    call.launch(attention_forward<T, D, kSplit, kTile.gpu>, blocks, kTile.threads(), kShared,
                params);
  };
  const bool found =
      dispatch(call.gpu(), dtype, problem.head_dim, [&](auto type, auto dim, auto gpu) {
        if (params.splits == 1) return launch(type, dim, gpu, std::false_type{});
        launch(type, dim, gpu, std::true_type{});
        run_combine(call, dtype, params);
      });
  if (!found) call.fail(ALIBI_UNSUPPORTED, "no kernel for this dtype and head_dim");
}

void run_combine(Call& call, int32_t dtype, const ForwardParams& params) {
  const ProblemView& problem = params.problem;
  const int64_t rows = int64_t{problem.batch} * problem.heads_q * problem.len_q;
  dispatch_dtype(dtype, [&](auto type) {
    call.launch(combine_splits<decltype(type)>, rows, kCombineThreads, kCombineShared, params);
  });
}

}  // namespace cuda
}  // namespace alibi
