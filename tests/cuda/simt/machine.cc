// Fibers, meeting points and the scheduler.
#include "machine.h"

#include <sys/mman.h>

#include <cstdio>
#include <map>

#include "hopper.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

Config config;
Stats stats;
Machine machine;
Uint3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStack = 256 * 1024;
constexpr size_t kGuard = 4096;
constexpr int kMaxThreads = 1024;

std::string where() {
  char text[96];
  const int id = machine.current != nullptr ? machine.current->id : 0;
  snprintf(text, sizeof text, "block %u warp %d lane %d: ", block_index.x, id / 32, id % 32);
  return text;
}

}  // namespace

uint32_t Machine::random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return static_cast<uint32_t>(random_state >> 32);
}

// ---- fibers: on x86-64 a switch is seven pushes and pops, elsewhere ucontext

#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* load);
asm(R"(.text
.local simt_switch
.type simt_switch,@function
simt_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
#else
ucontext_t contexts[kMaxThreads + 1];
ucontext_t& context_of(Fiber& f) { return contexts[&f == &machine.scheduler ? kMaxThreads : f.id]; }
#endif

namespace {

void switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool dying) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(dying ? nullptr : &from.sanitizer_stack, to.stack, to.stack_size);
#endif
#if defined(__x86_64__)
  simt_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&context_of(from), &context_of(to));
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.sanitizer_stack, nullptr, nullptr);
#endif
}

void to_scheduler(bool dying = false) { switch_to(*machine.current, machine.scheduler, dying); }

void complete_barrier() {
  Barrier& b = machine.barrier;
  if (b.arrived == 0 || b.arrived < machine.alive) return;
  machine.barrier_result = b.all;
  for (const int id : b.waiters) {
    machine.warps[static_cast<size_t>(id / 32)].clock.join(b.clock);
    wake(id);
  }
  b = Barrier();
}

void end_fiber() {
  Fiber& f = *machine.current;
  bool pending = !f.open_copies.empty();
  for (const auto& group : f.groups) pending = pending || !group.empty();
  if (pending) fail("thread ends with asynchronous copies that it never waited for");
  end_thread_runs();
  f.done = true;
  const uint32_t bit = 1u << machine.lane();
  machine.warp().runnable &= ~bit;
  machine.warp().alive &= ~bit;
  --machine.alive;
  complete_barrier();
  to_scheduler(true);
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  machine.scheduler.stack = const_cast<char*>(static_cast<const char*>(bottom));
  machine.scheduler.stack_size = size;
#endif
  machine.body();
  end_fiber();
}

void prepare_fiber(Fiber& f, int id, char* stack) {
  f.id = id;
  f.stack = stack;
  f.stack_size = kStack;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack + kGuard, kStack - kGuard);
#endif
#if defined(__x86_64__)
  void** top =
      reinterpret_cast<void**>(stack + kStack - 56);  // entered with rsp % 16 == 8, as after a call
  *top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.stack_pointer = top;
#else
  ucontext_t& context = context_of(f);
  getcontext(&context);
  context.uc_stack.ss_sp = stack + kGuard;
  context.uc_stack.ss_size = kStack - kGuard;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
#endif
}

}  // namespace

void fail(const std::string& message) {
  if (machine.current == nullptr) throw Error(message);
  if (machine.error.empty()) machine.error = where() + message;
  for (;;) to_scheduler();  // the scheduler sees the error and gives the block up
}

void sleep(const char* operation) {
  machine.current->waiting = operation;
  machine.warp().runnable &= ~(1u << machine.lane());
  to_scheduler();
}

void wake(int fiber) {
  machine.warps[static_cast<size_t>(fiber / 32)].runnable |= 1u << (fiber % 32);
  machine.fibers[static_cast<size_t>(fiber)].waiting = nullptr;
}

// ---- meeting points

