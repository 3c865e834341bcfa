// The parts of a Hopper multiprocessor that the older ones lack, for the model: mbarriers, the copy
// engine, named barriers, registers that move between warpgroups, and products of a warpgroup.
//
// What makes mistakes visible, besides what machine.h has:
//   - the target of a copy is NaN until the copy lands, some time after it was started; the bytes
//     become readable through the mbarrier alone
//   - products read their operands when they run, not when they are started, and run at the last
//     wait that allows it; until then their accumulators are NaN
//   - both proxies: what a thread stores must be fenced before the tensor cores read it
//   - descriptors are taken apart field by field, and the swizzle is applied to addresses
//   - runs of bytes to device memory read and write as late as they may, and must be ordered after
//     those of other blocks by a flag and a fence (runs.cc)
#ifndef SIMT_HOPPER_H_
#define SIMT_HOPPER_H_

#include <map>

#include "machine.h"
#include "tensor_map.h"

namespace simt {

struct Mbarrier {
  int arrivals = 0;     // per phase
  int missing = 0;      // of the current phase
  int64_t bytes = 0;    // expected and not yet arrived
  uint32_t phases = 0;  // that have ended
  int agent = 0;        // the copy engine, as far as it reports here
  uint32_t agent_time = 0;
  int init_warp = 0;
  uint32_t init_time = 0;
  bool fenced = false;  // visible to the copy engine
  Clock arrived;        // of everyone who has arrived, ever
  Clock ended;          // the same when the last phase ended
  std::vector<int> waiters;
};

struct NamedBarrier {
  int threads = 0;
  std::vector<int> arrived;
  std::vector<int> waiters;
  Clock clock;
};

// One product of a warp's 16 rows of the warpgroup's 64. Pointers: one per lane.
struct Product {
  float* d[32];
  const uint32_t* a[32];  // null: descriptor_a
  uint64_t descriptor_a, descriptor_b;
  int columns;
  bool transposed_a, transposed_b, bfloat16, add;

  bool held() const { return a[0] != nullptr; }
};

struct Products {
  bool fenced = false;
  std::vector<Product> open;
  std::vector<std::vector<Product>> groups;        // committed, oldest first
  std::map<float*, std::vector<float>> in_flight;  // accumulators, by the address of lane 0's
  uint64_t history = 0;                            // of descriptors
};

// A run of bytes from shared to device memory.
struct Run {
  char* target;
  uint32_t source;
  int bytes;
  bool adds;               // floats to those that are there
  int64_t number;          // within the launch
  std::vector<char> data;  // once it has been read
  bool holds_source;       // until a wait
  bool arrived;
};

struct Runs {  // of a thread
  std::vector<Run> open;
  std::vector<std::vector<Run>> groups;  // committed, oldest first
};

// A point in the time of a warp.
struct Moment {
  int warp;
  uint32_t time;
};

// A flag of another block that has been read.
struct Acquired {
  int release;
  Moment when;
  std::vector<Moment> fences;  // of the async proxy, since
};

// What a thread has last seen of a flag.
struct Poll {
  const int* flag;
  size_t value;
  int idle;  // how often it has looked again because nothing else could run
};

struct Hopper {
  std::map<uint32_t, Mbarrier> barriers;
  NamedBarrier named[16];
  std::vector<Products> products;  // per warp
  std::vector<int> registers;      // per warp, of each thread
  int free_registers = 0;
  std::vector<int> register_waiters;
  std::map<int, Runs> runs;   // by thread
  std::map<int, Poll> polls;  // by thread
  std::vector<int> pollers;   // threads that wait for a flag
  std::vector<Acquired> acquired;
};
extern Hopper hopper;

void reset_hopper(int threads);
// What is wrong with a block that has ended; "" if nothing.
std::string hopper_complaint();

Mbarrier& mbarrier_at(uint32_t address, const char* what);
void mbarrier_init(uint32_t address, int arrivals);
void mbarrier_fence();
void mbarrier_arrive(uint32_t address, int64_t bytes, const char* what);
void mbarrier_wait(uint32_t address, int parity);

void named_barrier(int id, int threads, bool wait);

void copy_box(uint32_t target, const CUtensorMap& map, uint32_t barrier, const int (&at)[4]);
void copy_run(uint32_t target, const void* source, uint32_t barrier, int bytes);
void fence_async();

// Runs and flags. A launch is what blocks can wait for each other in.
void begin_launch();
void end_launch();
void check_run(const void* memory, uint32_t shared, int bytes, const char* what);
void start_run(void* target, uint32_t source, int bytes, bool adds);
void commit_runs();
void wait_for_runs(size_t groups, bool read_only);
void end_thread_runs();
int load_acquire(const int* flag);
void store_release(int* flag, int value);
void fence_async_global();
// Lets threads that wait for a flag look again; false if there are none.
bool wake_idle_pollers();

void set_registers(int count, bool release);

// All lanes of a warp call these together.
void product(float* d, const uint32_t* a, uint64_t descriptor_a, uint64_t descriptor_b,
             const Product& shape);
void product_fence();
void product_commit();
void product_wait(size_t groups);

}  // namespace simt

#endif  // SIMT_HOPPER_H_
