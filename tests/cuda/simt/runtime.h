// The few functions of the CUDA runtime that csrc/cuda/launch.cuh calls. Device memory is host
// memory; streams do nothing.
#ifndef SIMT_RUNTIME_H_
#define SIMT_RUNTIME_H_

#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "machine.h"
#include "tensor_map.h"

#define CUDART_VERSION 13000

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorMemoryAllocation = 2,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed = 2 };

namespace simt {

inline std::string& launch_error() {
  static std::string text;
  return text;
}

// Inputs and scratch that a GPU would page in: ends at a page that must not be touched, starts as
// NaN.
void* allocate(size_t bytes);
void release(void* memory);

// Memory comes from pools that the library makes; there is no default one. A pool counts what it
// gives and what comes back.
struct Pool {
  int device;
  uint64_t kept;  // bytes over a synchronisation
  int64_t given;
  int64_t back;
};
struct Pools {
  std::vector<Pool*> made;
  std::map<void*, Pool*> owner;  // of the memory that is out
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  int device = 0;        // the current one
  bool refused = false;  // as by a driver without pools
};
inline Pools& pools() {
  static Pools all;
  return all;
}

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), unsigned blocks, int threads, int shared_bytes,
                   const Args&... args) {
  const std::tuple<std::decay_t<Params>...> values(args...);
  try {
    run_grid(blocks, threads, static_cast<size_t>(shared_bytes),
             [&] { std::apply(kernel, values); });
  } catch (const Error& error) {
    launch_error() = error.what();
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace simt

inline cudaError_t cudaGetDevice(int* device) {
  *device = simt::pools().device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int capability = simt::config.capability;
  if (attribute == cudaDevAttrComputeCapabilityMajor) *value = capability / 10;
  if (attribute == cudaDevAttrComputeCapabilityMinor) *value = capability % 10;
  if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin)
    *value = (capability >= 90 ? 227 : capability >= 80 ? 99 : 64) * 1024;  // 99: sm_86 and sm_89
  if (attribute == cudaDevAttrMultiProcessorCount) *value = simt::config.multiprocessors;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(simt::pools().mode, *mode);
  return cudaSuccess;
}

using cudaMemPool_t = simt::Pool*;
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  struct {
    cudaMemLocationType type;
    int id;
  } location;
};
inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  simt::Pools& all = simt::pools();
  // A capture in any other mode may forbid it.
  const bool valid = properties->allocType == cudaMemAllocationTypePinned &&
                     properties->location.type == cudaMemLocationTypeDevice &&
                     all.mode == cudaStreamCaptureModeRelaxed;
  if (all.refused || !valid) return cudaErrorNotSupported;
  *pool = new simt::Pool{properties->location.id, 0, 0, 0};
  all.made.push_back(*pool);
  return cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void* value) {
  memcpy(&pool->kept, value, sizeof pool->kept);
  return cudaSuccess;
}
inline cudaError_t cudaMallocFromPoolAsync(void** memory, size_t bytes, cudaMemPool_t pool,
                                           cudaStream_t) {
  *memory = simt::allocate(bytes);
  simt::pools().owner[*memory] = pool;
  ++pool->given;
  return cudaSuccess;
}
inline cudaError_t cudaFreeAsync(void* memory, cudaStream_t) {
  const auto found = simt::pools().owner.find(memory);
  ++found->second->back;
  simt::pools().owner.erase(found);
  simt::release(memory);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNotSupported ? "operation not supported" : simt::launch_error().c_str();
}

enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess,
  cudaDriverEntryPointSymbolNotFound
};
enum { cudaEnableDefault };

inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
  const bool known = std::string(name) == "cuTensorMapEncodeTiled";
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

#endif  // SIMT_RUNTIME_H_
