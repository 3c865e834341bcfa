// Two hand-overs that are right beyond doubt, to see what compute-sanitizer says of them:
//
//   nvcc -std=c++17 -I csrc -gencode=arch=compute_90a,code=sm_90a -o handover handover.cu
//   ./handover                                      prints values, exit status 0 when right
//   compute-sanitizer --tool racecheck ./handover [shared|bulk|...]
//   compute-sanitizer --tool initcheck ./handover [device|...]
//
// An argument runs only that test (all: none). Each test is a kernel of its own name:
//
//   shared     one lane stores a word to shared memory and arrives on an mbarrier; another warp waits
//              for the phase and reads the word; a second mbarrier hands the place back. 8 rounds.
//   warp       the same, but each lane stores a word, and after __syncwarp one lane arrives for its
//              warp, on both barriers.
//   bulk       the copy engine writes shared memory and completes the mbarrier (expect_tx); a warp
//              waits and reads.
//   barrier    control: the same hand-over as `shared`, by __syncthreads. Must be clean.
//   device     the copy engine writes device memory that nobody has set (cp.async.bulk, then
//              cp.reduce.async.bulk onto it), both waited for; a second kernel reads it.
//   stores     control: the same memory written by plain stores. Must be clean.
//   race       control: `shared` without the wait. racecheck must complain (the values may be wrong;
//              they do not count).
//   unset      control: reads memory nobody has written. initcheck must complain.
//
// The instructions are those that the kernels use.
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "cuda/sm90/device.cuh"

#define CHECK(call)                                          \
  do {                                                       \
    cudaError_t e = (call);                                  \
    if (e != cudaSuccess) {                                  \
      std::printf("%s: %s\n", #call, cudaGetErrorString(e)); \
      return 2;                                              \
    }                                                        \
  } while (0)

using namespace alibi::cuda;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
constexpr int kRounds = 8;
constexpr int kFloats = 256;  // of a run: 1 KB

// Two warps. full: one arrival, of the producer's lane. empty: 32, of the consumer's lanes.
template <bool kWait>
__device__ __forceinline__ void hand_over(int* out) {
  __shared__ alignas(8) uint64_t barriers[2];
  __shared__ volatile int word;
  const uint32_t full = shared_address(&barriers[0]), empty = shared_address(&barriers[1]);
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_init(empty, 32);
    barrier_init_fence();
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    if (lane == 0) {
      for (int i = 0; i < kRounds; ++i) {
        if (kWait && i > 0) barrier_wait(empty, (i - 1) & 1);
        word = 100 + i;
        barrier_arrive(full);
      }
    }
  } else {
    for (int i = 0; i < kRounds; ++i) {
      if (kWait) barrier_wait(full, i & 1);
      out[32 * i + lane] = word;
      if (kWait) barrier_arrive(empty);
    }
  }
}
__global__ void shared_kernel(int* out) { hand_over<true>(out); }
__global__ void race_kernel(int* out) { hand_over<false>(out); }

__global__ void barrier_kernel(int* out) {
  __shared__ volatile int word;
  for (int i = 0; i < kRounds; ++i) {
    if (threadIdx.x == 0) word = 100 + i;
    __syncthreads();
    if (threadIdx.x >= 32) out[32 * i + threadIdx.x % 32] = word;
    __syncthreads();
  }
}

// Both barriers count one arrival: of the lane that arrives for its warp.
__global__ void warp_kernel(int* out) {
  __shared__ alignas(8) uint64_t barriers[2];
  __shared__ volatile int words[32];
  const uint32_t full = shared_address(&barriers[0]), empty = shared_address(&barriers[1]);
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_init(empty, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < kRounds; ++i) {
    if (threadIdx.x < 32) {
      if (i > 0) barrier_wait(empty, (i - 1) & 1);
      words[lane] = 100 + i;
      __syncwarp();
      if (lane == 0) barrier_arrive(full);
    } else {
      barrier_wait(full, i & 1);
      out[32 * i + lane] = words[31 - lane];
      __syncwarp();
      if (lane == 0) barrier_arrive(empty);
    }
  }
}

// One warp starts the copies, the other reads what has arrived.
__global__ void bulk_kernel(const float* in, float* out) {
  __shared__ alignas(128) float box[kFloats];
  __shared__ alignas(8) uint64_t barriers[2];
  const uint32_t full = shared_address(&barriers[0]), empty = shared_address(&barriers[1]);
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_init(empty, 32);
    barrier_init_fence();
  }
  __syncthreads();
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRounds; ++i) {
      if (i > 0) barrier_wait(empty, (i - 1) & 1);
      barrier_arrive_expect(full, kFloats * 4);
      copy_run(shared_address(box), in + i * kFloats, full, kFloats * 4);
    }
  } else if (threadIdx.x >= 32) {
    for (int i = 0; i < kRounds; ++i) {
      barrier_wait(full, i & 1);
      for (int j = lane; j < kFloats; j += 32) out[i * kFloats + j] = box[j];
      barrier_arrive(empty);
    }
  }
}

