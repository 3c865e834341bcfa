// A model of one GPU multiprocessor on the CPU: runs the thread blocks of a kernel one after
// another, every CUDA thread of a block a fiber of its own, switched only where threads wait for
// each other.
//
// What makes mistakes visible:
//   - the scheduler is seeded: which warp and lane goes on, and when copies land, is drawn
//   - shared memory starts as NaN, and the target of a copy is NaN again until the copy lands
//   - shared memory accesses are checked for bounds, alignment and races (vector clocks per warp)
//   - divergence inside a warp-wide operation, barriers that not all threads reach, and deadlocks
//     end the run with a message
//
// What it cannot show: speed, the PTX strings, what the compiler makes of the code, the rounding
// inside tensor cores, weak memory ordering, and races between blocks other than those of runs
// that flags must order (runs.cc).
#ifndef SIMT_MACHINE_H_
#define SIMT_MACHINE_H_

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "types.h"

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Config {
  uint64_t seed = 0;  // 0: every warp and lane in order; copies land as late as they may
  bool races = true;  // check every access to shared memory against the vector clocks
  bool naive =
      false;  // copies land at once, nothing is poisoned: only to show what that would miss
  int multiprocessors = 1;   // what the kernels are told
  int capability = 80;       // ten times: 75 is Turing, 90 is Hopper (hopper.h)
  uint32_t shared_base = 0;  // where the block's shared memory starts
};

// Counted over all kernels since the last reset.
struct Stats {
  int64_t multiplies = 0;      // 16x8x16 products, one per warp
  int64_t async_copies = 0;    // of 16 bytes
  int64_t bank_conflicts = 0;  // of ldmatrix: rows of a matrix in a bank group already taken
  int64_t blocks = 0;
  int64_t boxes = 0;          // copies by the copy engine
  int64_t wide_products = 0;  // of a warpgroup, one per warp
  int64_t runs = 0;           // of plain bytes, by the copy engine
};

extern Config config;
extern Stats stats;

constexpr int kMaxWarps = 32;
constexpr int kMaxAgents = 80;  // warps, then one writer per mbarrier: the copy engine
constexpr size_t kSharedMax = 227 * 1024;

// Logical time of every agent, as far as the owner has synchronised with it.
struct Clock {
  uint32_t at[kMaxAgents] = {};
  void join(const Clock& other) {
    for (int i = 0; i < kMaxAgents; ++i) at[i] = std::max(at[i], other.at[i]);
  }
};

// One copy of 16 bytes to shared memory, `bytes` of them from global memory, the rest zeros.
struct Copy {
  uint32_t target;
  const char* source;
  int bytes;
  bool landed;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  size_t stack_size = 0;
  void* sanitizer_stack =
      nullptr;  // what AddressSanitizer remembers while the fiber is switched out
  int id = 0;
  bool done = false;
  const char* waiting = nullptr;          // name of the operation that it waits in
  std::vector<Copy> open_copies;          // not yet committed
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<uint32_t> unfenced;         // 2-byte words stored since the last fence_async_proxy
};

struct Warp {
  uint32_t runnable = 0, alive = 0;  // lanes
  uint32_t arrived = 0, mask = 0;    // of the collective operation in progress
  const char* operation = nullptr;
  void* slots[32] = {};
  Clock clock;
  uint32_t priority = 0;
};

// The one block-wide barrier.
struct Barrier {
  int arrived = 0;
  bool all = true;  // conjunction of the predicates handed in
  const char* operation = nullptr;
  std::vector<int> waiters;
  Clock clock;
};

// Who touched two bytes of shared memory last.
struct Shadow {
  int writer = 0;
  uint32_t written = 0;           // time of the writer; kPending while a copy is in flight
  bool unfenced = false;          // by a thread, and not yet visible to the async proxy
  int runs = 0;                   // that may still be reading
  uint32_t read[kMaxWarps] = {};  // time of the last read by each warp
};
constexpr uint32_t kPending = ~0u;

// The block that is running.
struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Shadow> shadow;
  Barrier barrier;
  std::function<void()> body;
  Fiber* current = nullptr;
  Fiber scheduler;
  int alive = 0;
  int lagging = -1;  // thread that runs only when no other can; -1: none
  char* shared = nullptr;
  size_t shared_bytes = 0;
  bool barrier_result = false;
  std::vector<std::function<void()>> in_flight;  // copies of the copy engine: what landing does
  std::string error;
  uint64_t random_state = 1;

  uint32_t random();
  int lane() const { return current->id % 32; }
  int warp_index() const { return current->id / 32; }
  Warp& warp() { return warps[static_cast<size_t>(warp_index())]; }
};
extern Machine machine;

extern Uint3 thread_index, block_index, block_size, grid_size;

// Ends the block with a message; returns to no caller.
[[noreturn]] void fail(const std::string& message);

// Puts the current fiber to sleep until another one wakes it.
void sleep(const char* operation);
void wake(int fiber);

// A shared address, checked for `bytes` at `alignment`.
char* shared_at(uint32_t address, size_t bytes, size_t alignment, const char* what);
// `async`: by a unit that sees through the async proxy.
void note_read(uint32_t address, int bytes, const char* what, bool async = false);
// `agent`: who writes; -1 is the current warp.
void note_write(uint32_t address, int bytes, const char* what, bool pending = false,
                int agent = -1);
void note_landed(uint32_t address, int bytes);
// A run of bytes to device memory that `starts` to read these, or has read them.
void note_run(uint32_t address, int bytes, bool starts);
void note_landed(uint32_t address, int bytes, int agent, uint32_t time);

// All lanes of `mask` meet; the last one to come runs `work` on the slots of all, then everyone
// goes on.
void collective(uint32_t mask, const char* operation, void* mine,
                const std::function<void(void**)>& work);

// All threads of the block that have not ended meet; true when every predicate was.
bool block_barrier(bool predicate, const char* operation);

void run_grid(unsigned blocks, int threads, size_t shared_bytes, std::function<void()> body);

}  // namespace simt

#define threadIdx simt::thread_index
#define blockIdx simt::block_index
#define blockDim simt::block_size
#define gridDim simt::grid_size

#endif  // SIMT_MACHINE_H_
