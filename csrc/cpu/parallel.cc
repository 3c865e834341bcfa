#include "parallel.h"

#include <omp.h>
#include <pthread.h>

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

// A child of fork() has no thread but the one that called it, yet OpenMP would wait there for those
// that it remembers. So the child of a process that has started threads here goes on with one.
std::atomic<bool> threads_started{false}, threads_lost{false};
[[maybe_unused]] const int at_fork =
    pthread_atfork(nullptr, nullptr, [] { threads_lost.store(threads_started.load()); });

// The indices of a call, handed out in order.
class Queue {
 public:
  Queue(int64_t count, int64_t together, int team)
      : count_(count), together_(together), parts_(int64_t{2} * team) {}

  struct Range {
    int64_t begin, end;
  };
  // Up to `together` indices, fewer towards the end, so that the threads finish alike; none: empty.
  Range take() {
    int64_t begin = next_.load(std::memory_order_relaxed);
    while (begin < count_) {
      const int64_t size = std::clamp<int64_t>((count_ - begin) / parts_, 1, together_);
      if (next_.compare_exchange_weak(begin, begin + size, std::memory_order_relaxed))
        return {begin, begin + size};
    }
    return {count_, count_};
  }
  bool empty() const { return next_.load(std::memory_order_relaxed) >= count_; }

 private:
  const int64_t count_, together_, parts_;
  std::atomic<int64_t> next_{0};
};

}  // namespace

int32_t run_together(int64_t count, int64_t together, int threads, double flops,
                     size_t scratch_floats, WorkRun run, const void* context) noexcept {
  const int team = static_cast<int>(std::min<int64_t>(threads, count));
  Queue queue(count, together, team);
  std::atomic<bool> failed{false};
  auto work = [&] {
    float* scratch = thread_scratch.reserve(scratch_floats);
    if (scratch == nullptr) {
      failed.store(true, std::memory_order_relaxed);
      return;
    }
    for (Queue::Range r = queue.take(); r.begin < r.end; r = queue.take()) {
      run(context, r.begin, r.end, scratch);
    }
  };
  if (team <= 1 || flops < kSerialFlops || threads_lost.load(std::memory_order_relaxed)) {
    work();
  } else {
    threads_started.store(true, std::memory_order_relaxed);
#pragma omp parallel num_threads(team)
    work();
  }
  // A thread without scratch is no harm as long as the others finished the queue.
  return failed.load() && !queue.empty() ? ALIBI_OUT_OF_MEMORY : ALIBI_OK;
}

int32_t run_items(int64_t count, int threads, double flops, size_t scratch_floats, WorkItem item,
                  const void* context) noexcept {
  struct Each {
    WorkItem item;
    const void* context;
  };
  const Each each{item, context};
  const WorkRun run = [](const void* c, int64_t begin, int64_t end, float* scratch) {
    const auto& e = *static_cast<const Each*>(c);
    for (int64_t i = begin; i < end; ++i) e.item(e.context, i, scratch);
  };
  return run_together(count, 1, threads, flops, scratch_floats, run, &each);
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
