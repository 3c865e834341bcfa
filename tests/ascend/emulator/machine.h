// A model of the AI Cores ("blocks") of an Atlas A2: each a cube core (AIC) and two vector cores
// (AIV) with their pipes and memories.
//
// A kernel compiled against kernel_operator.h of this folder runs as three scalar programs
// (fibers) per block. What they call is not executed but queued: every instruction goes to the queue of its
// pipe, and a scheduler executes the heads of the queues in an order drawn from a seed. Only what
// orders instructions on the device orders them here: SetFlag/WaitFlag, PipeBarrier, cross-core
// flags. So a missing synchronisation changes results, or hangs.
//
// A lucky order can still hide one. Therefore every access is also checked by a happens-before rule
// that does not depend on the order drawn. Each pipe has a vector clock: which instructions of
// which pipes it knows to be complete. SetFlag publishes the clock of its pipe together with
// everything issued there before, WaitFlag and PipeBarrier absorb. An access to 32 bytes that
// another instruction wrote (or that this one overwrites while another may still read) without that
// knowledge is an error, in whatever order the two happened to run.
//
// Blocks meet only in mode 0 of the cross-core flags, where every vector core waits for all of
// them. So a block runs until nothing in it can, then another. A meeting leaves behind what each
// block had completed when it set its flags; a block may read workspace of another block only behind
// a meeting that covers what the other wrote there, which from then on is not written again.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_MACHINE_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_MACHINE_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace emu {

enum Pipe { kS, kV, kM, kMte1, kMte2, kMte3, kFix, kPipes };
enum Core { kAic, kAiv0, kAiv1, kCores };
constexpr int kAgents = kCores * kPipes;
constexpr int kEvents = 8;       // event ids per pair of pipes
constexpr int kCrossFlags = 16;  // cross-core flags per core
constexpr int kCrossMax = 15;    // largest value of a cross-core counter
constexpr uint32_t kGranule = 32;
extern const char* const kCoreNames[kCores];
extern const char* const kPipeNames[kPipes];

// Broken rule of the device, or a detected race.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Which instructions are known to be complete: entry a = how many of the first instructions of
// agent a.
struct Clock {
  std::array<uint32_t, kAgents> seen{};
  void join(const Clock& other);
};

// History of one 32-byte granule.
struct Shadow {
  int16_t writer = -1;  // agent of the last write, -1: never written
  bool shared = false;  // global memory: another block than its owner has read it
  int32_t owner = -1;   // the block that used it first
  uint32_t write = 0;   // and its instruction
  std::array<uint32_t, kAgents> reads{};
};

// A local memory (UB, L1, L0A, L0B, L0C), poisoned with NaN at the start of every block.
struct Memory {
  std::string name;
  uint32_t align = 32;  // of an instruction's operand
  std::vector<uint8_t> bytes;
  std::vector<Shadow> shadow;
  uint32_t allocated = 0;  // by TPipe::InitBuffer
  void reset();
};
enum Local { kUb, kL1, kL0a, kL0b, kL0c, kLocals };

// Device memory. Inputs are never written; an output element is written exactly once and never
// read; a piece of workspace belongs to the block that touched it first and is checked for races.
enum class Use { kInput, kOutput, kWorkspace };
struct Region {
  std::string name;
  Use use;
  uint8_t* base;
  uint64_t size;
  std::vector<Shadow> shadow;    // workspace
  std::vector<uint8_t> written;  // output, per byte
};

// Part of an instruction's footprint: bytes [begin, end) of a local memory or of a region.
struct Span {
  Memory* memory;  // null: global
  Region* region;
  uint64_t begin;
  uint64_t end;
  bool write;
};

enum class Kind { kCompute, kSetFlag, kWaitFlag, kBarrier, kCrossSet };
struct Instruction {
  const char* name;
  Kind kind = Kind::kCompute;
  std::vector<Span> spans;
  std::function<void()> run;
  int event = 0;  // SetFlag, WaitFlag: index into Machine::flags; CrossSet: flag id
  int mode = 0;   // CrossSet
  bool accumulates =
      false;        // Mmad onto L0C behind a large enough Mmad: the hardware orders the two itself
  Clock issue;      // what the scalar program knew when it issued this
  int meeting = 0;  // and how many meetings it had passed
};

