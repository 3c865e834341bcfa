// Launch of the Hopper forward kernel.
#include "../kernels.h"
#include "forward.cuh"
#include "launch.h"

// Up to so many keys a call that may be pruned runs dense: the passes over K and Q for the norms
// take longer than the tiles do that the bound leaves out. Measured on an H200: docs/design/0022. A
// build for tests may have fewer, so that small problems are pruned.
#ifndef ALIBI_HOPPER_DENSE_KEYS
#define ALIBI_HOPPER_DENSE_KEYS 1024
#endif

namespace alibi {
namespace cuda {
namespace {

template <class T, int D, bool kCausal>
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
  params.together = heads_together(problem, problem.heads_q);
  if (problem.prune) {
    float* norms = call.scratch<float>(heads * tiles);
    const int32_t dtype = std::is_same<T, bfloat_t>::value ? ALIBI_BFLOAT16 : ALIBI_FLOAT16;
    if (call.ok()) run_query_norms(call, dtype, problem, forward.q, kTile.rows(), norms);
    params.query_norms = norms;
  }
  if (heads * tiles > INT32_MAX - call.multiprocessors())
    return call.fail(ALIBI_SHAPE, "more tiles of query rows than an int can count");
  params.tasks = static_cast<int>(heads * tiles);
  // Tasks of one section, none pruned, are shared out evenly as they are.
  if (problem.prune || params.together < heads) {
    params.tickets = call.scratch<int>(1);
    call.clear(params.tickets, sizeof(int));
  }
  call.launch(attention_forward_hopper<T, D, kCausal>, least(params.tasks, call.multiprocessors()),
              kTile.threads(), ForwardMemory<D>::kBytes, params);
}

// Fewer tasks than multiprocessors: splitting the keys, which the portable kernels do, uses all of
// them, and a second kernel to add up. It pays only for few tasks of many tiles.
bool better_split(const Call& call, const ForwardParams& params) {
  const ProblemView& problem = params.problem;
  const bool narrow = problem.head_dim == 64;
  const int rows = narrow ? kHopperForwardTile<64>.rows() : kHopperForwardTile<128>.rows();
  const int columns = narrow ? kHopperForwardTile<64>.columns : kHopperForwardTile<128>.columns;
  const int64_t tasks = int64_t{problem.batch} * problem.heads_q * ceil_div(problem.len_q, rows);
  constexpr int kFewTiles = 8;
  return params.splits > 1 && 4 * tasks < call.multiprocessors() &&
         ceil_div(problem.len_k, columns) > kFewTiles;
}

}  // namespace

bool hopper_takes_forward(const Call& call, int32_t dtype, const ForwardParams& params) {
  return !better_split(call, params) && params.out.aligned &&
         hopper_takes(call, dtype, params.problem, {params.q}, {params.k, params.v});
}

bool hopper_prunes(const ProblemView& problem) { return problem.len_k > ALIBI_HOPPER_DENSE_KEYS; }

void run_forward_hopper(Call& call, int32_t dtype, const ForwardParams& params) {
  const bool narrow = params.problem.head_dim == 64, causal = params.problem.causal;
  const auto launch = [&](auto type) {
    using T = decltype(type);
    return narrow
               ? (causal ? launch_forward<T, 64, true> : launch_forward<T, 64, false>)(call, params)
               : (causal ? launch_forward<T, 128, true> : launch_forward<T, 128, false>)(call,
                                                                                         params);
  };
  dtype == ALIBI_FLOAT16 ? launch(half_t{}) : launch(bfloat_t{});
}

}  // namespace cuda
}  // namespace alibi
