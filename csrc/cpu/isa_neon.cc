// The kernels for aarch64. Compile flags: isa_table.cc.
#include "isa_kernels.inl.h"
#include "vec_neon.h"

namespace alibi::cpu {

extern const IsaKernels kNeonKernels;
constexpr IsaKernels kNeonKernels = make_kernels<VecNeon>();

}  // namespace alibi::cpu
