// The model's own tests: right kernels must pass under every schedule, each wrong one must be
// reported.
//
// Exit status 1, and a line per disagreement, when the model does not judge as expected.
#include <cstdio>
#include <functional>
#include <string>

#include "simt/device.h"
#include "simt/runtime.h"

using namespace alibi::cuda;

namespace {

constexpr int kThreads = 128;

// Sum of a block through shared memory.
template <bool kMissingBarrier>
void block_sum(const float* x, float* sum) {
  const unsigned t = threadIdx.x;
  store_shared(t * 4, x[t]);
  __syncthreads();
  for (unsigned width = kThreads / 2; width > 0; width /= 2) {
    if (t < width) {
      float a, b;
      load_shared(a, t * 4);
      load_shared(b, (t + width) * 4);
      store_shared(t * 4, a + b);
    }
    if (!kMissingBarrier) __syncthreads();
  }
  if (t == 0) load_shared(*sum, 0);
}

// A copy that another warp reads: needs the wait and the barrier.
template <bool kWait, bool kBarrier>
void copy_and_read(const float* x, float* y) {
  const unsigned t = threadIdx.x;
  if (t % 4 == 0) copy_async(t * 4, x + t, 16);
  copy_commit();
  if (kWait) copy_wait<0>();
  if (kBarrier) __syncthreads();
  load_shared(y[t], (kThreads - 1 - t) * 4);
  copy_wait<0>();
}

// A tile that is loaded again while others may still read it.
template <bool kBarrier>
void overwrite(const float* x, float* y) {
  const unsigned t = threadIdx.x;
  store_shared(t * 4, x[t]);
  __syncthreads();
  load_shared(y[t], (kThreads - 1 - t) * 4);
  if (kBarrier) __syncthreads();
  store_shared(t * 4, 0.0f);
}

void shuffles(float* y) {
  const int t = static_cast<int>(threadIdx.x);
  y[t] = __shfl_sync(kAllLanes, static_cast<float>(t), 3, 8) +
         __shfl_xor_sync(kAllLanes, static_cast<float>(t), 1);
}
void half_a_warp(float* y) {
  if (threadIdx.x % 2 == 0) y[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
}
void divergent(float* y) {
  const int t = static_cast<int>(threadIdx.x);
  if (t % 2 == 0) {
    y[t] = __shfl_sync(kAllLanes, 1.0f, 0);
  } else {
    y[t] = static_cast<float>(__all_sync(kAllLanes, 1));
  }
}
void barrier_for_some(float* y) {
  if (threadIdx.x < 64) __syncthreads();
  y[threadIdx.x] = __shfl_sync(kAllLanes, 1.0f, 0);
  if (threadIdx.x >= 64) y[threadIdx.x] = static_cast<float>(__syncthreads_and(1));
}
void outside(float* y) {
  store_shared(kThreads * 4, 1.0f);
  y[0] = 0.0f;
}
void misaligned(float* y) {
  float x[4];
  load_shared(x, 8);
  y[0] = x[0];
}
void forgotten_copy(const float* x, float* y) {
  copy_async(threadIdx.x / 4 * 16, x, 16);
  copy_commit();
  y[threadIdx.x] = 0.0f;
}

int failures = 0;

// `run` launches and says whether the values are right.
void expect(const char* what, bool right, const std::function<bool()>& run) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    simt::config = {seed, true, false, 1, 80, 0};
    const bool passed = run();
    if (passed == right) continue;
    ++failures;
    printf("%s: %s at seed %d: %s\n", what, passed ? "not noticed" : "reported",
           static_cast<int>(seed), simt::launch_error().c_str());
  }
}

template <class... P, class... A>
bool launched(void (*kernel)(P...), A... args) {
  return simt::launch(kernel, 2, kThreads, kThreads * 4, args...) == cudaSuccess;
}

}  // namespace

int main() {
  alignas(16) static float x[kThreads], y[kThreads];
  for (int i = 0; i < kThreads; ++i) x[i] = static_cast<float>(i);
  const auto reversed = [&] {
    for (int i = 0; i < kThreads; ++i) {
      if (y[i] != x[kThreads - 1 - i]) return false;
    }
    return true;
  };
  expect("block sum", true, [&] { return launched(block_sum<false>, x, y) && y[0] == 8128.0f; });
  expect("block sum without barriers", false,
         [&] { return launched(block_sum<true>, x, y) && y[0] == 8128.0f; });
  expect("copy", true, [&] { return launched(copy_and_read<true, true>, x, y) && reversed(); });
  expect("copy without a wait", false,
         [&] { return launched(copy_and_read<false, true>, x, y) && reversed(); });
  expect("copy without a barrier", false,
         [&] { return launched(copy_and_read<true, false>, x, y) && reversed(); });
  expect("copy never waited for", false, [&] { return launched(forgotten_copy, x, y); });
  expect("overwrite", true, [&] { return launched(overwrite<true>, x, y) && reversed(); });
  expect("overwrite without a barrier", false,
         [&] { return launched(overwrite<false>, x, y) && reversed(); });
  expect("shuffles", true, [&] {
    bool right = launched(shuffles, y);
    for (int i = 0; i < kThreads; ++i)
      right = right && y[i] == static_cast<float>(i / 8 * 8 + 3 + (i ^ 1));
    return right;
  });
  expect("shuffle by half a warp", false, [&] { return launched(half_a_warp, y); });
  expect("lanes in different operations", false, [&] { return launched(divergent, y); });
  expect("barrier that not all threads reach", false,
         [&] { return launched(barrier_for_some, y); });
  expect("store outside shared memory", false, [&] { return launched(outside, y); });
  expect("misaligned load", false, [&] { return launched(misaligned, y); });
  if (failures > 0) printf("%d failures\n", failures);
  return failures > 0 ? 1 : 0;
}
