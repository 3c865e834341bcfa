// Launches of the Hopper backward pass: row statistics and reaches, the kernel, dq.
#include "../kernels.h"
#include "backward.cuh"
#include "launch.h"

namespace alibi {
namespace cuda {
namespace {

// Warps of a block that each have a part of dslopes.
template <int D>
constexpr int kSlopeParts = 4 * kHopperBackwardTile<D>.groups;

template <class T, int D>
HopperBackwardParams with_maps(Call& call, const BackwardParams& backward) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  const ProblemView& problem = backward.problem;
  const auto map = [&](const TensorView& tensor, int count, int len, int rows) {
    return make_tensor_map(call, tensor, std::is_same<T, bfloat_t>::value, problem.batch, count,
                           len, D, rows);
  };
  HopperBackwardParams params = {};
  params.backward = backward;
  params.q_map = map(backward.q, problem.heads_q, problem.len_q, kTile.columns);
  params.dout_map = map(backward.dout, problem.heads_q, problem.len_q, kTile.columns);
  params.k_map = map(backward.k, problem.heads_kv, problem.len_k, kTile.rows());
  params.v_map = map(backward.v, problem.heads_kv, problem.len_k, kTile.rows());
  return params;
}

template <class T, int D>
void launch_backward(Call& call, const BackwardParams& backward) {
  constexpr BackwardTile kTile = kHopperBackwardTile<D>;
  const ProblemView& problem = backward.problem;
  const int64_t query_tiles =
      int64_t{problem.batch} * problem.heads_q * ceil_div(problem.len_q, kTile.columns);
  const int64_t pieces = query_tiles * kTile.groups;
  const int64_t tasks =
      int64_t{problem.batch} * problem.heads_kv * ceil_div(problem.len_k, kTile.rows());
  if (tasks > INT32_MAX - call.multiprocessors())
    return call.fail(ALIBI_SHAPE, "more tiles of keys than an int can count");
  HopperBackwardParams params = with_maps<T, D>(call, backward);
  params.reaches = call.scratch<Range>(query_tiles);
  params.stats = call.scratch<float>(query_tiles * kStatFloats<kTile.columns>);
  params.pieces = call.scratch<float>(pieces * kPieceFloats);
  params.turns = call.scratch<int>(pieces + 1);
  params.ticket = params.turns + pieces;
  params.together = heads_of_backward(problem, call.multiprocessors(), kTile.rows());
  call.clear(params.turns, (pieces + 1) * static_cast<int64_t>(sizeof(int)));
  call.launch(describe_queries<T, D>, query_tiles, kDescribeWarps * 32, kDescribeShared, params);
  params.tasks = static_cast<int>(tasks);
  call.launch(attention_backward_hopper<T, D>, least(params.tasks, call.multiprocessors()),
              kTile.threads(), BackwardMemory<D>::kBytes, params);
  call.launch(finish_query_grads<T, D>, pieces, kFinishThreads, 0, params);
}

}  // namespace

bool hopper_takes_backward(const Call& call, int32_t dtype, const BackwardParams& params) {
  return params.dk.aligned && params.dv.aligned &&
         hopper_takes(call, dtype, params.problem, {params.q, params.dout}, {params.k, params.v});
}

int64_t hopper_slope_parts(const Call&, int32_t, const ProblemView& problem) {
  const bool narrow = problem.head_dim == 64;
  const int rows = narrow ? kHopperBackwardTile<64>.rows() : kHopperBackwardTile<128>.rows();
  return int64_t{ceil_div(problem.len_k, rows)} * (narrow ? kSlopeParts<64> : kSlopeParts<128>);
}

void run_backward_hopper(Call& call, int32_t dtype, const BackwardParams& params) {
  // A warp stores a part only where its keys matter to a head.
  if (params.slope_parts != nullptr) {
    const int64_t heads = int64_t{params.problem.batch} * params.problem.heads_q;
    call.clear(params.slope_parts, heads * hopper_slope_parts(call, dtype, params.problem) *
                                       static_cast<int64_t>(sizeof(float)));
  }
  const auto launch = [&](auto type) {
    using T = decltype(type);
    return params.problem.head_dim == 64 ? launch_backward<T, 64>(call, params)
                                         : launch_backward<T, 128>(call, params);
  };
  dtype == ALIBI_FLOAT16 ? launch(half_t{}) : launch(bfloat_t{});
}

}  // namespace cuda
}  // namespace alibi
