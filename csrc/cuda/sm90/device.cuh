// Every machine instruction that the Hopper kernels name besides those of sm80/device.cuh: the only
// file of this directory with inline PTX. With ALIBI_CPU_MODEL defined, the same functions come
// from the CPU model in tests/cuda/simt, which runs the kernels unchanged.
//
// Three units work beside the threads here. The copy engine (TMA) moves boxes of a tensor to shared
// memory and counts the bytes down in an mbarrier, on which the readers wait. The tensor cores
// (wgmma) read their operands from shared memory by themselves, for a warpgroup of four warps at a
// time. Both see shared memory through the "async proxy": what threads have stored reaches them
// only after fence_async_proxy.
#ifndef ALIBI_CUDA_SM90_DEVICE_CUH_
#define ALIBI_CUDA_SM90_DEVICE_CUH_

#ifdef ALIBI_CPU_MODEL
#include "simt/hopper_device.h"
#else
#include <cuda.h>

#include "../sm80/device.cuh"

namespace alibi {
namespace cuda {

// ---- mbarriers: 8 bytes of shared memory that count arrivals and bytes. A phase ends when both
// are complete; waiting names the parity of the phase, which starts at 0.

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and lets the phase also wait for `bytes` of copies.
__device__ __forceinline__ void barrier_arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Whether the phase of that parity has ended; may itself wait a while.
__device__ __forceinline__ bool barrier_try_wait(uint32_t barrier, int parity) {
  uint32_t ended;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended != 0;
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, int parity) {
  while (!barrier_try_wait(barrier, parity)) {
  }
}

// ---- named barriers 1 to 15, each for a fixed number of threads: some wait, others only arrive

__device__ __forceinline__ void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- copy engine

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}
// Starts the copy of one box of a rank-4 tensor, whose first element has these coordinates. The
// bytes are counted in `barrier`; elements outside the tensor arrive as zeros and count too.
__device__ __forceinline__ void copy_box(uint32_t target, const CUtensorMap& map, uint32_t barrier,
                                         int column, int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(target),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(barrier), "r"(column), "r"(row), "r"(head),
      "r"(batch)
      : "memory");
}
__device__ __forceinline__ void store_shared_zeros(uint32_t address) {  // 16 bytes
  asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t address, uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t address, const float (&x)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(x[0]), "f"(x[1]),
               "f"(x[2]), "f"(x[3])
               : "memory");
}
// Orders this thread's accesses to shared memory before those of the copy engine and the tensor
// cores that are synchronised with it from here on.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- plain runs of bytes, moved by the copy engine: sizes and addresses are multiples of 16. One
// thread starts them. Runs to device memory are closed in groups, as products are, and only the
// thread that started them can wait for them; what they read must have been fenced
// (fence_async_proxy) by those who stored it.

// From device memory to shared memory; the bytes are counted in `barrier`.
__device__ __forceinline__ void copy_run(uint32_t target, const void* source, uint32_t barrier,
                                         int bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %3, "
      "[%2];" ::"r"(target),
      "l"(source), "r"(barrier), "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void store_run(void* target, uint32_t source, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target),
               "r"(source), "r"(bytes)
               : "memory");
}
// Adds floats to those in device memory. Two runs to the same place add up in the order of their
// completion: wait for the first, in this block or by a flag, or sums depend on the day. An H200
// keeps sums below the normal range, although the manual says that they become 0.
__device__ __forceinline__ void add_run(float* target, uint32_t source, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(target),
      "r"(source), "r"(bytes)
      : "memory");
}
// Closes the group of runs that this thread has started since the last call.
__device__ __forceinline__ void runs_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Waits until at most kGroups of this thread's groups still read shared memory. The others' sources
// may then be overwritten, but what they have written need not have arrived.
template <int kGroups>
__device__ __forceinline__ void runs_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}
// Waits until at most kGroups of this thread's groups are still running. What the others have
// written is then visible to this thread, also in the generic proxy, so that store_release can pass
// it on.
template <int kGroups>
__device__ __forceinline__ void runs_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroups) : "memory");
}

// ---- flags in device memory, by which blocks of one launch wait for each other. A block may wait
// only for those that took their tickets before it: these are running or have ended.

// What the thread that stored this value had seen and done before, this thread sees from here on.
__device__ __forceinline__ int load_acquire(const int* flag) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
// Of this thread's runs, those that runs_wait has waited for; of other threads, what a barrier has
// ordered before.
__device__ __forceinline__ void store_release(int* flag, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
// Orders what this thread has seen of device memory before its next runs: between load_acquire and
// the run that meets what another block has written there.
__device__ __forceinline__ void fence_async_proxy_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}
// The next number, from 0 on; orders nothing.
__device__ __forceinline__ int take_ticket(int* counter) { return atomicAdd(counter, 1); }