// Writes i, then adds 1000 twice, by the copy engine: target[i] == i + 2000 (exact in float).
__global__ void device_kernel(float* target) {
  __shared__ alignas(128) float first[kFloats], more[kFloats];
  first[threadIdx.x] = static_cast<float>(threadIdx.x);
  more[threadIdx.x] = 1000.0f;
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_run(target, shared_address(first), kFloats * 4);
    runs_commit();
    runs_wait<0>();
    for (int i = 0; i < 2; ++i) {
      add_run(target, shared_address(more), kFloats * 4);
      runs_commit();
      runs_wait<0>();
    }
  }
}
__global__ void stores_kernel(float* target) {
  target[threadIdx.x] = static_cast<float>(threadIdx.x) + 2000.0f;
}
__global__ void read_device_kernel(const float* source, float* out) {
  out[threadIdx.x] = source[threadIdx.x];
}
__global__ void read_stores_kernel(const float* source, float* out) {
  out[threadIdx.x] = source[threadIdx.x];
}
__global__ void read_unset_kernel(const float* source, float* out) {
  out[threadIdx.x] = source[threadIdx.x];
}

int main(int argc, char** argv) {
  auto wanted = [&](const char* name) { return argc < 2 || std::strcmp(argv[1], name) == 0; };
  int wrong = 0, ran = 0;
  auto say = [&](const char* name, int errors, bool counts) {
    std::printf("%-8s %s\n", name,
                errors == 0 ? "right"
                : counts    ? "WRONG"
                            : "other values (expected)");
    std::fflush(stdout);
    wrong += counts && errors != 0;
    ++ran;
  };

  void (*words[])(int*) = {shared_kernel, warp_kernel, barrier_kernel, race_kernel};
  const char* names[] = {"shared", "warp", "barrier", "race"};
  for (int t = 0; t < 4; ++t) {
    if (!wanted(names[t])) continue;
    int* out;
    int got[32 * kRounds];
    CHECK(cudaMalloc(&out, sizeof(got)));
    words[t]<<<1, 64>>>(out);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(got, out, sizeof(got), cudaMemcpyDeviceToHost));
    int errors = 0;
    for (int i = 0; i < 32 * kRounds; ++i) errors += got[i] != 100 + i / 32;
    say(names[t], errors, t != 3);
    CHECK(cudaFree(out));
  }

  static float host[kRounds * kFloats], back[kRounds * kFloats];
  for (int i = 0; i < kRounds * kFloats; ++i) host[i] = static_cast<float>(i);
  if (wanted("bulk")) {
    float *in, *out;
    CHECK(cudaMalloc(&in, sizeof(host)));
    CHECK(cudaMalloc(&out, sizeof(host)));
    CHECK(cudaMemcpy(in, host, sizeof(host), cudaMemcpyHostToDevice));
    bulk_kernel<<<1, 64>>>(in, out);
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(back, out, sizeof(host), cudaMemcpyDeviceToHost));
    say("bulk", std::memcmp(host, back, sizeof(host)) != 0, true);
    CHECK(cudaFree(in));
    CHECK(cudaFree(out));
  }

  const char* kinds[] = {"device", "stores", "unset"};
  for (int t = 0; t < 3; ++t) {
    if (!wanted(kinds[t])) continue;
    float *target, *out;
    CHECK(cudaMalloc(&target, kFloats * 4));
    CHECK(cudaMalloc(&out, kFloats * 4));
    if (t == 0) {
      device_kernel<<<1, kFloats>>>(target);
      read_device_kernel<<<1, kFloats>>>(target, out);
    } else if (t == 1) {
      stores_kernel<<<1, kFloats>>>(target);
      read_stores_kernel<<<1, kFloats>>>(target, out);
    } else {
      read_unset_kernel<<<1, kFloats>>>(target, out);
    }
    CHECK(cudaGetLastError());
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(back, out, kFloats * 4, cudaMemcpyDeviceToHost));
    int errors = 0;
    for (int i = 0; i < kFloats; ++i) errors += back[i] != static_cast<float>(i) + 2000.0f;
    say(kinds[t], errors, t != 2);
    CHECK(cudaFree(target));
    CHECK(cudaFree(out));
  }
  std::printf("%d tests, %d wrong\n", ran, wrong);
  return wrong != 0 || ran == 0;
}