void collective(uint32_t mask, const char* operation, void* mine,
                const std::function<void(void**)>& work) {
  Warp& w = machine.warp();
  const uint32_t bit = 1u << machine.lane();
  if ((mask & bit) == 0) fail(std::string(operation) + ": the calling lane is not in its own mask");
  if ((mask & ~w.alive) != 0)
    fail(std::string(operation) + ": the mask names lanes that have ended");
  if (w.arrived == 0) {
    w.operation = operation;
    w.mask = mask;
  } else if (w.operation != operation || w.mask != mask) {
    fail(std::string("divergence: a lane calls ") + operation +
         " while others of its warp wait in " + w.operation);
  }
  w.slots[machine.lane()] = mine;
  w.arrived |= bit;
  if (w.arrived != w.mask) return sleep(operation);
  w.arrived = 0;
  work(w.slots);
  const int first = machine.warp_index() * 32;
  for (uint32_t rest = mask & ~bit; rest != 0; rest &= rest - 1) wake(first + __builtin_ctz(rest));
}

bool block_barrier(bool predicate, const char* operation) {
  Barrier& b = machine.barrier;
  if (b.arrived != 0 && b.operation != operation) {
    fail(std::string("divergence: ") + operation + " meets " + b.operation + " at the barrier");
  }
  b.operation = operation;
  b.all = b.all && predicate;
  b.clock.join(machine.warp().clock);
  ++machine.warp().clock.at[machine.warp_index()];
  b.waiters.push_back(machine.current->id);
  ++b.arrived;
  if (b.arrived == machine.alive) {
    complete_barrier();
  } else {
    sleep(operation);
  }
  return machine.barrier_result;  // stays until all of these threads have come to the next barrier
}

// ---- scheduler

namespace {

enum class Order { kInOrder, kAnyWarp, kPriorities, kOneWarpFirst };

// Lanes that may go on. In every other schedule one thread of the block lags: it runs only when
// nothing else can.
uint32_t ready(const Warp& w) {
  const int lagging = machine.lagging - 32 * static_cast<int>(&w - machine.warps.data());
  return lagging < 0 || lagging >= 32 ? w.runnable : w.runnable & ~(1u << lagging);
}

Warp* pick_warp(Order order, Warp* last) {
  Warp* pick = nullptr;
  int count = 0;
  if (order == Order::kOneWarpFirst && last != nullptr && ready(*last) != 0) return last;
  for (Warp& w : machine.warps) {
    if (ready(w) == 0) continue;
    if (order == Order::kInOrder) return &w;
    if (order == Order::kAnyWarp) {
      if (machine.random() % static_cast<uint32_t>(++count) == 0) pick = &w;
    } else if (pick == nullptr || w.priority > pick->priority) {
      pick = &w;
    }
  }
  if (pick != nullptr && order != Order::kAnyWarp && machine.random() % 16 == 0)
    pick->priority = machine.random();
  return pick;
}

int pick_lane(Order order, uint32_t runnable) {
  if (order == Order::kInOrder) return __builtin_ctz(runnable);
  const uint32_t r = machine.random() % 32;
  const uint32_t rotated = r != 0 ? runnable >> r | runnable << (32 - r) : runnable;
  return (__builtin_ctz(rotated) + static_cast<int>(r)) % 32;
}

std::string deadlock() {
  std::map<std::string, int> waiting;
  for (const Fiber& f : machine.fibers) {
    if (!f.done) ++waiting[f.waiting != nullptr ? f.waiting : "nothing"];
  }
  std::string message = "DEADLOCK:";
  for (const auto& [operation, count] : waiting)
    message += " " + std::to_string(count) + " threads in " + operation;
  return message;
}

// The copy engine finishes a copy: the oldest one in the default schedule, any in the others.
void land_one() {
  const size_t count = machine.in_flight.size();
  const size_t index = config.seed == 0 ? 0 : machine.random() % count;
  const std::function<void()> landing = std::move(machine.in_flight[index]);
  machine.in_flight.erase(machine.in_flight.begin() + static_cast<std::ptrdiff_t>(index));
  machine.current = nullptr;
  landing();
}

void run_block() {
  const Order order = config.seed == 0 ? Order::kInOrder : static_cast<Order>(1 + config.seed % 3);
  Warp* last = nullptr;
  while (machine.error.empty()) {
    if (config.seed != 0 && !machine.in_flight.empty() && machine.random() % 8 == 0) land_one();
    Warp* pick = pick_warp(order, last);
    if (pick == nullptr && machine.alive > 0 && !machine.in_flight.empty()) {
      land_one();
      continue;
    }
    if (pick == nullptr && machine.lagging >= 0) {
      pick = &machine.warps[static_cast<size_t>(machine.lagging / 32)];
      if (pick->runnable == 0) pick = nullptr;
    }
    if (pick == nullptr && wake_idle_pollers()) continue;
    if (pick == nullptr) {
      if (machine.alive > 0) machine.error = where() + deadlock();
      if (machine.error.empty()) machine.error = hopper_complaint();
      return;
    }
    last = pick;
    const size_t first = static_cast<size_t>(pick - machine.warps.data()) * 32;
    Fiber& f =
        machine.fibers[first + static_cast<size_t>(pick_lane(
                                   order, ready(*pick) != 0 ? ready(*pick) : pick->runnable))];
    machine.current = &f;
    thread_index = {static_cast<unsigned>(f.id), 0, 0};
    switch_to(machine.scheduler, f, false);
  }
}

struct Memory {
  char* stacks;  // a guard page below each stack
  char* shared;  // a guard zone on both sides
  Memory() {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    stacks = static_cast<char*>(
        mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE, flags, -1, 0));
    for (int i = 0; i < kMaxThreads; ++i)
      mprotect(stacks + static_cast<size_t>(i) * kStack, kGuard, PROT_NONE);
    char* pool = static_cast<char*>(
        mmap(nullptr, kSharedMax + 2 * kGuard, PROT_READ | PROT_WRITE, flags, -1, 0));
    shared = pool + kGuard;
  }
};

