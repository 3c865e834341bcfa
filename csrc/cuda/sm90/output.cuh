// The end of a pass: rows of results, in pieces of 16 bytes, and of lse.
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

// The 16 rows of a warp from row0 on, of those before `end`, times a factor for each row of this lane.
// Rows start on multiples of 16 bytes. All lanes.
template <class T, int D>
__device__ __forceinline__ void store_rows(T* data, int64_t stride, int row0, int end,
                                           const float (&x)[D / 8][4], const float (&factors)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row0 + 8 * i + lane_id() / 4;
    T* to = data + row * stride + lane_id() % 4 * 8;
#pragma unroll
    for (int t = 0; t < D / 8; t += 4) {
      Words piece;
#pragma unroll
      for (int n = 0; n < 4; ++n)
        piece.word[n] = pack<T>(x[t + n][2 * i] * factors[i], x[t + n][2 * i + 1] * factors[i]);
      transpose_quad(piece.word);
      if (row < end) *reinterpret_cast<Words*>(to + 8 * t) = piece;
    }
  }
}

template <class T, int D>
__device__ __forceinline__ void store_output(const ForwardParams& params, const BlockPlace& place,
                                             int row0, const float (&o)[D / 8][4],
                                             RowState<1>& state) {
  state.finish();
  const ProblemView& problem = params.problem;
  const float factors[2] = {state.inverse_sum(0), state.inverse_sum(1)};
  store_rows<T, D>(head_data<T>(params.out, place.batch, place.head), params.out.stride_s, row0,
                   problem.len_q, o, factors);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = row0 + 8 * i + lane_id() / 4;
    if (row < problem.len_q && lane_id() % 4 == 0)
      params.lse[row_index(problem, place.batch, place.head, row)] = state.log2_sum(i) * kLn2;
  }
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_OUTPUT_CUH_
