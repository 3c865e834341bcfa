// Everything that talks to the CUDA runtime: launches, scratch memory, and errors.
//
// A Call lives for one entry point. It launches only on the stream it was given and never waits for
// it. Scratch comes from cudaMallocAsync, which takes memory from a pool of the driver in stream
// order: after the first calls no driver allocation is left, nothing synchronises, and the memory
// goes back when the kernels before it on the stream have finished. The first failure is kept, with
// a message; everything after it is skipped.
#ifndef ALIBI_CUDA_LAUNCH_CUH_
#define ALIBI_CUDA_LAUNCH_CUH_

#ifdef ALIBI_CPU_MODEL
#include "simt/runtime.h"
#else
#include <cuda_runtime.h>
#if CUDART_VERSION >= 12000
#include <cuda.h>
#endif
#endif

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include <vector>

#include "../alibi_attention.h"
#include "tile_config.h"

namespace alibi {
namespace cuda {

// What went wrong last in this thread; empty after a call that succeeded. alibi_last_error()
// returns it.
inline char* error_text() {
  thread_local char text[256] = "";
  return text;
}

class Call {
 public:
  explicit Call(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
    error_text()[0] = '\0';
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    query(cudaDevAttrComputeCapabilityMajor, device, &major_);
    query(cudaDevAttrComputeCapabilityMinor, device, &minor_);
    query(cudaDevAttrMaxSharedMemoryPerBlockOptin, device, &shared_limit_);
    query(cudaDevAttrMultiProcessorCount, device, &multiprocessors_);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() {
    for (void* memory : scratch_) cudaFreeAsync(memory, stream_);
  }

  bool ok() const { return status_ == ALIBI_OK; }
  int32_t status() const { return status_; }
  int capability() const { return 10 * major_ + minor_; }
  int capability_major() const { return major_; }
  Gpu gpu() const { return gpu_of_capability(major_); }  // whose tiles this call runs
  int multiprocessors() const { return multiprocessors_; }
  int shared_limit() const { return shared_limit_; }  // bytes that a block may have

  __attribute__((format(printf, 3, 4))) void fail(int32_t status, const char* format, ...) {
    if (!ok()) return;
    status_ = status;
    va_list values;
    va_start(values, format);
    vsnprintf(error_text(), 256, format, values);
    va_end(values);
  }

  // Uninitialised device memory for `count` elements, valid for all launches of this call; null
  // after a failure.
  template <class T>
  T* scratch(int64_t count) {
    if (!ok()) return nullptr;
    void* memory = nullptr;
    const size_t bytes = static_cast<size_t>(count > 0 ? count : 1) * sizeof(T);
    check(cudaMallocAsync(&memory, bytes, stream_), "cudaMallocAsync");
    if (!ok()) return nullptr;
    scratch_.push_back(memory);
    return static_cast<T*>(memory);
  }

  void clear(void* memory, int64_t bytes) {
    if (ok())
      check(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream_), "cudaMemsetAsync");
  }

  // Runs `blocks` thread blocks; none is no error. `shared`: bytes of dynamic shared memory.
  template <class... Params, class... Args>
  void launch(void (*kernel)(Params...), int64_t blocks, int threads, int shared,
              const Args&... args) {
    if (!ok() || blocks == 0) return;
    if (blocks > INT32_MAX)
      return fail(ALIBI_SHAPE, "more thread blocks than a CUDA grid can hold");
    if (shared > shared_limit_)
      return fail(ALIBI_UNSUPPORTED, "this GPU has too little shared memory for the head_dim");
    if (shared > kDefaultShared) {
      check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
            "cudaFuncSetAttribute");
      if (!ok()) return;
    }
#ifdef ALIBI_CPU_MODEL
    check(simt::launch(kernel, static_cast<unsigned>(blocks), threads, shared, args...), "kernel");
#else
    // clang-format off
    kernel<<<static_cast<unsigned>(blocks), threads, static_cast<size_t>(shared), stream_>>>(args...);
    // clang-format on
    check(cudaGetLastError(), "kernel launch");
#endif
  }

 private:
  static constexpr int kDefaultShared = 48 * 1024;  // what a kernel may use without asking

  void query(cudaDeviceAttr attribute, int device, int* value) {
    if (ok()) check(cudaDeviceGetAttribute(value, attribute, device), "cudaDeviceGetAttribute");
  }

  void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess || !ok()) return;
    status_ = error == cudaErrorMemoryAllocation ? ALIBI_OUT_OF_MEMORY : ALIBI_DEVICE;
    snprintf(error_text(), 256, "%s: %s", what, cudaGetErrorString(error));
    cudaGetLastError();  // so that the next caller of the runtime does not find our error
  }

  cudaStream_t stream_;
  int32_t status_ = ALIBI_OK;
  int major_ = 0;
  int minor_ = 0;
  int shared_limit_ = 0;
  int multiprocessors_ = 0;
  std::vector<void*> scratch_;
};

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_LAUNCH_CUH_
