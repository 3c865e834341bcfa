// All kernels for one vector type. Included by isa_*.cc only, each of which is compiled for its
// instruction set; everything here has internal linkage, so that no function compiled for AVX-512
// can replace one that other CPUs run.
#ifndef ALIBI_CPU_ISA_KERNELS_INL_H_
#define ALIBI_CPU_ISA_KERNELS_INL_H_

#include "attention_bwd.inl.h"
#include "attention_fwd.inl.h"
#include "exp.inl.h"
#include "gelu.inl.h"
#include "isa_table.h"
#include "key_norms.inl.h"
#include "log.inl.h"
#include "norm.inl.h"
#include "weights_bwd.inl.h"
#include "weights_fwd.inl.h"

namespace alibi::cpu {
namespace {

template <class V>
void exp2_array(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const int count = min_int(V::kWidth, n - i);
    V::store_first(y + i, exp2<V>(V::load_first(x + i, count)), count);
  }
}

template <class V>
void weight_array(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const int count = min_int(V::kWidth, n - i);
    typename V::Reg one[1] = {V::load_first(x + i, count)};
    weigh_each<V>(one);
    V::store_first(y + i, one[0], count);
  }
}

template <class V>
void log2_array(const double* x, double* y, int64_t n) {
  using D = Doubles<V>;
  for (int64_t i = 0; i < n; i += D::kWidth) {
    const size_t bytes = sizeof(double) * static_cast<size_t>(min_int(D::kWidth, n - i));
    typename D::Reg lanes = {};
    memcpy(&lanes, x + i, bytes);
    lanes = D::log2(lanes);
    memcpy(y + i, &lanes, bytes);
  }
}

template <class V>
constexpr IsaKernels make_kernels() {
  return {&attention_fwd<V>, &attention_bwd<V>,  &weights_fwd<V>,    &weights_bwd<V>,
          &key_norms<V>,     &layer_norm_fwd<V>, &layer_norm_bwd<V>, &bias_gelu_fwd<V>,
          &bias_gelu_bwd<V>, &exp2_array<V>,     &weight_array<V>,   &log2_array<V>};
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_ISA_KERNELS_INL_H_
