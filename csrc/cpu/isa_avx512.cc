// The kernels for x86 with AVX-512 F, BW, DQ and VL. Compile flags: isa_table.cc.
#include "isa_kernels.inl.h"
#include "vec_avx512.h"

namespace alibi::cpu {

extern const IsaKernels kAvx512Kernels;
constexpr IsaKernels kAvx512Kernels = make_kernels<VecAvx512>();

}  // namespace alibi::cpu
