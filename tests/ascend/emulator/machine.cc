#include "machine.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace emu {
namespace {

constexpr size_t kStackBytes = 1 << 20;
struct LocalSpec {
  const char* name;
  uint32_t bytes;
  uint32_t align;
  bool cube;  // lives on the AIC, otherwise on an AIV
};
constexpr LocalSpec kLocalSpecs[kLocals] = {{"UB", 192 << 10, 32, false},
                                            {"L1", 512 << 10, 32, true},
                                            {"L0A", 64 << 10, 512, true},
                                            {"L0B", 64 << 10, 512, true},
                                            {"L0C", 128 << 10, 1024, true}};

int agent_of(int core, int pipe) { return core * kPipes + pipe; }

}  // namespace

const char* const kCoreNames[kCores] = {"AIC", "AIV0", "AIV1"};
const char* const kPipeNames[kPipes] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX"};

void fail(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  throw Fault(text);
}

void Clock::join(const Clock& other) {
  for (int i = 0; i < kAgents; ++i) seen[i] = std::max(seen[i], other.seen[i]);
}

struct Fibers {
  ucontext_t scheduler;
  std::array<ucontext_t, kCores> fiber;
  std::array<std::vector<char>, kCores> stack;
  std::function<void()> kernel;
  std::exception_ptr error;
};

Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

void fiber_main() {
  Machine& m = machine();
  const int core = m.core_;
  try {
    m.at_->fibers->kernel();
  } catch (...) {
    m.at_->fibers->error = std::current_exception();
  }
  m.at_->core[core].finished = true;
  swapcontext(&m.at_->fibers->fiber[core], &m.at_->fibers->scheduler);
}

// Blocks take turns, each until nothing in it can go on. Whole rounds without an action end it:
// either all have finished, or check_drained() says what hangs.
void Machine::launch(int blocks, uint32_t seed, const std::function<void()>& kernel) {
  random_.seed(seed);
  blocks_ = blocks;
  counts = Counts();
  meetings_.assign(1, std::vector<Clock>(blocks));  // meeting 0: the start, nothing complete
  meeting_flag_ = -1;
  while (static_cast<int>(pool_.size()) < blocks) pool_.push_back(std::make_unique<Block>());
  std::vector<int> order(blocks);
  for (int b = 0; b < blocks; ++b) {
    order[b] = block_ = b;
    at_ = pool_[b].get();
    start_block(kernel);
  }
  for (size_t before = 0; before != meetings_.size();) {  // on to the next meeting
    before = meetings_.size();
    std::shuffle(order.begin(), order.end(), random_);
    for (const int b : order) {
      block_ = b;
      at_ = pool_[b].get();
      run_block();
    }
  }
  for (block_ = 0; block_ < blocks; ++block_) {
    at_ = pool_[block_].get();
    check_drained();
  }
  check_outputs_complete();
}

void Machine::start_block(const std::function<void()>& kernel) {
  at_->fibers = std::make_shared<Fibers>();
  at_->fibers->kernel = kernel;
  at_->clock = {};
  at_->executed = {};
  at_->meeting = {};
  at_->pending = {};
  at_->arrived = {};
  for (int core = 0; core < kCores; ++core) start_core(core);
}

void Machine::start_core(int core) {
  CoreState& state = at_->core[core];
  state.queue = {};
  state.flags.clear();
  state.unmatched.clear();
  state.cross = {};
  state.meeting_flags.clear();
  state.meeting = 0;
  state.finished = false;
  state.atomic_add = false;
  state.blocked_on = nullptr;
  for (int i = 0; i < kLocals; ++i) {
    const LocalSpec& spec = kLocalSpecs[i];
    Memory& memory = state.local[i];
    memory.name = spec.name;
    memory.align = spec.align;
    memory.bytes.resize(spec.cube == (core == kAic) ? spec.bytes : 0);
    memory.shadow.resize(memory.bytes.size() / kGranule);
    memory.reset();
  }
  Fibers& fibers = *at_->fibers;
  fibers.stack[core].resize(kStackBytes);
  getcontext(&fibers.fiber[core]);
  fibers.fiber[core].uc_stack.ss_sp = fibers.stack[core].data();
  fibers.fiber[core].uc_stack.ss_size = kStackBytes;
  fibers.fiber[core].uc_link = &fibers.scheduler;
  makecontext(&fibers.fiber[core], fiber_main, 0);
}

