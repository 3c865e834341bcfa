// The end of a forward pass: rows of out and lse, or the part of them that comes from a share of the
// keys.
#ifndef ALIBI_CUDA_SM80_OUTPUT_CUH_
#define ALIBI_CUDA_SM80_OUTPUT_CUH_

#include "block.cuh"
#include "softmax.cuh"

namespace alibi {
namespace cuda {

template <class T, int D, bool kSplit, int kM>
__device__ __forceinline__ void store_output(const ForwardParams& params, const BlockPlace& place,
                                             int split, int row0, const float (&o)[kM][D / 8][4],
                                             RowState<kM>& state) {
  state.finish();
  const ProblemView& problem = params.problem;
  T* out = head_data<T>(params.out, place.batch, place.head);
#pragma unroll
  for (int i = 0; i < 2 * kM; ++i) {
    const int row = row0 + 8 * i + lane_id() / 4;
    if (row >= problem.len_q) continue;
    const int64_t index = row_index(problem, place.batch, place.head, row);
    if constexpr (kSplit) {
      const int64_t rows = static_cast<int64_t>(problem.batch) * problem.heads_q * problem.len_q;
      const int64_t part = split * rows + index;
      store_row(params.split_out + part * problem.head_dim, o[i / 2], i % 2, state.inverse_sum(i),
                problem.head_dim, false);
      if (lane_id() % 4 == 0) params.split_lse[part] = state.log2_sum(i);
    } else {
      store_row(out + row * params.out.stride_s, o[i / 2], i % 2, state.inverse_sum(i),
                problem.head_dim, params.out.aligned);
      if (lane_id() % 4 == 0) params.lse[index] = state.log2_sum(i) * kLn2;
    }
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM80_OUTPUT_CUH_
