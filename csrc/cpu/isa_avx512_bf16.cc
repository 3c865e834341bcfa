// bfloat16 attention for x86 with AVX-512 BF16 besides F, BW, DQ and VL: products of bfloat16
// pairs. Everything else is the AVX-512 row's. Compile flags: isa_table.cc.
#include "attention_bwd.inl.h"
#include "attention_fwd.inl.h"
#include "isa_table.h"
#include "vec_avx512_bf16.h"

namespace alibi::cpu {

extern const IsaKernels kAvx512Kernels;

namespace {

// Accumulators start from bias / scale. A scale so small that this could overflow, 0 among them,
// makes all scores but the bias vanish anyhow; float32 products take it as it is.
bool takes_pairs(const AlibiProblem& p) {
  return p.dtype == ALIBI_BFLOAT16 && __builtin_fabsf(p.scale) >= 0x1p-60f;
}

int32_t forward(const AlibiAttentionFwdArgs& a, int threads) {
  return takes_pairs(a.problem) ? attention_fwd<VecAvx512Bf16>(a, threads)
                                : kAvx512Kernels.attention_fwd(a, threads);
}
int32_t backward(const AlibiAttentionBwdArgs& a, int threads) {
  return takes_pairs(a.problem) ? attention_bwd<VecAvx512Bf16>(a, threads)
                                : kAvx512Kernels.attention_bwd(a, threads);
}
int32_t weights_forward(const AlibiWeightsFwdArgs& a, int threads) {
  return kAvx512Kernels.weights_fwd(a, threads);
}
int32_t weights_backward(const AlibiWeightsBwdArgs& a, int threads) {
  return kAvx512Kernels.weights_bwd(a, threads);
}
int32_t norms_of_keys(const AlibiKeyNormsArgs& a, int threads) {
  return kAvx512Kernels.key_norms(a, threads);
}
int32_t norm_forward(const AlibiLayerNormFwdArgs& a, int threads) {
  return kAvx512Kernels.layer_norm_fwd(a, threads);
}
int32_t norm_backward(const AlibiLayerNormBwdArgs& a, int threads) {
  return kAvx512Kernels.layer_norm_bwd(a, threads);
}
int32_t gelu_forward(const AlibiBiasGeluFwdArgs& a, int threads) {
  return kAvx512Kernels.bias_gelu_fwd(a, threads);
}
int32_t gelu_backward(const AlibiBiasGeluBwdArgs& a, int threads) {
  return kAvx512Kernels.bias_gelu_bwd(a, threads);
}
void exp2_array(const float* x, float* y, int64_t n) { kAvx512Kernels.exp2(x, y, n); }
void weight_array(const float* x, float* y, int64_t n) { kAvx512Kernels.weight(x, y, n); }
void log2_array(const double* x, double* y, int64_t n) { kAvx512Kernels.log2(x, y, n); }

}  // namespace

extern const IsaKernels kAvx512Bf16Kernels;
constexpr IsaKernels kAvx512Bf16Kernels = {&forward,          &backward,      &weights_forward,
                                           &weights_backward, &norms_of_keys, &norm_forward,
                                           &norm_backward,    &gelu_forward,  &gelu_backward,
                                           &exp2_array,       &weight_array,  &log2_array};

}  // namespace alibi::cpu
