// Tests of the emulator itself: small programs, each right except for one thing that must be
// reported, and their right forms, which must pass and compute the right numbers under many
// schedules. Prints one line per program; exit status 1 if any fails.
#include <cstdio>

#include "kernel_operator.h"

using namespace AscendC;

namespace {

constexpr int kCount = 256;
alignas(512) float input[kCount];
alignas(512) float output[kCount];
alignas(512) float workspace[kCount];
alignas(512) half matrix[32 * 32];
alignas(512) float product[32 * 32];

template <typename T>
GlobalTensor<T> global(T* address) {
  GlobalTensor<T> tensor;
  tensor.SetGlobalBuffer(address);
  return tensor;
}

// y = 2 x + 1 through UB on AIV0, with one step left out.
enum Omit { kNothing, kLoadFlag, kBarrier, kStoreFlag, kReuseFlag };
void pipeline(Omit omit) {
  TPipe pipe;
  if (machine().core() != emu::kAiv0) return;
  TBuf<TPosition::VECIN> buffer;
  pipe.InitBuffer(buffer, kCount * 2);
  LocalTensor<float> x = buffer.Get<float>();
  for (int half_index = 0; half_index < 2; ++half_index) {  // the same buffer for both halves
    if (half_index == 1 && omit != kReuseFlag) WaitFlag<HardEvent::MTE3_MTE2>(0);
    DataCopy(x, global(input)[half_index * kCount / 2], kCount / 2);
    if (omit != kLoadFlag) SetFlag<HardEvent::MTE2_V>(0), WaitFlag<HardEvent::MTE2_V>(0);
    Muls(x, x, 2.0f, kCount / 2);
    if (omit != kBarrier) PipeBarrier<PIPE_V>();
    Adds(x, x, 1.0f, kCount / 2);
    if (omit != kStoreFlag) SetFlag<HardEvent::V_MTE3>(0), WaitFlag<HardEvent::V_MTE3>(0);
    DataCopy(global(output)[half_index * kCount / 2], x, kCount / 2);
    if (half_index == 0 && omit != kReuseFlag) SetFlag<HardEvent::MTE3_MTE2>(0);
  }
}

void write_all() {  // a valid output, for programs about something else
  if (machine().core() != emu::kAiv0) return;
  TPipe pipe;
  TBuf<TPosition::VECOUT> buffer;
  pipe.InitBuffer(buffer, kCount * 4);
  Duplicate(buffer.Get<float>(), 1.0f, kCount);
  SetFlag<HardEvent::V_MTE3>(7);
  WaitFlag<HardEvent::V_MTE3>(7);
  DataCopy(global(output), buffer.Get<float>(), kCount);
}

template <typename F>
void on_vector(F f) {  // f(UB tensor of 4096 floats) on AIV0
  write_all();
  if (machine().core() != emu::kAiv0) return;
  TPipe pipe;
  TBuf<TPosition::VECCALC> buffer;
  pipe.InitBuffer(buffer, 4096 * 4);
  f(buffer.Get<float>());
}

// product = matrix * matrix^T on the cube core, k in two halves of 16, `repeat` times onto itself.
struct CubeProgram {
  uint16_t m = 32, n = 32;
  bool barrier = true;
  uint32_t l0a_offset = 0, l0c_offset = 0;
  bool load = true;
  uint32_t clear_offset = 0;
  uint16_t clear_blocks = 0;  // of both column groups, after the load
};
void cube(const CubeProgram& p) {
  write_all();
  if ASCEND_IS_AIV {
    return;
  }
  TPipe pipe;
  TBuf<TPosition::A1> l1;
  TBuf<TPosition::A2> l0a;
  TBuf<TPosition::B2> l0b;
  TBuf<TPosition::CO1> l0c;
  pipe.InitBuffer(l1, 32 * 32 * 2);
  pipe.InitBuffer(l0a, 4096);
  pipe.InitBuffer(l0b, 4096);
  pipe.InitBuffer(l0c, 8192);
  Nd2NzParams nz;
  nz.ndNum = 1, nz.nValue = 32, nz.dValue = 32, nz.srcDValue = 32, nz.dstNzC0Stride = 32,
  nz.dstNzNStride = 1;
  DataCopy(l1.Get<half>(), global(matrix), nz);
  if (p.clear_blocks) {
    InitConstValueParams<half> zeros;
    zeros.repeatTimes = 2, zeros.blockNum = p.clear_blocks, zeros.dstGap = 32 - p.clear_blocks;
    InitConstValue(l1.Get<half>()[p.clear_offset], zeros);
  }
  SetFlag<HardEvent::MTE2_MTE1>(0), WaitFlag<HardEvent::MTE2_MTE1>(0);
  LocalTensor<half> a = l0a.Get<half>()[p.l0a_offset], b = l0b.Get<half>();
  for (int half_k = 0; half_k < 2; ++half_k) {  // fractals (row 0, k), (row 1, k) of both operands
    if (p.load)
      LoadData(a[half_k * 512], l1.Get<half>(), LoadData2DParams(half_k * 2, 2, 1, 0, 0, false, 0));
    LoadData(b[half_k * 512], l1.Get<half>(), LoadData2DParams(half_k * 2, 2, 1, 0, 0, false, 0));
  }
  SetFlag<HardEvent::MTE1_M>(0), WaitFlag<HardEvent::MTE1_M>(0);
  MmadParams mm;
  mm.m = p.m, mm.n = p.n, mm.k = 16;
  Mmad(l0c.Get<float>()[p.l0c_offset], a, b, mm);
  if (p.barrier) PipeBarrier<PIPE_M>();
  mm.cmatrixInitVal = false;
  Mmad(l0c.Get<float>()[p.l0c_offset], a[512], b[512], mm);
  SetFlag<HardEvent::M_FIX>(0), WaitFlag<HardEvent::M_FIX>(0);
  FixpipeParamsV220 fix;
  fix.nSize = 32, fix.mSize = 32, fix.srcStride = 32, fix.dstStride = 32;
  Fixpipe<float, float, CFG_ROW_MAJOR>(global(product), l0c.Get<float>(), fix);
}

// AIV0 and AIV1 each write half of the workspace, the other reads it after a cross-core flag.
void exchange(bool set0, bool set1, bool wait) {
  write_all();
  if ASCEND_IS_AIC {
    return;
  }
  TPipe pipe;
  TBuf<TPosition::VECIN> buffer;
  pipe.InitBuffer(buffer, kCount * 4);
  const int64_t me = GetSubBlockIdx();
  Duplicate(buffer.Get<float>(), 1.0f, kCount / 2);
  SetFlag<HardEvent::V_MTE3>(0), WaitFlag<HardEvent::V_MTE3>(0);
  DataCopy(global(workspace)[me * kCount / 2], buffer.Get<float>(), kCount / 2);
  if (me == 0 ? set0 : set1) CrossCoreSetFlag<1, PIPE_MTE3>(3);
  if (wait) CrossCoreWaitFlag(3);
  SetFlag<HardEvent::MTE3_MTE2>(0), WaitFlag<HardEvent::MTE3_MTE2>(0);
  DataCopy(buffer.Get<float>(), global(workspace)[(1 - me) * kCount / 2], kCount / 2);
}

// The cube core releases both vector cores, or waits for both.
void cross(int sets, uint16_t flag) {
  write_all();
  if ASCEND_IS_AIC {
    for (int i = 0; i < sets; ++i) CrossCoreSetFlag<2, PIPE_FIX>(flag);
  } else {
    for (int i = 0; i < sets; ++i) CrossCoreWaitFlag(flag);
  }
}

// The four vector cores of two blocks each leave a quarter of the workspace and, after a meeting,
// take over the quarter of a core of the other block.
template <pipe_t pipe>
void meet(bool set, bool wait, int absent = -1) {
  if ASCEND_IS_AIC {
    return;
  }
  TPipe tpipe;
  TBuf<TPosition::VECIN> buffer;
  tpipe.InitBuffer(buffer, kCount);
  constexpr int kQuarter = kCount / 4;
  const int64_t me = GetBlockIdx();
  LocalTensor<float> x = buffer.Get<float>();
  Duplicate(x, static_cast<float>(me), kQuarter);
  SetFlag<HardEvent::V_MTE3>(0), WaitFlag<HardEvent::V_MTE3>(0);
  DataCopy(global(workspace)[me * kQuarter], x, kQuarter);
  if (set && me != absent) CrossCoreSetFlag<0, pipe>(3);
  if (wait) CrossCoreWaitFlag(3);
  SetFlag<HardEvent::MTE3_MTE2>(0), WaitFlag<HardEvent::MTE3_MTE2>(0);
  DataCopy(x, global(workspace)[(3 - me) * kQuarter], kQuarter);
  SetFlag<HardEvent::MTE2_MTE3>(0), WaitFlag<HardEvent::MTE2_MTE3>(0);
  DataCopy(global(output)[me * kQuarter], x, kQuarter);
}

uint64_t past_lane[2] = {1, 1};
const DataCopyExtParams kManyBlocks(4096, 32, 0, 0, 0), kLongBlock(1, 2097152, 0, 0, 0),
    kOddBlock(1, 6, 0, 0, 0);

struct Program {
  const char* name;
  const char* fault;  // part of the expected report; empty: must pass
  std::function<void()> kernel;
  int blocks = 1;
};

const std::vector<Program>& programs() {
  static const std::vector<Program> table = {
      {"pipeline", "", [] { pipeline(kNothing); }},
      {"pipeline without MTE2_V", "race in UB", [] { pipeline(kLoadFlag); }},
      {"pipeline without the vector barrier", "race in UB", [] { pipeline(kBarrier); }},
      {"pipeline without V_MTE3", "race in UB", [] { pipeline(kStoreFlag); }},
      {"buffer reused without MTE3_MTE2", "race in UB", [] { pipeline(kReuseFlag); }},
      {"flag set twice", "twice",
       [] {
         on_vector([](auto) { SetFlag<HardEvent::V_MTE3>(0), SetFlag<HardEvent::V_MTE3>(0); });
       }},
      {"flag never waited for", "not waited for",
       [] { on_vector([](auto) { SetFlag<HardEvent::V_MTE3>(1); }); }},
      {"wait for a flag of another event", "deadlock",
       [] {
         on_vector([](auto) {
           SetFlag<HardEvent::V_MTE3>(0);
           WaitFlag<HardEvent::V_MTE3>(1);
         });
       }},
      {"event id 8", "not in 0..7", [] { on_vector([](auto) { SetFlag<HardEvent::V_MTE3>(8); }); }},
      {"TPipe's own flag", "twice",
       [] {
         write_all();
         TPipe pipe;
         if ASCEND_IS_AIC {
           SetFlag<HardEvent::M_MTE1>(0);
         }
       }},
      {"misaligned operand", "multiple of 32",
       [] { on_vector([](auto x) { Muls(x[1], x[8], 1.0f, 8); }); }},
      {"operand past its buffer", "buffer of UB",
       [] { on_vector([](auto x) { Muls(x, x, 1.0f, 4097); }); }},
      {"repeats past the buffer", "buffer of UB",
       [] { on_vector([](auto x) { Adds(x, x, 1.0f, 64, 65, UnaryRepeatParams()); }); }},
      {"more UB than there is", "which has",
       [] {
         write_all();
         TPipe pipe;
         TBuf<TPosition::VECCALC> buffer;
         if ASCEND_IS_AIV {
           pipe.InitBuffer(buffer, (192 << 10) + 32);
         }
       }},
      {"L1 on a vector core", "which has 0",
       [] {
         write_all();
         TPipe pipe;
         TBuf<TPosition::A1> buffer;
         if ASCEND_IS_AIV {
           pipe.InitBuffer(buffer, 32);
         }
       }},
      {"65 lanes", "mask = 65",
       [] { on_vector([](auto x) { Adds(x, x, 1.0f, 65, 1, UnaryRepeatParams()); }); }},
      {"mask bits past the last lane", "past the 64th",
       [] { on_vector([](auto x) { Duplicate(x, 0.0f, past_lane, 1, 1, 8); }); }},
      {"no repeats", "repeatTime = 0",
       [] { on_vector([](auto x) { Adds(x, x, 1.0f, 64, 0, UnaryRepeatParams()); }); }},
      {"repeats onto one place", "overwrite each other",
       [] { on_vector([](auto x) { Adds(x, x, 1.0f, 64, 2, UnaryRepeatParams(1, 1, 0, 8)); }); }},
      {"Brcb onto its source", "overlap",
       [] { on_vector([](auto x) { Brcb(x, x[8], 1, {1, 8}); }); }},
      {"4096 blocks", "blockCount",
       [] {
         on_vector([](auto x) {
           DataCopyPad(x, global(input), kManyBlocks, DataCopyPadExtParams<float>());
         });
       }},
      {"a block of 2 MiB", "blockLen",
       [] {
         on_vector([](auto x) {
           DataCopyPad(x, global(input), kLongBlock, DataCopyPadExtParams<float>());
         });
       }},
      {"part of an element", "multiple of the element",
       [] {
         on_vector([](auto x) {
           DataCopyPad(x, global(input), kOddBlock, DataCopyPadExtParams<float>());
         });
       }},
      {"part of a block", "32 bytes",
       [] { on_vector([](auto x) { DataCopy(x, global(input), 9); }); }},
      {"past the end of a tensor", "past the end of input",
       [] { on_vector([](auto x) { DataCopy(x, global(input)[8], kCount); }); }},
      {"an input written", "writes the input",
       [] { on_vector([](auto x) { DataCopy(global(input), x, 8); }); }},
      {"an output written twice", "twice",
       [] { on_vector([](auto x) { DataCopy(global(output), x, 8); }); }},
      {"an output read", "reads the output",
       [] { on_vector([](auto x) { DataCopy(x, global(output), 8); }); }},
      {"an output left open", "never written", [] {}},
      {"a scalar load of the workspace", "no input",
       [] { on_vector([](auto) { global(workspace).GetValue(0); }); }},
      {"matrix product", "", [] { cube({}); }},
      {"accumulation without a barrier", "race in L0C", [] { cube({32, 32, false}); }},
      {"m = 1", "m = 1", [] { cube({1, 32}); }},
      {"k past 4095", "n = 4096", [] { cube({32, 4096}); }},
      {"misaligned L0A", "multiple of 512", [] { cube({32, 32, true, 16}); }},
      {"misaligned L0C", "multiple of 1024", [] { cube({32, 32, true, 0, 64}); }},
      {"rows cleared while they are loaded", "race in L1",
       [] { cube({32, 32, true, 0, 0, true, 0, 32}); }},
      {"rows cleared past the buffer", "buffer of L1",
       [] { cube({32, 32, true, 0, 0, true, 16, 32}); }},
      {"misaligned rows cleared", "multiple of 32",
       [] { cube({32, 32, true, 0, 0, true, 8, 16}); }},
      {"an operand never loaded", "never written", [] { cube({32, 32, true, 0, 0, false}); }},
      {"exchange between the vector cores", "", [] { exchange(true, true, true); }},
      {"exchange without a wait", "race in workspace", [] { exchange(false, false, false); }},
      {"exchange with one set missing", "deadlock", [] { exchange(true, false, true); }},
      {"cube to vector flags", "", [] { cross(5, 2); }},
      {"cross-core flag 16", "not in 0..15", [] { cross(1, 16); }},
      {"a cross-core counter past 15", "counts past 15",
       [] {
         write_all();
         if ASCEND_IS_AIC {
           for (int i = 0; i < 16; ++i) CrossCoreSetFlag<2, PIPE_FIX>(0);
         }
       }},
      {"two blocks meet", "", [] { meet<PIPE_MTE3>(true, true); }, 2},
      {"two blocks that do not meet", "share", [] { meet<PIPE_MTE3>(false, false); }, 2},
      {"two blocks that do not wait", "share", [] { meet<PIPE_MTE3>(true, false); }, 2},
      {"a meeting before the store is done", "share", [] { meet<PIPE_V>(true, true); }, 2},
      {"a meeting that one core misses", "deadlock", [] { meet<PIPE_MTE3>(true, true, 2); }, 2},
      {"a cube core at the meeting", "between vector cores",
       [] {
         write_all();
         if ASCEND_IS_AIC {
           CrossCoreSetFlag<0, PIPE_FIX>(3);
         }
       }},
      {"a cross-core flag left over", "not waited for",
       [] {
         write_all();
         if ASCEND_IS_AIC {
           CrossCoreSetFlag<2, PIPE_FIX>(0);
         }
       }},
  };
  return table;
}

// What the passing programs must have computed.
std::string wrong_result(const std::string& name) {
  for (int i = 0; name == "pipeline" && i < kCount; ++i) {
    if (output[i] != 2 * input[i] + 1) return "wrong sum";
  }
  for (int i = 0; name == "two blocks meet" && i < kCount; ++i) {
    if (output[i] != static_cast<float>(3 - i / (kCount / 4))) return "wrong quarter";
  }
  for (int i = 0; name == "matrix product" && i < 32 * 32; ++i) {
    float sum = 0;
    for (int x = 0; x < 32; ++x)
      sum +=
          static_cast<float>(matrix[i / 32 * 32 + x]) * static_cast<float>(matrix[i % 32 * 32 + x]);
    if (product[i] != sum) return "wrong product";
  }
  return "";
}

std::string run_once(const Program& program, uint32_t seed) {
  emu::Machine& m = machine();
  m.clear_regions();
  m.add_region("input", emu::Use::kInput, input, sizeof input);
  m.add_region("output", emu::Use::kOutput, output, sizeof output);
  m.add_region("workspace", emu::Use::kWorkspace, workspace, sizeof workspace);
  m.add_region("matrix", emu::Use::kInput, matrix, sizeof matrix);
  m.add_region("product", emu::Use::kWorkspace, product, sizeof product);
  std::fill(output, output + kCount, NAN);
  std::fill(product, product + 32 * 32, NAN);
  try {
    m.launch(program.blocks, seed, program.kernel);
  } catch (const emu::Fault& fault) {
    return fault.what();
  }
  return wrong_result(program.name);
}

}  // namespace

int main() {
  for (int i = 0; i < kCount; ++i) input[i] = static_cast<float>(i % 17 - 8);
  for (int i = 0; i < 32 * 32; ++i)
    matrix[i] = static_cast<half>(static_cast<float>(i * 7 % 13 - 6));
  int failures = 0;
  for (const Program& program : programs()) {
    std::string problem;
    for (uint32_t seed = 0; seed < 20 && problem.empty(); ++seed) {
      const std::string got = run_once(program, seed);
      const bool expected =
          *program.fault ? got.find(program.fault) != std::string::npos : got.empty();
      if (!expected)
        problem = "seed " + std::to_string(seed) + ": " + (got.empty() ? "no fault" : got);
    }
    std::printf("%-40s %s\n", program.name, problem.empty() ? "ok" : problem.c_str());
    failures += !problem.empty();
  }
  return failures != 0;
}
