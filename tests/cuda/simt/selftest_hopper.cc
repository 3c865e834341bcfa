// The same as selftest.cc for the Hopper half of the model: right kernels must pass under every
// schedule, each wrong one must be reported.
#include <cstdio>
#include <functional>
#include <string>

#include "simt/hopper_device.h"
#include "simt/runtime.h"

using namespace alibi::cuda;

namespace {

constexpr int kRows = 64;            // of a box
constexpr int kBytes = kRows * 128;  // of a tile of one panel
constexpr uint32_t kTileA = 0, kTileB = kBytes;
constexpr uint32_t kBarrier = 2 * kBytes;  // two mbarriers
constexpr int kThreads = 160;              // a warpgroup, and a warp that copies

enum Mistake {
  kNone,
  kNoWait,
  kNoInitFence,
  kNoBlockBarrier,
  kTooManyBytes,
  kWrongParity,
  kNoFence,
  kNoProductWait,
  kNoProxyFence,
  kOverwrite,
};

// y (64 x 64) = a b^T, tiles copied by the last warp. With kStored threads store b's first row
// themselves, as zeros.
template <Mistake kMistake, bool kStored = false>
void product(const CUtensorMap map, float* y) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 128) {
    barrier_init(kBarrier, 1);
    barrier_init(kBarrier + 8, 128);
    if (kMistake != kNoInitFence) barrier_init_fence();
  }
  if (kMistake != kNoBlockBarrier) __syncthreads();
  if (thread >= 128) {
    if (thread > 128) return;
    for (int round = 0; round < 2; ++round) {
      if (kMistake != kOverwrite) barrier_wait(kBarrier + 8, round ^ 1);
      barrier_arrive_expect(kBarrier, kMistake == kTooManyBytes ? 3 * kBytes : 2 * kBytes);
      copy_box(kTileA, map, kBarrier, 0, 0, 0, 0);
      copy_box(kTileB, map, kBarrier, 0, kRows * round, 0, 0);
    }
    return;
  }
  float d[8][4];
  for (int round = 0; round < 2; ++round) {
    if (kMistake != kNoWait) barrier_wait(kBarrier, kMistake == kWrongParity ? round ^ 1 : round);
    if (kStored) {
      if (thread < 8) store_shared_zeros(kTileB + static_cast<uint32_t>(thread) * 16);
      if (kMistake != kNoProxyFence) fence_async_proxy();
      named_sync(1, 128);
    }
    if (kMistake != kNoFence) products_fence();
    for (int k = 0; k < 4; ++k) {
      const uint64_t step = static_cast<uint64_t>(2 * k);
      multiply_shared<false, false>(d, matrix_descriptor(kTileA, 16, 1024) + step,
                                    matrix_descriptor(kTileB, 16, 1024) + step, k != 0, half_t{});
    }
    products_commit();
    if (kMistake != kNoProductWait) products_wait<0>();
    barrier_arrive(kBarrier + 8);
  }
  for (int t = 0; t < 8; ++t) {
    for (int e = 0; e < 4; ++e) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + e / 2 * 8;
      y[row * 64 + 8 * t + thread % 4 * 2 + e % 2] = d[t][e];
    }
  }
  if (kMistake == kNoProductWait) products_wait<0>();
}

void arrives_twice(float* y) {
  named_arrive(2, 64);
  named_arrive(2, 64);
  y[0] = 0.0f;
}
void arrival_left_over(float* y) {
  if (threadIdx.x < 32) named_arrive(3, 64);
  y[0] = 0.0f;
}
void too_many_registers(float*) { acquire_registers<256>(); }
void moved_registers(float*) {
  if (threadIdx.x < 128) release_registers<24>();
  if (threadIdx.x >= 128) acquire_registers<216>();
}
void different_products(float* y) {
  float d[8][4] = {};
  const uint32_t a[4] = {};
  store_shared_zeros(threadIdx.x % 128 * 16);
  fence_async_proxy();
  __syncthreads();
  products_fence();
  multiply_held<true>(d, a, matrix_descriptor(threadIdx.x / 32 == 1 ? 1024 : 0, 16, 0), false,
                      half_t{});
  products_commit();
  products_wait<0>();
  y[0] = d[0][0];
}

int failures = 0;

// `run` launches and says whether the values are right.
void expect(const char* what, bool right, const std::function<bool()>& run) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    simt::config = {seed, true, false, 1, 90, 0};
    const bool passed = run();
    if (passed == right) continue;
    ++failures;
    printf("%s: %s at seed %d: %s\n", what, passed ? "not noticed" : "reported",
           static_cast<int>(seed), simt::launch_error().c_str());
  }
}

template <class... P, class... A>
bool launched(void (*kernel)(P...), int threads, A... args) {
  return simt::launch(kernel, 1, threads, 2 * kBytes + 16, args...) == cudaSuccess;
}

}  // namespace

int main() {
  alignas(16) static simt::Half x[2 * kRows][64];  // small integers: sums are exact
  static float y[64 * 64], want[64 * 64];
  for (int i = 0; i < 2 * kRows; ++i) {
    for (int j = 0; j < 64; ++j)
      x[i][j] = simt::to_half(static_cast<float>((i * 7 + j * 3) % 9 - 4));
  }
  const auto fill = [&](bool stored) {
    for (int i = 0; i < 64; ++i) {
      for (int j = 0; j < 64; ++j) {
        float sum = 0.0f;
        for (int k = 0; k < 64; ++k)
          sum += simt::half_value(x[i][k]) * simt::half_value(x[kRows + j][k]);
        want[i * 64 + j] = stored && j == 0 ? 0.0f : sum;
      }
    }
  };
  CUtensorMap map = {};
  const cuuint64_t sizes[] = {64, 2 * kRows, 1, 1}, strides[] = {128, 16, 16};
  const cuuint32_t box[] = {64, kRows, 1, 1}, steps[] = {1, 1, 1, 1};
  cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, x, sizes, strides, box, steps,
                         CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  const auto run = [&](auto kernel) {
    return [&, kernel] {
      memset(static_cast<void*>(y), 0xff, sizeof y);
      return launched(kernel, kThreads, map, y) && memcmp(y, want, sizeof y) == 0;
    };
  };
  fill(false);
  expect("product", true, run(product<kNone>));
  expect("no wait for a copy", false, run(product<kNoWait>));
  expect("barrier not fenced", false, run(product<kNoInitFence>));
  expect("barrier not ready", false, run(product<kNoBlockBarrier>));
  expect("too many bytes expected", false, run(product<kTooManyBytes>));
  expect("wrong parity", false, run(product<kWrongParity>));
  expect("no fence before a product", false, run(product<kNoFence>));
  expect("no wait for a product", false, run(product<kNoProductWait>));
  expect("tile overwritten while it is read", false, run(product<kOverwrite>));
  fill(true);
  expect("stored by a thread", true, run(product<kNone, true>));
  expect("stored by a thread, not fenced", false, run(product<kNoProxyFence, true>));
  const auto simple = [&](void (*kernel)(float*), int threads) {
    return [=] { return launched(kernel, threads, static_cast<float*>(y)); };
  };
  expect("arrives twice", false, simple(arrives_twice, 32));
  expect("arrival left over", false, simple(arrival_left_over, 64));
  expect("registers that nobody gave back", false, simple(too_many_registers, 384));
  expect("registers moved", true, simple(moved_registers, 384));
  expect("products differ within a warpgroup", false, simple(different_products, 128));
  if (failures > 0) printf("%d failures\n", failures);
  return failures > 0 ? 1 : 0;
}
