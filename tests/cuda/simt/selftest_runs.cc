// The same as selftest_hopper.cc for runs of bytes and for blocks that wait for each other.
#include <cstdio>
#include <functional>
#include <string>

#include "simt/hopper_device.h"
#include "simt/runtime.h"

using namespace alibi::cuda;

namespace {

constexpr int kThreads = 64, kBlocks = 4;
constexpr int kFloats = 64, kBytes = kFloats * 4;
constexpr uint32_t kTerms = 0, kSum = kBytes, kBarrier = 2 * kBytes;
constexpr int kShared = 2 * kBytes + 16;

enum Mistake {
  kNone,
  kNoProxyFence,
  kNoBlockBarrier,
  kUnwritten,
  kNoFlag,
  kFlagOfTheOneBefore,
  kFlagOfALaterBlock,
  kNoGlobalFence,
  kNotCommitted,
  kNoWait,
  kReadWaitOnly,
  kWaitAfterFlag,
  kOtherThreadSetsFlag,
  kOverwrite,
  kTwice,
  kReadBackTooEarly,
};

struct Device {
  float* sums;
  int *flag, *counter;
  float* out;
};

// Blocks add terms to sums, one after another in the order of their tickets; the last one copies
// the sums back. What a sum is depends on the order.
float term(int ticket, int i) {
  constexpr float kTerm[kBlocks] = {1.0f, 0x1p25f, 1.0f, -0x1p25f};
  return kTerm[ticket] * static_cast<float>(i + 1);
}

template <Mistake kMistake>
void sum_in_order(const Device device) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    store_shared(kSum, static_cast<uint32_t>(take_ticket(device.counter)));
    barrier_init(kBarrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
  float word;
  load_shared(word, kSum);
  const int ticket = __float_as_int(word);
  if (kMistake != kUnwritten || thread != 40)
    store_shared(kTerms + static_cast<uint32_t>(thread) * 4, term(ticket, thread));
  if (kMistake != kNoProxyFence) fence_async_proxy();
  if (kMistake != kNoBlockBarrier) __syncthreads();
  if (kMistake == kOtherThreadSetsFlag && thread == 32) store_release(device.flag, ticket + 1);
  if (thread != 0) return;

  const int turn = kMistake == kFlagOfTheOneBefore  ? std::max(ticket - 1, 0)
                   : kMistake == kFlagOfALaterBlock ? kBlocks - 1 - ticket
                                                    : ticket;
  while (kMistake != kNoFlag && load_acquire(device.flag) < turn) {
  }
  if (kMistake != kNoGlobalFence) fence_async_proxy_global();
  add_run(device.sums, kTerms, kBytes);
  if (kMistake == kTwice) add_run(device.sums + 4, kTerms, 16);
  if (kMistake != kNotCommitted) runs_commit();
  if (kMistake == kOverwrite) store_shared(kTerms + 8, 0.0f);
  if (kMistake == kReadWaitOnly) runs_wait_read<0>();
  if (kMistake == kWaitAfterFlag) store_release(device.flag, ticket + 1);
  if (kMistake != kNoWait && kMistake != kReadWaitOnly) runs_wait<0>();
  if (kMistake != kWaitAfterFlag && kMistake != kOtherThreadSetsFlag)
    store_release(device.flag, ticket + 1);
  if (ticket + 1 < kBlocks) return;

  if (kMistake == kReadBackTooEarly) {
    store_run(device.sums + 8, kTerms + 32, 16);
    runs_commit();
    runs_wait_read<0>();
  }
  barrier_arrive_expect(kBarrier, kBytes);
  fence_async_proxy();
  copy_run(kSum, device.sums, kBarrier, kBytes);
  barrier_wait(kBarrier, 0);
  for (int i = 0; i < kFloats; ++i) load_shared(device.out[i], kSum + static_cast<uint32_t>(i) * 4);
}

// Thread 32 sets the flag that thread 0 waits for, in one block.
template <bool kSet>
void flag_in_a_block(const Device device) {
  if (threadIdx.x == 32) {
    store_shared(kTerms, 3.0f);
    if (kSet) store_release(device.flag, 7);
  }
  if (threadIdx.x != 0) return;
  while (load_acquire(device.flag) != 7) {
  }
  load_shared(device.out[0], kTerms);
}

// Two halves of one flag's bytes, each written by a run of its own; never waited for beyond reading.
template <int kWords, int kBytesOff>
void stores(const Device device) {
  store_shared(threadIdx.x * 4, static_cast<float>(threadIdx.x));
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int half = 0; half < 2; ++half) {
    store_run(device.sums + half * 32, static_cast<uint32_t>(half * 128 + kBytesOff), kWords * 4);
    runs_commit();
  }
  runs_wait_read<0>();
}

