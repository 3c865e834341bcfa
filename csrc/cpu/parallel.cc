#include "parallel.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <numeric>

#include "../alibi_attention.h"

namespace alibi::cpu {
namespace {

constexpr size_t kAlignment = 64;
constexpr double kSerialFlops = 1e6;

void* allocate(size_t bytes) {
  const size_t rounded = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  return rounded < bytes ? nullptr : std::aligned_alloc(kAlignment, rounded);
}

// Scratch that a thread keeps between calls, grown on demand and freed when the thread ends.
class ThreadScratch {
 public:
  ~ThreadScratch() { std::free(data_); }
  float* reserve(size_t floats) {
    if (data_ == nullptr || floats > size_) {
      std::free(data_);
      data_ = static_cast<float*>(allocate(floats * sizeof(float)));
      size_ = data_ == nullptr ? 0 : floats;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t size_ = 0;
};

thread_local ThreadScratch thread_scratch;

}  // namespace

int32_t run_items(int64_t count, int threads, double flops, size_t scratch_floats, WorkItem item,
                  const void* context) noexcept {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    float* scratch = thread_scratch.reserve(scratch_floats);
    if (scratch == nullptr) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      item(context, i, scratch);
    }
  };
  const int team = static_cast<int>(std::min<int64_t>(threads, count));
  if (team <= 1 || flops < kSerialFlops) {
    work();
  } else {
#pragma omp parallel num_threads(team)
    work();
  }
  // A thread without scratch is no harm as long as the others finished the queue.
  return failed.load() && next.load() < count ? ALIBI_OUT_OF_MEMORY : ALIBI_OK;
}

int default_threads() noexcept { return omp_get_max_threads(); }

Buffer::Buffer(size_t bytes) noexcept : data_(allocate(bytes)) {}
Buffer::~Buffer() { std::free(data_); }

void order_heads(const float* slopes, int64_t heads, int32_t* order) noexcept {
  std::iota(order, order + heads, 0);
  std::sort(order, order + heads, [slopes](int32_t a, int32_t b) {
    // NaN slopes would break the ordering that std::sort relies on; they go last.
    const bool a_nan = slopes[a] != slopes[a], b_nan = slopes[b] != slopes[b];
    if (a_nan || b_nan) return a_nan == b_nan ? a < b : b_nan;
    return slopes[a] < slopes[b] || (slopes[a] == slopes[b] && a < b);
  });
}

}  // namespace alibi::cpu
