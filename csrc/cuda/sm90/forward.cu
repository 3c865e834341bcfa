// Launch of the Hopper forward kernel.
#include "../kernels.h"
#include "forward.cuh"

namespace alibi {
namespace cuda {
namespace {

// Keys and values of the heads that run at a time should stay in the second-level cache.
constexpr int64_t kCachedBytes = int64_t{32} << 20;

int heads_together(const ProblemView& problem) {
  const int64_t bytes = int64_t{problem.len_k} * problem.head_dim * 4;  // K and V of one key head
  const int group = problem.heads_q / problem.heads_kv;
  const int64_t heads = kCachedBytes / bytes * group;
  return static_cast<int>(
      std::min<int64_t>(std::max<int64_t>(heads, group), int64_t{problem.batch} * problem.heads_q));
}

template <class T, int D>
void launch_forward(Call& call, const ForwardParams& forward) {
  constexpr WarpgroupTile kTile = kHopperForwardTile<D>;
  const ProblemView& problem = forward.problem;
  const int tiles = ceil_div(problem.len_q, kTile.rows());
  const int64_t heads = int64_t{problem.batch} * problem.heads_q;
  const auto map = [&](const TensorView& tensor, int count, int len, int rows) {
    return make_tensor_map(call, tensor, std::is_same<T, bfloat_t>::value, problem.batch, count,
                           len, D, rows);
  };
  HopperForwardParams params = {};
  params.forward = forward;
  params.q_map = map(forward.q, problem.heads_q, problem.len_q, kTile.rows());
  params.k_map = map(forward.k, problem.heads_kv, problem.len_k, kTile.columns);
  params.v_map = map(forward.v, problem.heads_kv, problem.len_k, kTile.columns);
  params.together = heads_together(problem);
  if (problem.prune) {
    float* norms = call.scratch<float>(heads * tiles);
    const int32_t dtype = std::is_same<T, bfloat_t>::value ? ALIBI_BFLOAT16 : ALIBI_FLOAT16;
    if (call.ok()) run_query_norms(call, dtype, problem, forward.q, kTile.rows(), norms);
    params.query_norms = norms;
  }
  call.launch(attention_forward_hopper<T, D>, heads * tiles, kTile.threads(),
              ForwardMemory<D>::kBytes, params);
}

}  // namespace

bool hopper_takes_forward(const Call& call, int32_t dtype, const ForwardParams& params) {
  const ProblemView& problem = params.problem;
  const bool keys_mapped = can_map(params.k, problem.batch, problem.heads_kv, problem.len_k) &&
                           can_map(params.v, problem.batch, problem.heads_kv, problem.len_k);
  return call.capability_major() == 9 && dtype != ALIBI_FLOAT32 && problem.len_k > 0 &&
         (problem.head_dim == 64 || problem.head_dim == 128) && params.splits == 1 && keys_mapped &&
         can_map(params.q, problem.batch, problem.heads_q, problem.len_q);
}

void run_forward_hopper(Call& call, int32_t dtype, const ForwardParams& params) {
  const auto launch = [&](auto type) {
    using T = decltype(type);
    return params.problem.head_dim == 64 ? launch_forward<T, 64>(call, params)
                                         : launch_forward<T, 128>(call, params);
  };
  dtype == ALIBI_FLOAT16 ? launch(half_t{}) : launch(bfloat_t{});
}

}  // namespace cuda
}  // namespace alibi
