// The kernels for any CPU. Compile flags: isa_table.cc.
#include "isa_kernels.inl.h"
#include "vec_scalar.h"

namespace alibi::cpu {

extern const IsaKernels kScalarKernels;
constexpr IsaKernels kScalarKernels = make_kernels<VecScalar>();

}  // namespace alibi::cpu
