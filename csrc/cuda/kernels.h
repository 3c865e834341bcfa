// What entry.cu can run. Each function launches the kernels of one operation on prepared
// parameters; pointers of inputs are 16-byte aligned row by row, and scratch has been allocated.
#ifndef ALIBI_CUDA_KERNELS_H_
#define ALIBI_CUDA_KERNELS_H_

#include "launch.cuh"
#include "params.h"

namespace alibi {
namespace cuda {

void run_forward(Call& call, int32_t dtype, const ForwardParams& params);
void run_backward(Call& call, int32_t dtype, const BackwardParams& params);
// Forward for few query rows: needs no key norms.
void run_decode(Call& call, int32_t dtype, const ForwardParams& params);
void run_weights_forward(Call& call, int32_t dtype, const WeightsForwardParams& params);
void run_weights_backward(Call& call, int32_t dtype, const WeightsBackwardParams& params);

// On a Hopper GPU: which calls its kernels take, and the same for these.
bool hopper_takes_forward(const Call& call, int32_t dtype, const ForwardParams& params);
bool hopper_takes_backward(const Call& call, int32_t dtype, const BackwardParams& params);
// Whether its forward kernel leaves keys out where it may.
bool hopper_prunes(const ProblemView& problem);
void run_forward_hopper(Call& call, int32_t dtype, const ForwardParams& params);
void run_backward_hopper(Call& call, int32_t dtype, const BackwardParams& params);

// Largest |k_j| of every key head, [B, Hkv].
void run_key_norms(Call& call, int32_t dtype, const ProblemView& problem, const TensorView& k,
                   float* norms);
// Largest |q_i| of every `rows` query rows, [B, Hq, ceil(Sq / rows)]; rows is a multiple of 64.
void run_query_norms(Call& call, int32_t dtype, const ProblemView& problem, const TensorView& q,
                     int rows, float* norms);
// delta and slack of every query row, for the backward kernels.
// A copy of [B, heads, len, D] whose rows are padded to 16 bytes; `target` says where.
void run_pack(Call& call, int32_t dtype, const TensorView& source, const TensorView& target,
              int batch, int heads, int len, int head_dim);
// dslopes[h] = sum of the `count` parts of head h.
void run_sum_slopes(Call& call, const float* parts, float* dslopes, int heads, int64_t count);

// Which calls run_decode takes.
bool decode_takes(const ProblemView& problem);
// How many blocks should share the keys of a query tile, so that the GPU is busy.
int forward_splits(const Call& call, int32_t dtype, const ProblemView& problem);
int decode_splits(const Call& call, int32_t dtype, const ProblemView& problem);
// out and lse from what they left in split_out and split_lse.
void run_combine(Call& call, int32_t dtype, const ForwardParams& params);
// In how many parts the backward kernels leave the slope gradient of one head of one batch item.
int64_t slope_parts(const Call& call, int32_t dtype, const ProblemView& problem);
int64_t hopper_slope_parts(const Call& call, int32_t dtype, const ProblemView& problem);

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_KERNELS_H_
