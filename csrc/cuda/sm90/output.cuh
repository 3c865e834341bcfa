// The end of a forward pass: rows of out, in pieces of 16 bytes, and of lse.
#ifndef ALIBI_CUDA_SM90_OUTPUT_CUH_
#define ALIBI_CUDA_SM90_OUTPUT_CUH_

#include "../sm80/block.cuh"
#include "../sm80/softmax.cuh"

namespace alibi {
namespace cuda {

// The four lanes of a row exchange words: lane q gives words[r] to lane r and gets that lane's
// words[q] for it, in two steps, first with the neighbour and then with the pair beside.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
#pragma unroll
  for (int step = 1; step <= 2; ++step) {
    const bool upper = lane_id() & step;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      uint32_t& low = words[step == 1 ? 2 * n : n];
      uint32_t& high = words[step == 1 ? 2 * n + 1 : n + 2];
      const uint32_t got = __shfl_xor_sync(kAllLanes, upper ? low : high, step);
      upper ? low = got : high = got;
    }
  }
}

// The 16 rows of a warp from row0 on. All lanes.
template <class T, int D>
__device__ __forceinline__ void store_output(const ForwardParams& params, const BlockPlace& place,
                                             int row0, const float (&o)[D / 8][4],
                                             RowState<1>& state) {
  state.finish();
  const ProblemView& problem = params.problem;
  T* out = head_data<T>(params.out, place.batch, place.head);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row0 + 8 * i + lane_id() / 4;
    const bool inside = row < problem.len_q;
    const float factor = state.inverse_sum(i);
    T* to = out + row * params.out.stride_s + lane_id() % 4 * 8;
#pragma unroll
    for (int t = 0; t < D / 8; t += 4) {
      Words piece;
#pragma unroll
      for (int n = 0; n < 4; ++n)
        piece.word[n] = pack<T>(o[t + n][2 * i] * factor, o[t + n][2 * i + 1] * factor);
      transpose_quad(piece.word);
      if (inside) *reinterpret_cast<Words*>(to + 8 * t) = piece;
    }
    if (inside && lane_id() % 4 == 0)
      params.lse[row_index(problem, place.batch, place.head, row)] = state.log2_sum(i) * kLn2;
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_OUTPUT_CUH_