int failures = 0;

// `run` launches and says whether the values are right.
void expect(const char* what, bool right, const std::function<bool()>& run) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    simt::config = {seed, true, false, 1, 90, 0};
    const bool passed = run();
    if (passed == right) continue;
    ++failures;
    printf("%s: %s at seed %d: %s\n", what, passed ? "not noticed" : "reported",
           static_cast<int>(seed), simt::launch_error().c_str());
  }
}
// A mistake that a schedule may hide; some must not.
void expect_sometimes(const char* what, const std::function<bool()>& run) {
  for (uint64_t seed = 1; seed < 8; ++seed) {
    simt::config = {seed, true, false, 1, 90, 0};
    if (!run()) return;
  }
  ++failures;
  printf("%s: not noticed\n", what);
}

}  // namespace

int main() {
  alignas(16) static float sums[kFloats], out[kFloats];
  static int flag, counter;
  const auto run = [&](auto kernel, unsigned blocks) {
    std::fill_n(sums, kFloats, 0.0f);
    std::fill_n(out, kFloats, -1.0f);
    flag = counter = 0;
    const Device device = {sums, &flag, &counter, out};
    return simt::launch(kernel, blocks, kThreads, kShared, device) == cudaSuccess;
  };
  const auto in_order = [&](auto kernel) {
    return [&, kernel] {
      bool right = run(kernel, kBlocks);
      for (int i = 0; i < kFloats; ++i) {
        float sum = 0.0f;
        for (int ticket = 0; ticket < kBlocks; ++ticket) sum += term(ticket, i);
        right = right && out[i] == sum && sums[i] == sum;
      }
      return right;
    };
  };
  expect("sums in order", true, in_order(sum_in_order<kNone>));
  expect("terms not fenced", false, in_order(sum_in_order<kNoProxyFence>));
  expect("terms without a barrier", false, in_order(sum_in_order<kNoBlockBarrier>));
  expect("a term that nobody stored", false, in_order(sum_in_order<kUnwritten>));
  expect("no wait for the flag", false, in_order(sum_in_order<kNoFlag>));
  expect_sometimes("the block before is not waited for",
                   in_order(sum_in_order<kFlagOfTheOneBefore>));
  expect("a later block is waited for", false, in_order(sum_in_order<kFlagOfALaterBlock>));
  expect("no proxy fence behind the flag", false, in_order(sum_in_order<kNoGlobalFence>));
  expect("runs not committed", false, in_order(sum_in_order<kNotCommitted>));
  expect("no wait for runs", false, in_order(sum_in_order<kNoWait>));
  expect("sources waited for, not sums", false, in_order(sum_in_order<kReadWaitOnly>));
  expect("flag before the wait", false, in_order(sum_in_order<kWaitAfterFlag>));
  expect("flag by another thread", false, in_order(sum_in_order<kOtherThreadSetsFlag>));
  expect("source overwritten while it is read", false, in_order(sum_in_order<kOverwrite>));
  expect("two runs to one place", false, in_order(sum_in_order<kTwice>));
  expect("read back while a run may be writing", false, in_order(sum_in_order<kReadBackTooEarly>));

  expect("flag in a block", true, [&] { return run(flag_in_a_block<true>, 1) && out[0] == 3.0f; });
  expect("flag that nobody sets", false, [&] { return run(flag_in_a_block<false>, 1); });
  expect("stores", true, [&] {
    bool right = run(stores<32, 0>, 1);
    for (int i = 0; i < kFloats; ++i) right = right && sums[i] == static_cast<float>(i);
    return right;
  });
  expect("a run of 8 bytes", false, [&] { return run(stores<2, 0>, 1); });
  expect("a run from a place that is not aligned", false, [&] { return run(stores<28, 8>, 1); });
  expect("a run from outside shared memory", false, [&] { return run(stores<32, 512>, 1); });
  if (failures > 0) printf("%d failures\n", failures);
  return failures > 0 ? 1 : 0;
}
