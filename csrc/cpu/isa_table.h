// The instruction sets of this build, and the kernels compiled for each.
#ifndef ALIBI_CPU_ISA_TABLE_H_
#define ALIBI_CPU_ISA_TABLE_H_

#include <stdint.h>

#include "../alibi_attention.h"
#include "../alibi_cache.h"
#include "../alibi_layer.h"

namespace alibi::cpu {

// The kernels. Arguments have been checked; results do not depend on `threads`.
struct IsaKernels {
  int32_t (*attention_fwd)(const AlibiAttentionFwdArgs&, int threads);
  int32_t (*attention_bwd)(const AlibiAttentionBwdArgs&, int threads);
  int32_t (*weights_fwd)(const AlibiWeightsFwdArgs&, int threads);
  int32_t (*weights_bwd)(const AlibiWeightsBwdArgs&, int threads);
  int32_t (*key_norms)(const AlibiKeyNormsArgs&, int threads);
  int32_t (*layer_norm_fwd)(const AlibiLayerNormFwdArgs&, int threads);
  int32_t (*layer_norm_bwd)(const AlibiLayerNormBwdArgs&, int threads);
  int32_t (*bias_gelu_fwd)(const AlibiBiasGeluFwdArgs&, int threads);
  int32_t (*bias_gelu_bwd)(const AlibiBiasGeluBwdArgs&, int threads);
  // For tests: testing.h.
  void (*exp2)(const float* x, float* y, int64_t n);
  void (*weight)(const float* x, float* y, int64_t n);
  void (*log2)(const double* x, double* y, int64_t n);
};

struct Isa {
  const char* name;
  const IsaKernels* kernels;  // null: not in this build
  bool (*supported)();        // by this CPU and operating system
};

// Best first; the last row, "scalar", runs everywhere.
const Isa* isa_table(int* count);

// The row called `name`, or with null the one that the environment variable ALIBI_CPU_ISA names, or
// else the first that can run. Null when that row does not exist, is not in this build or cannot
// run on this CPU.
const Isa* select_isa(const char* name);

}  // namespace alibi::cpu

#endif  // ALIBI_CPU_ISA_TABLE_H_
