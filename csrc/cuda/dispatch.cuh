// From the run-time dtype and head_dim to a template instantiation: the one list of what is
// instantiated.
#ifndef ALIBI_CUDA_DISPATCH_CUH_
#define ALIBI_CUDA_DISPATCH_CUH_

#include <type_traits>
#include <utility>

#include "../alibi_attention.h"
#include "sm80/device.cuh"
#include "tile_config.h"

// A build for tests may instantiate fewer.
#ifndef ALIBI_HEAD_DIMS_16
#define ALIBI_HEAD_DIMS_16 32, 64, 96, 128, 256
#endif
#ifndef ALIBI_HEAD_DIMS_32
#define ALIBI_HEAD_DIMS_32 32, 64, 128, 256
#endif

namespace alibi {
namespace cuda {

using HeadDims16 = std::integer_sequence<int, ALIBI_HEAD_DIMS_16>;
using HeadDims32 = std::integer_sequence<int, ALIBI_HEAD_DIMS_32>;

using OnAmpere = std::integral_constant<Gpu, kAmpere>;
using OnTuring = std::integral_constant<Gpu, kTuring>;

// Calls run(T{}, integral_constant<int, D>, gpu) with the smallest instantiated D that holds
// head_dim; false when there is none.
template <class T, class OnGpu, class Run, int... kHeadDims>
bool dispatch_head_dim(int head_dim, const Run& run, OnGpu gpu,
                       std::integer_sequence<int, kHeadDims...>) {
  return (
      (head_dim <= kHeadDims && (run(T{}, std::integral_constant<int, kHeadDims>{}, gpu), true)) ||
      ...);
}

template <class OnGpu, class Run>
bool dispatch_type(int32_t dtype, int head_dim, const Run& run, OnGpu gpu) {
  if (dtype == ALIBI_FLOAT16) return dispatch_head_dim<half_t>(head_dim, run, gpu, HeadDims16{});
  if (dtype == ALIBI_FLOAT32) return dispatch_head_dim<float>(head_dim, run, gpu, HeadDims32{});
  if constexpr (OnGpu::value == kAmpere) {
    if (dtype == ALIBI_BFLOAT16)
      return dispatch_head_dim<bfloat_t>(head_dim, run, gpu, HeadDims16{});
  }
  return false;
}

template <class Run>
bool dispatch(Gpu gpu, int32_t dtype, int head_dim, const Run& run) {
  return gpu == kTuring ? dispatch_type(dtype, head_dim, run, OnTuring{})
                        : dispatch_type(dtype, head_dim, run, OnAmpere{});
}

// The same for kernels that do not depend on the head size: run(T{}).
template <class Run>
void dispatch_dtype(int32_t dtype, const Run& run) {
  if (dtype == ALIBI_FLOAT16) run(half_t{});
  if (dtype == ALIBI_BFLOAT16) run(bfloat_t{});
  if (dtype == ALIBI_FLOAT32) run(float{});
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_DISPATCH_CUH_
