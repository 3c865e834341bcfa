// Part of kernel_operator.h: TPipe. On the cube core of an Atlas A2 its constructor sets the flags
// M_MTE1 0, 1 and 2 and its destructor waits for them, so those three belong to it.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_PIPE_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_PIPE_H_

#include "tensors.h"

namespace AscendC {

template <HardEvent event>
void SetFlag(int32_t id);
template <HardEvent event>
void WaitFlag(int32_t id);
template <pipe_t pipe>
void PipeBarrier();

class TPipe {
 public:
  TPipe() {
    if ASCEND_IS_AIC {
      for (int id = 0; id < 3; ++id) SetFlag<HardEvent::M_MTE1>(id);
    }
  }
  ~TPipe() noexcept(false) {
    if (std::uncaught_exceptions()) return;
    if ASCEND_IS_AIC {
      for (int id = 0; id < 3; ++id) WaitFlag<HardEvent::M_MTE1>(id);
    }
    PipeBarrier<PIPE_ALL>();
  }
  template <TPosition position>
  bool InitBuffer(TBuf<position>& buffer, uint32_t bytes) {
    emu::Memory& memory = machine().here().local[local_of(position)];
    buffer.begin_ = memory.allocated;
    memory.allocated += (bytes + 31) / 32 * 32;
    buffer.end_ = memory.allocated;
    if (memory.allocated > memory.bytes.size()) {
      emu::fail("InitBuffer: %u bytes of %s, which has %zu", memory.allocated, memory.name.c_str(),
                memory.bytes.size());
    }
    return true;
  }
};

}  // namespace AscendC

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_PIPE_H_
