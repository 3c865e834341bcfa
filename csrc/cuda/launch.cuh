// Everything that talks to the CUDA runtime: launches, scratch memory, and errors.
//
// A Call lives for one entry point. It launches only on the stream it was given and never waits for
// it. Scratch is taken from a pool of our own in stream order: nothing synchronises, and the memory
// goes back to the pool when the kernels before it on the stream have finished. The pool keeps what
// it has got from the driver; so after the first calls none is asked for, whoever synchronises
// between them. The first failure is kept, with a message; everything after it is skipped.
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

#include <map>
#include <mutex>
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

// What the pool of a device keeps over a synchronisation: dq in float32 of 128k tokens, 2048 wide.
// A call that needs more runs for so long that mapping the rest again does not matter.
constexpr uint64_t kKeptScratch = uint64_t{1} << 30;

// A new pool of scratch memory on a device.
inline cudaError_t make_scratch_pool(int device, cudaMemPool_t* pool) {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  const cudaError_t error = cudaMemPoolCreate(pool, &properties);
  if (error != cudaSuccess) return error;
  uint64_t kept = kKeptScratch;
  return cudaMemPoolSetAttribute(*pool, cudaMemPoolAttrReleaseThreshold, &kept);
}

// The pool of a device, made when it is first asked for. Not the device's default pool, since that
// one is shared with every other library of the process, and keeps nothing: the driver takes its
// memory back at each synchronisation. Ours are never destroyed: kernels may still use their memory
// when static objects are, and the driver may be gone by then; it frees what a process leaves.
inline cudaError_t scratch_pool(int device, cudaMemPool_t* pool) {
  static std::mutex& mutex = *new std::mutex;
  static std::map<int, cudaMemPool_t>& pools = *new std::map<int, cudaMemPool_t>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = pools.find(device);
  if (found != pools.end()) {
    *pool = found->second;
    return cudaSuccess;
  }
  // The stream may be capturing a graph, during which not every call is allowed that does something
  // at once; this one has nothing to do with what is captured.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  const cudaError_t error = make_scratch_pool(device, pool);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (error == cudaSuccess) pools[device] = *pool;
  return error;
}

class Call {
 public:
  explicit Call(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
    error_text()[0] = '\0';
    check(cudaGetDevice(&device_), "cudaGetDevice");
    query(cudaDevAttrComputeCapabilityMajor, &major_);
    query(cudaDevAttrComputeCapabilityMinor, &minor_);
    query(cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_limit_);
    query(cudaDevAttrMultiProcessorCount, &multiprocessors_);
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
  // after a failure. Where the stream captures a graph, it belongs to the graph instead of the pool.
  template <class T>
  T* scratch(int64_t count) {
    if (!ok()) return nullptr;
    if (pool_ == nullptr) check(scratch_pool(device_, &pool_), "cudaMemPoolCreate");
    if (!ok()) return nullptr;
    void* memory = nullptr;
    const size_t bytes = static_cast<size_t>(count > 0 ? count : 1) * sizeof(T);
    check(cudaMallocFromPoolAsync(&memory, bytes, pool_, stream_), "cudaMallocFromPoolAsync");
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

  void query(cudaDeviceAttr attribute, int* value) {
    if (ok()) check(cudaDeviceGetAttribute(value, attribute, device_), "cudaDeviceGetAttribute");
  }

  void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess || !ok()) return;
    status_ = error == cudaErrorMemoryAllocation ? ALIBI_OUT_OF_MEMORY : ALIBI_DEVICE;
    snprintf(error_text(), 256, "%s: %s", what, cudaGetErrorString(error));
    cudaGetLastError();  // so that the next caller of the runtime does not find our error
  }

  cudaStream_t stream_;
  int32_t status_ = ALIBI_OK;
  int device_ = 0;
  int major_ = 0;
  int minor_ = 0;
  int shared_limit_ = 0;
  int multiprocessors_ = 0;
  cudaMemPool_t pool_ = nullptr;  // once there is scratch
  std::vector<void*> scratch_;
};

}  // namespace cuda
}  // namespace alibi

#endif  // ALIBI_CUDA_LAUNCH_CUH_