// Executes one action after another: a scalar program runs on until it blocks or yields, or the
// head of a pipe executes. Each agent has a random priority, redrawn now and then: some pipes race
// far ahead of others, which is what real timing does and a fair draw would not.
void Machine::run_block() {
  std::array<uint32_t, kAgents> priority;
  for (auto& p : priority) p = random_();
  for (;;) {
    if (random_() % 64 == 0) priority[random_() % kAgents] = random_();
    int best = -1;
    for (int agent = 0; agent < kAgents; ++agent) {
      const int core = agent / kPipes, pipe = agent % kPipes;
      const CoreState& state = at_->core[core];
      const bool ready = pipe == kS ? !state.finished && (!state.blocked_on || state.blocked_on())
                                    : head_ready(core, pipe);
      if (ready && (best < 0 || priority[agent] > priority[best])) best = agent;
    }
    if (best < 0) break;
    core_ = best / kPipes;
    if (best % kPipes == kS) {
      at_->core[core_].blocked_on = nullptr;
      swapcontext(&at_->fibers->scheduler, &at_->fibers->fiber[core_]);
      if (at_->fibers->error) std::rethrow_exception(at_->fibers->error);
    } else {
      step(core_, best % kPipes);
    }
  }
}

void Machine::check_drained() const {
  for (int core = 0; core < kCores; ++core) {
    const CoreState& state = at_->core[core];
    for (int pipe = 0; pipe < kPipes; ++pipe) {
      if (!state.queue[pipe].empty()) {
        fail("deadlock: %s waits on pipe %s at %s", kCoreNames[core], kPipeNames[pipe],
             state.queue[pipe].front().name);
      }
    }
    if (state.atomic_add) fail("%s ends with atomic addition switched on", kCoreNames[core]);
    if (!state.finished) fail("deadlock: the scalar program of %s never ends", kCoreNames[core]);
    if (!state.flags.empty()) {
      const int index = state.flags.begin()->first;
      fail("%s ends with flag %s_%s %d set and not waited for", kCoreNames[core],
           kPipeNames[index / kEvents / kPipes], kPipeNames[index / kEvents % kPipes],
           index % kEvents);
    }
    for (int flag = 0; flag < kCrossFlags; ++flag) {
      if (!state.cross[flag].empty() || !at_->pending[core][flag].empty()) {
        fail("%s ends with cross-core flag %d set and not waited for", kCoreNames[core], flag);
      }
    }
  }
}

void Machine::issue(int pipe, Instruction instruction) {
  instruction.issue = at_->clock[agent_of(core_, kS)];
  instruction.meeting = here().meeting;
  const bool barrier_or_flag = instruction.kind != Kind::kCompute;
  if (!barrier_or_flag) ++counts.instructions;
  at_->core[core_].queue[pipe].push_back(std::move(instruction));
  if (random_() % 8 == 0) block_until(nullptr);
}

// Leaves the scalar program until `ready` holds (null: until the scheduler draws it again).
void Machine::block_until(std::function<bool()> ready) {
  const int core = core_;
  at_->core[core].blocked_on = std::move(ready);
  swapcontext(&at_->fibers->fiber[core], &at_->fibers->scheduler);
  core_ = core;
}

void Machine::wait_cross(int flag) {
  const int core = core_;
  auto& tokens = at_->core[core].cross[flag];
  if (tokens.empty()) block_until([&tokens] { return !tokens.empty(); });
  at_->clock[agent_of(core, kS)].join(tokens.front());
  tokens.pop_front();
  CoreState& state = here();
  if (!state.meeting_flags.empty() && state.meeting_flags.front() == flag) {
    state.meeting_flags.pop_front();
    ++state.meeting;
  }
}

void Machine::wait_scalar(int source, int event) {
  const int core = core_, index = flag_index(source, kS, event);
  auto& flags = at_->core[core].flags;
  if (!flags.count(index)) block_until([&flags, index] { return flags.count(index) != 0; });
  at_->clock[agent_of(core, kS)].join(flags[index]);
  flags.erase(index);
}

void Machine::set_scalar(int destination, int event) {
  const int index = flag_index(kS, destination, event);
  if (here().flags.count(index))
    fail("SetFlag S_%s %d twice without a wait", kPipeNames[destination], event);
  here().flags[index] = at_->clock[agent_of(core_, kS)];
}

void Machine::barrier_all() {
  const int core = core_;
  CoreState& state = at_->core[core];
  auto drained = [&state] {
    return std::all_of(state.queue.begin(), state.queue.end(),
                       [](const auto& q) { return q.empty(); });
  };
  if (!drained()) block_until(drained);
  Clock& scalar = at_->clock[agent_of(core, kS)];
  for (int pipe = 0; pipe < kPipes; ++pipe) {
    scalar.join(at_->clock[agent_of(core, pipe)]);
    scalar.seen[agent_of(core, pipe)] = at_->executed[agent_of(core, pipe)];
  }
}

