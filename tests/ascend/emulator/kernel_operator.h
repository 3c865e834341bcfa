// The subset of the AscendC API that the kernels of csrc/ascend/op_kernel use, executed by
// machine.h. Own writing from the public API documentation (CANN 8.x, Atlas A2); names and argument
// orders are the interface, everything else is ours.
//
// Each function checks its operands against the documented limits when it is called, and queues an
// instruction that carries its footprint (what it reads and writes, in 32-byte blocks) and its
// effect.
#ifndef ALIBI_TESTS_ASCEND_EMULATOR_KERNEL_OPERATOR_H_
#define ALIBI_TESTS_ASCEND_EMULATOR_KERNEL_OPERATOR_H_

#include "cube.h"       // Mmad
#include "pipe.h"       // TPipe, TBuf
#include "sync.h"       // flags, barriers, block indices
#include "tensors.h"    // GlobalTensor, LocalTensor
#include "transfers.h"  // DataCopy, DataCopyPad, LoadData, Fixpipe
#include "vector.h"     // the vector pipe

#endif  // ALIBI_TESTS_ASCEND_EMULATOR_KERNEL_OPERATOR_H_