// Adds to a float in device memory. Of one thread, additions to one place happen in their order.
__device__ __forceinline__ void add_float(float* target, float x) { atomicAdd(target, x); }

// ---- registers: a warpgroup gives some back, another takes them, in multiples of 8 per thread

template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void acquire_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- tensor cores

// Before the first product and after any access to the registers of one: orders them.
__device__ __forceinline__ void products_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Closes the group of products started since the last call.
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kGroups groups are still running. Until then nobody may touch their
// registers, nor overwrite their operands in shared memory.
template <int kGroups>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}
// For the compiler, which does not know that registers change until products_wait: nothing about
// them moves across this line.
template <int kN>
__device__ __forceinline__ void pin_registers(float (&d)[kN][4]) {
#pragma unroll
  for (int t = 0; t < kN; ++t) {
    asm volatile("" : "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])::"memory");
  }
}

// For the compiler, which otherwise keeps what it derives from an address over a loop that has no
// registers left for it.
__device__ __forceinline__ uint32_t compute_anew(uint32_t address) {
  asm volatile("" : "+r"(address));
  return address;
}

// An operand in shared memory, stored with the 128-byte swizzle. What the two strides mean depends
// on which index is contiguous, see matrix.cuh.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, int leading, int stride) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>(leading >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
         uint64_t{1} << 62;
}

// d (64 x N, float32) = a (64 x 16) b (16 x N), added to d where `add`. Of d, and of an `a` in
// registers, warp w of the warpgroup holds rows 16w to 16w + 15, in the layout of multiply_16816
// (sm80/device.cuh). kTransposedA, kTransposedB: the contiguous index is not that of k but the row
// of a, the column of b. One function per shape and type: the count of registers is part of the
// instruction.
#define ALIBI_R4(d, t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define ALIBI_R16(d, t) ALIBI_R4(d, t), ALIBI_R4(d, t + 1), ALIBI_R4(d, t + 2), ALIBI_R4(d, t + 3)
#define ALIBI_R64(d) ALIBI_R16(d, 0), ALIBI_R16(d, 4)
#define ALIBI_R128(d) ALIBI_R64(d), ALIBI_R16(d, 8), ALIBI_R16(d, 12)
#define ALIBI_D64                                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ALIBI_D128                                                                          \
  ALIBI_D64                                                                                 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// Both operands in shared memory: a, b, add, kTransposedA, kTransposedB follow the accumulators.
#define ALIBI_MULTIPLY_SHARED(N, T, PTX, A, B, ADD, TA, TB)                                     \
  template <bool kTransposedA, bool kTransposedB>                                               \
  __device__ __forceinline__ void multiply_shared(float (&d)[N / 8][4], uint64_t a, uint64_t b, \
                                                  bool add, T) {                                \
    asm volatile(                                                                               \
        "{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N    \
        "k16.f32." PTX "." PTX " {" ALIBI_D##N "}, " A ", " B ", p, 1, 1, " TA ", " TB ";\n}\n" \
        : ALIBI_R##N(d)                                                                         \
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposedA), "n"(kTransposedB)      \
        : "memory");                                                                            \
  }
// a in registers: a[0..3], b, add, kTransposedB follow.
#define ALIBI_MULTIPLY_HELD(N, T, PTX, A0, A1, A2, A3, B, ADD, TB)                                 \
  template <bool kTransposedB>                                                                     \
  __device__ __forceinline__ void multiply_held(float (&d)[N / 8][4], const uint32_t (&a)[4],      \
                                                uint64_t b, bool add, T) {                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD                                           \
                 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX "." PTX               \
                 " {" ALIBI_D##N "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B ", p, 1, 1, " TB        \
                                 ";\n}\n"                                                          \
                 : ALIBI_R##N(d)                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), \
                   "n"(kTransposedB)                                                               \
                 : "memory");                                                                      \
  }
#define ALIBI_MULTIPLY(T, PTX)                                                     \
  ALIBI_MULTIPLY_SHARED(64, T, PTX, "%32", "%33", "%34", "%35", "%36")             \
  ALIBI_MULTIPLY_SHARED(128, T, PTX, "%64", "%65", "%66", "%67", "%68")            \
  ALIBI_MULTIPLY_HELD(64, T, PTX, "%32", "%33", "%34", "%35", "%36", "%37", "%38") \
  ALIBI_MULTIPLY_HELD(128, T, PTX, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
ALIBI_MULTIPLY(half_t, "f16")
ALIBI_MULTIPLY(bfloat_t, "bf16")

}  // namespace cuda
}  // namespace alibi
#endif  // ALIBI_CPU_MODEL
#endif  // ALIBI_CUDA_SM90_DEVICE_CUH_