bool Machine::head_ready(int core, int pipe) const {
  const auto& queue = at_->core[core].queue[pipe];
  if (queue.empty()) return false;
  const Instruction& head = queue.front();
  return head.kind != Kind::kWaitFlag || at_->core[core].flags.count(head.event) != 0;
}

void Machine::step(int core, int pipe) {
  CoreState& state = at_->core[core];
  const Instruction head = std::move(state.queue[pipe].front());
  state.queue[pipe].pop_front();
  const int agent = agent_of(core, pipe);
  Clock& clock = at_->clock[agent];
  clock.join(head.issue);
  at_->meeting[agent] = std::max(at_->meeting[agent], head.meeting);
  switch (head.kind) {
    case Kind::kCompute:
      ++at_->executed[agent];
      for (const Span& span : head.spans) access(agent, span, head);
      head.run();
      break;
    case Kind::kSetFlag:
      if (state.flags.count(head.event))
        fail("%s: flag %s_%s %d set twice without a wait", kCoreNames[core],
             kPipeNames[head.event / kEvents / kPipes], kPipeNames[head.event / kEvents % kPipes],
             head.event % kEvents);
      state.flags[head.event] = clock;
      state.flags[head.event].seen[agent] = at_->executed[agent];
      break;
    case Kind::kWaitFlag:
      clock.join(state.flags[head.event]);
      state.flags.erase(head.event);
      break;
    case Kind::kBarrier:
      clock.seen[agent] = at_->executed[agent];
      break;
    case Kind::kCrossSet: {
      Clock token = clock;
      token.seen[agent] = at_->executed[agent];
      cross_set(core, head.mode, head.event, token);
      break;
    }
  }
}

// Mode 0: all AIVs of all blocks -> all of them. The last to arrive releases every one.
void Machine::meet(int core, int flag, const Clock& token) {
  if (core == kAic) fail("mode 0 is modelled between vector cores");
  if (meeting_flag_ >= 0 && meeting_flag_ != flag)
    fail("vector cores meet at cross-core flags %d and %d at once", meeting_flag_, flag);
  meeting_flag_ = flag;
  at_->arrived[core].push_back(token);
  for (int b = 0; b < blocks_; ++b) {
    for (const int aiv : {kAiv0, kAiv1}) {
      if (pool_[b]->arrived[aiv].empty()) return;
    }
  }
  meeting_flag_ = -1;
  std::vector<Clock> complete(blocks_);
  for (int b = 0; b < blocks_; ++b) {
    for (const int aiv : {kAiv0, kAiv1}) {
      complete[b].join(pool_[b]->arrived[aiv].front());
      pool_[b]->arrived[aiv].pop_front();
    }
    for (const int aiv : {kAiv0, kAiv1}) {
      pool_[b]->core[aiv].cross[flag].push_back(complete[b]);
      pool_[b]->core[aiv].meeting_flags.push_back(flag);
    }
  }
  meetings_.push_back(std::move(complete));
}

// Mode 2: AIC -> both AIVs, and both AIVs -> AIC once each has set. Mode 1: both AIVs -> both AIVs.
void Machine::cross_set(int core, int mode, int flag, const Clock& token) {
  if (mode == 0) return meet(core, flag, token);
  auto deliver = [&](int to, const Clock& t) {
    if (at_->core[to].cross[flag].size() >= kCrossMax)
      fail("cross-core flag %d of %s counts past %d", flag, kCoreNames[to], kCrossMax);
    at_->core[to].cross[flag].push_back(t);
  };
  if (core == kAic) {
    if (mode != 2) fail("AIC sets cross-core flag %d with mode %d", flag, mode);
    deliver(kAiv0, token);
    deliver(kAiv1, token);
    return;
  }
  const int other = core == kAiv0 ? kAiv1 : kAiv0;
  at_->pending[core][flag].push_back(token);
  if (at_->pending[other][flag].empty()) return;
  Clock both = at_->pending[core][flag].front();
  both.join(at_->pending[other][flag].front());
  at_->pending[core][flag].pop_front();
  at_->pending[other][flag].pop_front();
  if (mode == 2) {
    deliver(kAic, both);
  } else {
    deliver(kAiv0, both);
    deliver(kAiv1, both);
  }
}

}  // namespace emu
