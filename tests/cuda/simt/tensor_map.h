// What of the CUDA driver csrc/cuda/sm90/tensor_map.h uses: tensor maps, with the driver's checks.
#ifndef SIMT_TENSOR_MAP_H_
#define SIMT_TENSOR_MAP_H_

#include <cstdint>

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };
struct alignas(64) CUtensorMap {
  uint64_t encoded;  // kEncodedMap once it has been
  const char* data;
  uint64_t sizes[4];
  uint64_t strides[3];  // in bytes
  uint32_t rows;        // of a box
};
constexpr uint64_t kEncodedMap = 0x7e5507;

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank,
                                       void* data, const cuuint64_t* sizes,
                                       const cuuint64_t* strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill) {
  if (rank != 4 || swizzle != CU_TENSOR_MAP_SWIZZLE_128B) return CUDA_ERROR_INVALID_VALUE;
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0 || reinterpret_cast<uintptr_t>(data) % 16 != 0)
    return CUDA_ERROR_INVALID_VALUE;
  bool fits = box[0] == 64 && box[1] >= 1 && box[1] <= 256 && box[2] == 1 && box[3] == 1;
  for (int i = 0; i < 4; ++i)
    fits = fits && sizes[i] > 0 && sizes[i] <= uint64_t{1} << 32 && steps[i] == 1;
  for (int i = 0; i < 3; ++i)
    fits = fits && strides[i] > 0 && strides[i] % 16 == 0 && strides[i] < uint64_t{1} << 40;
  if (!fits) return CUDA_ERROR_INVALID_VALUE;
  *map = {kEncodedMap,
          static_cast<const char*>(data),
          {sizes[0], sizes[1], sizes[2], sizes[3]},
          {strides[0], strides[1], strides[2]},
          box[1]};
  return CUDA_SUCCESS;
}

#endif  // SIMT_TENSOR_MAP_H_
