// Every machine instruction that the portable kernels name: the only file of this directory with
// inline PTX.
//
// Shared memory is one dynamic block per thread block, addressed by 32-bit offsets in the shared
// window. With ALIBI_CPU_MODEL defined, the same functions come from the CPU model in
// tests/cuda/simt, which runs the kernels unchanged. sm_75 lacks cp.async and the k16 shape of mma:
// there a copy is a plain one and a product is two k8 ones.
#ifndef ALIBI_CUDA_SM80_DEVICE_CUH_
#define ALIBI_CUDA_SM80_DEVICE_CUH_

#ifdef ALIBI_CPU_MODEL
#include "simt/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace alibi {
namespace cuda {

using half_t = __half;
using bfloat_t = __nv_bfloat16;

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ uint32_t shared_base() {
  extern __shared__ __align__(1024) char alibi_shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(alibi_shared));
}

// Whether this is compiled for compute capability 7.5.
__device__ __forceinline__ constexpr bool on_turing() {
#if __CUDA_ARCH__ >= 800
  return false;
#else
  return true;
#endif
}
// How many of the up to 16 steps of a product the compiler may write out: written out all at once
// they hold more registers than a kernel of Turing has.
#if __CUDA_ARCH__ >= 800
constexpr int kUnrolledSteps = 16;
#else
constexpr int kUnrolledSteps = 4;
#endif
// Ends a kernel that was launched where it has not been compiled.
__device__ __forceinline__ void wrong_gpu() { asm volatile("trap;"); }

// 2^x; 0 below the normal range.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Copies `bytes` (0..16) to shared memory and fills the rest of the 16 with zeros. Asynchronous:
// see copy_wait.
__device__ __forceinline__ void copy_async(uint32_t target, const void* source, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
#else
  union {
    uint4 word;
    uint16_t half[8];
  } piece = {{0, 0, 0, 0}};
  if (bytes == 16) {
    piece.word = *static_cast<const uint4*>(source);
  } else {
    for (int i = 0; i < 8; ++i)
      piece.half[i] = 2 * i < bytes ? static_cast<const uint16_t*>(source)[i] : uint16_t{0};
  }
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(piece.word.x),
               "r"(piece.word.y), "r"(piece.word.z), "r"(piece.word.w)
               : "memory");
#endif
}

// Closes the group of copies that this thread has started since the last call.
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of this thread's groups are still in flight. Other threads' copies need a
// barrier besides.
template <int N>
__device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four 8x8 matrices of 16-bit elements (or 8x4 of 32-bit ones), one row address per lane; lane l
// receives elements (l / 4, 2 * (l % 4) + {0, 1}) of each, of the transposes with kTransposed.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ __forceinline__ void load_shared(float& x, uint32_t address) {
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
}
__device__ __forceinline__ void load_shared(float (&x)[2], uint32_t address) {
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(x[0]), "=f"(x[1])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_shared(float (&x)[4], uint32_t address) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t address, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}
// c (16x8, float32) += a (16x16) * b (16x8). Lane l holds rows l/4 and l/4 + 8: of c the columns
// 2*(l%4) + {0, 1}, of a also those + 8; of b the rows 2*(l%4) + {0, 1} and those + 8 of column
// l/4.
__device__ __forceinline__ void multiply_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1, half_t) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
__device__ __forceinline__ void multiply_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                               uint32_t b1, bfloat_t) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  wrong_gpu();  // entry.cu refuses bfloat16 there
#endif
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half_t x) { return __half2float(x); }
__device__ __forceinline__ float to_float(bfloat_t x) { return __bfloat162float(x); }
__device__ __forceinline__ void from_float(float& y, float x) { y = x; }
__device__ __forceinline__ void from_float(half_t& y, float x) { y = __float2half_rn(x); }
__device__ __forceinline__ void from_float(bfloat_t& y, float x) { y = __float2bfloat16_rn(x); }

// Two neighbouring elements in one 32-bit register, the first in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<half_t>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack<bfloat_t>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack<half_t>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
template <>
__device__ __forceinline__ float2 unpack<bfloat_t>(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

}  // namespace cuda
}  // namespace alibi
#endif  // ALIBI_CPU_MODEL
#endif  // ALIBI_CUDA_SM80_DEVICE_CUH_