void prepare_block(const Memory& memory, int threads) {
  const int warps = (threads + 31) / 32;
  machine.fibers.assign(static_cast<size_t>(threads), Fiber());
  machine.warps.assign(static_cast<size_t>(warps), Warp());
  machine.barrier = Barrier();
  machine.error.clear();
  machine.alive = threads;
  machine.lagging = config.seed % 2 != 0
                        ? static_cast<int>(machine.random() % static_cast<uint32_t>(threads))
                        : -1;
  machine.in_flight.clear();
  reset_hopper(threads);
  const size_t end = config.shared_base + machine.shared_bytes;
  if (config.races) machine.shadow.assign(end / 2 + 1, Shadow());
  memset(memory.shared, config.naive ? 0 : 0xff, end);  // NaN in every float type
  for (int w = 0; w < warps; ++w) {
    machine.warps[static_cast<size_t>(w)].clock.at[w] = 1;
    machine.warps[static_cast<size_t>(w)].priority = machine.random();
  }
  for (int i = 0; i < threads; ++i) {
    prepare_fiber(machine.fibers[static_cast<size_t>(i)], i,
                  memory.stacks + static_cast<size_t>(i) * kStack);
    Warp& w = machine.warps[static_cast<size_t>(i / 32)];
    w.runnable |= 1u << (i % 32);
    w.alive |= 1u << (i % 32);
  }
}

}  // namespace

void run_grid(unsigned blocks, int threads, size_t shared_bytes, std::function<void()> body) {
  static const Memory memory;
  if (threads < 1 || threads > kMaxThreads) throw Error("launch: bad block size");
  if (shared_bytes > kSharedMax) throw Error("launch: too much shared memory");
  machine.body = std::move(body);
  machine.shared = memory.shared;
  machine.shared_bytes = shared_bytes;
  machine.random_state = config.seed * 0x9E3779B97F4A7C15ull + 0x1234567;
  for (int i = 0; i < 8; ++i) machine.random();
  block_size = {static_cast<unsigned>(threads), 1, 1};
  grid_size = {blocks, 1, 1};
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; ++i) order[i] = i;
  for (unsigned i = blocks; config.seed != 0 && i > 1; --i)
    std::swap(order[i - 1], order[machine.random() % i]);
  begin_launch();
  for (const unsigned block : order) {
    block_index = {block, 0, 0};
    prepare_block(memory, threads);
    run_block();
    machine.current = nullptr;
    ++stats.blocks;
    if (!machine.error.empty()) throw Error(machine.error);
  }
  end_launch();
}

}  // namespace simt
