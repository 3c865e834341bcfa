// Launches of the portable forward kernel, with the keys of a query tile in one block or split over
// several.
#include "../dispatch.cuh"
#include "../kernels.h"
#include "forward.cuh"

namespace alibi {
namespace cuda {

int forward_splits(int32_t dtype, const ProblemView& problem, int multiprocessors) {
  int splits = 1;
  dispatch(dtype, problem.head_dim, [&](auto type, auto dim) {
    using T = decltype(type);
    constexpr int D = decltype(dim)::value;
    const int64_t heads = int64_t{problem.batch} * problem.heads_q;
    const int64_t blocks = heads * ceil_div(problem.len_q, kForwardTile<T, D>.rows());
    splits =
        choose_splits(blocks, ceil_div(problem.len_k, kSplitTile<T, D>.columns), multiprocessors);
  });
  return splits;
}

void run_forward(Call& call, int32_t dtype, const ForwardParams& params) {
  const ProblemView& problem = params.problem;
  const int64_t heads = int64_t{problem.batch} * problem.heads_q;
  const auto launch = [&](auto type, auto dim, auto split) {
    using T = decltype(type);
    constexpr int D = decltype(dim)::value;
    constexpr bool kSplit = decltype(split)::value;
    constexpr TileConfig kTile = kWalkTile<T, D, kSplit>;
    const int64_t blocks = heads * ceil_div(problem.len_q, kTile.rows()) * params.splits;
    call.launch(attention_forward<T, D, kSplit>, blocks, kTile.threads(),
                kForwardShared<T, D, kSplit>, params);
  };
  const bool found = dispatch(dtype, problem.head_dim, [&](auto type, auto dim) {
    if (params.splits == 1) return launch(type, dim, std::false_type{});
    launch(type, dim, std::true_type{});
    call.launch(combine_splits<decltype(type)>,
                (heads * problem.len_q + kCombineWarps - 1) / kCombineWarps, kCombineThreads, 0,
                params);
  });
  if (!found) call.fail(ALIBI_UNSUPPORTED, "no kernel for this dtype and head_dim");
}

}  // namespace cuda
}  // namespace alibi