struct CoreState {
  std::array<Memory, kLocals> local;
  std::array<std::deque<Instruction>, kPipes> queue;
  std::map<int, Clock> flags;    // set flags of this core: (source, destination, event)
  std::map<int, int> unmatched;  // per flag: sets minus waits in program order
  std::array<std::deque<Clock>, kCrossFlags> cross;
  std::deque<int> meeting_flags;  // flags of mode 0 that have arrived, in order
  int meeting = 0;                // meetings that the scalar program has waited for
  bool atomic_add = false;        // SetAtomicAdd: stores to global memory add
  bool finished = false;
  std::function<bool()> blocked_on;  // scalar program waits until this holds; empty: it runs
};

// One AI Core while it runs.
struct Fibers;
struct Block {
  std::array<CoreState, kCores> core;
  std::array<Clock, kAgents> clock;
  std::array<uint32_t, kAgents> executed{};
  std::array<int, kAgents> meeting{};  // the last one that each agent knows of
  std::array<std::array<std::deque<Clock>, kCrossFlags>, kCores>
      pending;                                    // modes 1 and 2: sets waiting for the other AIV
  std::array<std::deque<Clock>, kCores> arrived;  // mode 0: sets waiting for the other AIVs
  std::shared_ptr<Fibers> fibers;
};

struct Counts {  // of one launch
  uint64_t instructions = 0;
  uint64_t vector_elements = 0;  // elements that the vector pipes touched: passes over a tile
  uint64_t macs = 0;
};

class Machine {
 public:
  // Runs `kernel` on `blocks` AI Cores, in an order drawn from `seed`; throws Fault.
  void launch(int blocks, uint32_t seed, const std::function<void()>& kernel);
  Region& add_region(const char* name, Use use, void* base, uint64_t size);
  void clear_regions() { regions_.clear(); }
  void check_outputs_complete() const;

  // Called by the scalar programs.
  int core() const { return core_; }
  int block() const { return block_; }
  int blocks() const { return blocks_; }
  CoreState& here() { return at_->core[core_]; }
  void issue(int pipe, Instruction instruction);
  void wait_cross(int flag);
  void wait_scalar(int source, int event);  // WaitFlag<..._S>
  void set_scalar(int destination, int event);
  void barrier_all();
  Region& region_of(const void* address, uint64_t size, const char* what);
  static int flag_index(int source, int destination, int event) {
    return (source * kPipes + destination) * kEvents + event;
  }
  Counts counts;

 private:
  friend void fiber_main();
  void run_block();
  void start_block(const std::function<void()>& kernel);
  void start_core(int core);
  void block_until(std::function<bool()> ready);
  bool head_ready(int core, int pipe) const;
  void step(int core, int pipe);
  void access(int agent, const Span& span, const Instruction& instruction);
  void touch(int agent, Shadow& shadow, bool write, bool accumulates, const char* where,
             const char* name);
  void cross_set(int core, int mode, int flag, const Clock& token);
  void meet(int core, int flag, const Clock& token);
  bool shared(Shadow& shadow, int agent, bool write, const char* where, const char* name);
  void check_drained() const;

  std::vector<std::unique_ptr<Block>> pool_;  // kept from launch to launch
  Block* at_ = nullptr;                       // pool_[block_]
  std::vector<std::vector<Clock>> meetings_;  // per meeting and block: what was complete
  int meeting_flag_ = -1;                     // of the meeting that is gathering
  std::map<const uint8_t*, std::unique_ptr<Region>> regions_;
  std::mt19937 random_;
  int core_ = 0;
  int block_ = 0;
  int blocks_ = 1;
};

// The machine that the calling kernel runs on.
Machine& machine();

}  // namespace emu

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_MACHINE_H_
