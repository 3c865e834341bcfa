// Threads and scratch memory: the only place that knows OpenMP. Compiled once, without any
// instruction-set flags.
#ifndef ALIBI_CPU_PARALLEL_H_
#define ALIBI_CPU_PARALLEL_H_

#include <stddef.h>
#include <stdint.h>

namespace alibi::cpu {

// One piece of work. `scratch` belongs to the running thread, is 64-byte aligned and holds what an
// earlier item left there.
using WorkItem = void (*)(const void* context, int64_t index, float* scratch);
// Some neighbouring pieces, [begin, end).
using WorkRun = void (*)(const void* context, int64_t begin, int64_t end, float* scratch);

// Runs run(context, begin, end, scratch) over [0, count), handing out indices in order to `threads`
// threads, up to `together` at once while there is plenty for all; on the calling thread alone when
// the work is small (`flops`), because waking a second thread costs more than it saves, and in a
// process that was forked from one with threads. Items write disjoint memory, so results do not
// depend on the number of threads. Returns ALIBI_OK, or ALIBI_OUT_OF_MEMORY (then some items have
// not run).
int32_t run_together(int64_t count, int64_t together, int threads, double flops,
                     size_t scratch_floats, WorkRun run, const void* context) noexcept;

// The same one by one.
int32_t run_items(int64_t count, int threads, double flops, size_t scratch_floats, WorkItem item,
                  const void* context) noexcept;

// The number of threads OpenMP would use by itself.
int default_threads() noexcept;

// Memory of one call, 64-byte aligned, uninitialised. data() is null when the allocation failed.
class Buffer {
 public:
  explicit Buffer(size_t bytes) noexcept;
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }

 private:
  void* data_;
};

// Writes the head indices 0..heads-1 to `order`, gentlest slope first: with pruning those are the
// longest work.
void order_heads(const float* slopes, int64_t heads, int32_t* order) noexcept;

}  // namespace alibi::cpu

#endif  // ALIBI_CPU_PARALLEL_H_
