// Launches of the Hopper backward kernels: row statistics, then dq and dslopes, then dk and dv.
#include "../kernels.h"
#include "backward.cuh"
#include "launch.h"

namespace alibi {
namespace cuda {
namespace {

// The maps of one kernel, whose boxes are tiles of these many rows.
template <class T, int D>
HopperBackwardParams with_maps(Call& call, const BackwardParams& backward, int query_rows,
                               int key_rows, int heads) {
  const ProblemView& problem = backward.problem;
  const auto map = [&](const TensorView& tensor, int count, int len, int rows) {
    return make_tensor_map(call, tensor, std::is_same<T, bfloat_t>::value, problem.batch, count,
                           len, D, rows);
  };
  HopperBackwardParams params = {};
  params.backward = backward;
  params.q_map = map(backward.q, problem.heads_q, problem.len_q, query_rows);
  params.dout_map = map(backward.dout, problem.heads_q, problem.len_q, query_rows);
  params.k_map = map(backward.k, problem.heads_kv, problem.len_k, key_rows);
  params.v_map = map(backward.v, problem.heads_kv, problem.len_k, key_rows);
  params.together = heads_together(problem, heads);
  return params;
}

template <class T, int D>
void launch_backward(Call& call, const BackwardParams& params) {
  constexpr WarpgroupTile kQueries = kHopperQueryGradTile<D>, kKeys = kHopperKeyGradTile<D>;
  const ProblemView& problem = params.problem;
  const int64_t batch = problem.batch;
  call.launch(attention_query_grad_hopper<T, D>,
              batch * problem.heads_q * ceil_div(problem.len_q, kQueries.rows()),
              kQueries.threads(), QueryGradMemory<D>::kBytes,
              with_maps<T, D>(call, params, kQueries.rows(), kQueries.columns, problem.heads_q));
  call.launch(attention_key_grad_hopper<T, D>,
              batch * problem.heads_kv * ceil_div(problem.len_k, kKeys.rows()), kKeys.threads(),
              KeyGradMemory<D>::kBytes,
              with_maps<T, D>(call, params, kKeys.columns, kKeys.rows(), problem.heads_kv));
}

}  // namespace

bool hopper_takes_backward(const Call& call, int32_t dtype, const BackwardParams& params) {
  return hopper_takes(call, dtype, params.problem, {params.q, params.dout}, {params.k, params.v});
}

int hopper_query_grad_tiles(const Call&, int32_t, int head_dim, int len_q) {
  return ceil_div(
      len_q, head_dim == 64 ? kHopperQueryGradTile<64>.rows() : kHopperQueryGradTile<128>.rows());
}

void run_backward_hopper(Call& call, int32_t dtype, const BackwardParams& params) {
  run_row_deltas(call, dtype, params);
  const auto launch = [&](auto type) {
    using T = decltype(type);
    return params.problem.head_dim == 64 ? launch_backward<T, 64>(call, params)
                                         : launch_backward<T, 128>(call, params);
  };
  dtype == ALIBI_FLOAT16 ? launch(half_t{}) : launch(bfloat_t{});
}

}  // namespace cuda
}  // namespace alibi
