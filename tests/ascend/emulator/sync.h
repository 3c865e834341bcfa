// Part of kernel_operator.h: synchronisation and indices.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_SYNC_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_SYNC_H_

#include "pipe.h"

namespace AscendC {

struct EventPipes {
  int source, destination;
};
constexpr EventPipes pipes_of(HardEvent event) {
  constexpr EventPipes kPipesOf[] = {
      {emu::kMte2, emu::kMte1}, {emu::kMte1, emu::kMte2}, {emu::kMte1, emu::kM},
      {emu::kM, emu::kMte1},    {emu::kM, emu::kFix},     {emu::kFix, emu::kM},
      {emu::kMte2, emu::kV},    {emu::kV, emu::kMte2},    {emu::kMte3, emu::kV},
      {emu::kV, emu::kMte3},    {emu::kMte2, emu::kS},    {emu::kV, emu::kS},
      {emu::kS, emu::kV},       {emu::kMte3, emu::kMte2}, {emu::kMte2, emu::kMte3},
  };
  return kPipesOf[static_cast<int>(event)];
}

inline void queue_flag(const char* name, Kind kind, HardEvent event, int32_t id) {
  if (id < 0 || id >= emu::kEvents) emu::fail("%s: event id %d is not in 0..7", name, id);
  const EventPipes pipes = pipes_of(event);
  const int index = emu::Machine::flag_index(pipes.source, pipes.destination, id);
  int& unmatched = machine().here().unmatched[index];
  unmatched += kind == Kind::kSetFlag ? 1 : -1;
  if (unmatched > 1) emu::fail("SetFlag with event id %d twice without a wait between", id);
  const int pipe = kind == Kind::kSetFlag ? pipes.source : pipes.destination;
  if (pipe == emu::kS) {
    if (kind == Kind::kSetFlag) return machine().set_scalar(pipes.destination, id);
    return machine().wait_scalar(pipes.source, id);
  }
  Instruction instruction;
  instruction.name = name;
  instruction.kind = kind;
  instruction.event = index;
  machine().issue(pipe, std::move(instruction));
}

template <HardEvent event>
void SetFlag(int32_t id) {
  queue_flag("SetFlag", Kind::kSetFlag, event, id);
}
template <HardEvent event>
void WaitFlag(int32_t id) {
  queue_flag("WaitFlag", Kind::kWaitFlag, event, id);
}

constexpr int pipe_index(pipe_t pipe) {  // the enumerators have the order of emu::Pipe
  return static_cast<int>(pipe);
}

template <pipe_t pipe>
void PipeBarrier() {
  static_assert(pipe != PIPE_S, "the scalar pipe orders itself");
  if (pipe == PIPE_ALL) return machine().barrier_all();
  Instruction instruction;
  instruction.name = "PipeBarrier";
  instruction.kind = Kind::kBarrier;
  machine().issue(pipe_index(pipe), std::move(instruction));
}

template <uint8_t mode, pipe_t pipe>
void CrossCoreSetFlag(uint16_t flag) {
  static_assert(mode <= 2, "Atlas A2 has modes 0, 1 and 2");
  static_assert(pipe != PIPE_S && pipe != PIPE_ALL, "a cross-core flag is set by a pipe");
  if (flag >= emu::kCrossFlags) emu::fail("CrossCoreSetFlag: flag %d is not in 0..15", flag);
  Instruction instruction;
  instruction.name = "CrossCoreSetFlag";
  instruction.kind = Kind::kCrossSet;
  instruction.event = flag;
  instruction.mode = mode;
  machine().issue(pipe_index(pipe), std::move(instruction));
}

// Atlas A2: holds back everything that the core issues after it, on every pipe.
inline void CrossCoreWaitFlag(uint16_t flag) {
  if (flag >= emu::kCrossFlags) emu::fail("CrossCoreWaitFlag: flag %d is not in 0..15", flag);
  machine().wait_cross(flag);
}

inline int64_t GetBlockNum() { return machine().blocks(); }
inline int64_t GetTaskRation() { return 2; }
inline int64_t GetSubBlockIdx() { return machine().core() == emu::kAiv1 ? 1 : 0; }
inline int64_t GetBlockIdx() {
  if ASCEND_IS_AIC {
    return machine().block();
  }
  return 2 * machine().block() + GetSubBlockIdx();
}

}  // namespace AscendC

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_SYNC_H_
