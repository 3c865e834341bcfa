// Launches of the small kernels that entry.cu asks for by themselves.
#include "../dispatch.cuh"
#include "../kernels.h"
#include "../tile_config.h"
#include "prepass.cuh"

namespace alibi {
namespace cuda {
namespace {

void run_norms(Call& call, int32_t dtype, const NormParams& params) {
  const int64_t heads = int64_t{params.problem.batch} * params.heads;
  call.clear(params.norms,
             heads * ceil_div(params.len, params.rows) * static_cast<int64_t>(sizeof(float)));
  dispatch_dtype(dtype, [&](auto type) {
    call.launch(largest_norms<decltype(type)>, heads * ceil_div(params.len, kPrepassRows),
                kPrepassThreads, 0, params);
  });
}

}  // namespace

void run_key_norms(Call& call, int32_t dtype, const ProblemView& problem, const TensorView& k,
                   float* norms) {
  const int rows = most(problem.len_k, 1);
  run_norms(call, dtype, {problem, k, problem.heads_kv, problem.len_k, rows, true, norms});
}

void run_query_norms(Call& call, int32_t dtype, const ProblemView& problem, const TensorView& q,
                     int rows, float* norms) {
  run_norms(call, dtype, {problem, q, problem.heads_q, problem.len_q, rows, false, norms});
}

void run_pack(Call& call, int32_t dtype, const TensorView& source, const TensorView& target,
              int batch, int heads, int len, int head_dim) {
  const PackParams params = {source, target, heads, len, head_dim};
  const int64_t rows = int64_t{batch} * heads * len;
  dispatch_dtype(dtype, [&](auto type) {
    call.launch(pack_rows<decltype(type)>, (rows + kPrepassWarps - 1) / kPrepassWarps,
                kPrepassThreads, 0, params, rows);
  });
}

void run_sum_slopes(Call& call, const float* parts, float* dslopes, int heads, int64_t count) {
  call.launch(sum_slopes<double>, heads, 32, 0, parts, dslopes, count);
}

int64_t slope_parts(const Call& call, int32_t dtype, const ProblemView& problem) {
  int tiles = 0;
  dispatch(call.gpu(), dtype, problem.head_dim, [&](auto type, auto dim, auto gpu) {
    using T = decltype(type);
    constexpr int D = decltype(dim)::value;
    tiles = ceil_div(problem.len_q, kQueryGradTile<T, D, decltype(gpu)::value>.rows());
  });
  return tiles;
}

}  // namespace cuda
}  // namespace alibi
