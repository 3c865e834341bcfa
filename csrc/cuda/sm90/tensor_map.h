// What the copy engine of a Hopper GPU must know about a tensor: a map, made on the host and handed
// to the kernel by value.
//
// The function that makes maps belongs to the driver. It is looked up through the runtime, so that
// the library is not linked against libcuda and loads on machines without a GPU.
#ifndef ALIBI_CUDA_SM90_TENSOR_MAP_H_
#define ALIBI_CUDA_SM90_TENSOR_MAP_H_

#include "../launch.cuh"
#include "../params.h"

namespace alibi {
namespace cuda {

// Boxes are panels of 64 16-bit columns: a row of a panel is 128 bytes, the width of the swizzle.
constexpr int kPanelColumns = 64;
constexpr int kPanelRowBytes = 128;

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

inline EncodeTensorMap find_encode_tensor_map(Call& call) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr)
    call.fail(ALIBI_DEVICE,
              "the CUDA driver has no cuTensorMapEncodeTiled; it must be 12.0 or later");
  return reinterpret_cast<EncodeTensorMap>(function);
}

// Stride of an axis in bytes. An axis of length 1 is never stepped along, but its stride is checked.
inline uint64_t map_stride(int64_t count, int64_t stride) {
  return count > 1 ? static_cast<uint64_t>(stride) * 2 : 16;
}

// Whether the copy engine can step along [B, heads, len, D] of 16-bit elements.
inline bool can_map(const TensorView& tensor, int batch, int heads, int len) {
  const auto fits = [](int64_t count, int64_t stride) {
    return count <= 1 || (stride > 0 && stride < int64_t{1} << 38);
  };
  return tensor.aligned && fits(batch, tensor.stride_b) && fits(heads, tensor.stride_h) &&
         fits(len, tensor.stride_s);
}

// A map of [B, heads, len, D] whose boxes are `rows` rows of one panel. Reading outside of `len`
// or D yields zeros.
inline CUtensorMap make_tensor_map(Call& call, const TensorView& tensor, bool bfloat16, int batch,
                                   int heads, int len, int head_dim, int rows) {
  CUtensorMap map = {};
  const EncodeTensorMap encode = call.ok() ? find_encode_tensor_map(call) : nullptr;
  if (!call.ok()) return map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(head_dim), static_cast<cuuint64_t>(len),
                              static_cast<cuuint64_t>(heads), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[] = {map_stride(len, tensor.stride_s),
                                map_stride(heads, tensor.stride_h),
                                map_stride(batch, tensor.stride_b)};
  const cuuint32_t box[] = {kPanelColumns, static_cast<cuuint32_t>(rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  const CUresult result =
      encode(&map, bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
             tensor.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    call.fail(ALIBI_DEVICE, "cuTensorMapEncodeTiled refused the sizes or strides of a tensor");
  return map;
}

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_SM90_TENSOR_MAP_H_
