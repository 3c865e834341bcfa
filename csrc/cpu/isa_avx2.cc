// The kernels for x86 with AVX2, FMA and F16C. Compile flags: isa_table.cc.
#include "isa_kernels.inl.h"
#include "vec_avx2.h"

namespace alibi::cpu {

extern const IsaKernels kAvx2Kernels;
constexpr IsaKernels kAvx2Kernels = make_kernels<VecAvx2>();

}  // namespace alibi::cpu
