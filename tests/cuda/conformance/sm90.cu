// One probe for every kind of work that the Hopper kernels leave to the copy engine and to the
// tensor cores, or do together: named barriers, registers, phases of mbarriers, a box with the
// 128-byte swizzle that reaches beyond its tensor, runs of plain bytes, sums of several blocks in a
// fixed order, and products with each storage order that a descriptor can name. Needs sm_90a.
//
// What must come out is arithmetic on small integers, sums rounded in a known order, or a
// permutation of bytes, so conformance.py computes it: a wrong result here is a wrong reading of the
// manual.
#include "probe.h"
// After it, because the CPU model wants its own headers first.
#include "cuda/sm90/device.cuh"

using namespace alibi::cuda;
using namespace conformance;

namespace {

constexpr int kThreads = 128;         // one warpgroup
constexpr int kPanel = 64 * 128;      // bytes of 64 rows of 64 16-bit columns
constexpr int kBarrier = 4 * kPanel;  // behind up to four panels
constexpr int kShared = kBarrier + 64;

__device__ __forceinline__ uint32_t shared_word(uint32_t address) {
  float x;
  load_shared(x, address);
  return __float_as_uint(x);
}

// Rows of 64 columns in memory to panels in shared memory, swizzled as the copy engine would.
__device__ void store_panels(uint32_t base, const uint32_t* rows, int words) {
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kThreads) {
    const int row = i / 32, piece = i % 32 / 4;
    const int place = row * 128 + (piece ^ row % 8) * 16 + i % 4 * 4;
    store_shared(base + static_cast<uint32_t>(place), __uint_as_float(rows[i]));
  }
  fence_async_proxy();
  __syncthreads();
}

template <int kN>
__device__ void put_all(uint32_t* out, const float (&d)[kN][4]) {
  for (int t = 0; t < kN; ++t)
    for (int e = 0; e < 4; ++e)
      out[(4 * t + e) * kThreads + static_cast<int>(threadIdx.x)] = __float_as_uint(d[t][e]);
}

// d = a b^T, both [64, 64] with k contiguous.
template <class T>
__global__ void product_rows(const uint32_t* in, uint32_t* out) {
  const uint32_t base = shared_base();
  store_panels(base, in, 2 * kPanel / 4);
  float d[8][4] = {};
  products_fence();
  for (int k = 0; k < 4; ++k) {
    const uint32_t step = static_cast<uint32_t>(k) * 32;
    multiply_shared<false, false>(d, matrix_descriptor(base + step, 16, 1024),
                                  matrix_descriptor(base + kPanel + step, 16, 1024), k != 0, T{});
  }
  products_commit();
  products_wait<0>();
  pin_registers(d);
  put_all(out, d);
}

// d = a^T b, a [64 k, 64], b [64 k, 64]: k is not contiguous in either.
template <class T>
__global__ void product_columns(const uint32_t* in, uint32_t* out) {
  const uint32_t base = shared_base();
  store_panels(base, in, 2 * kPanel / 4);
  float d[8][4] = {};
  products_fence();
  for (int k = 0; k < 4; ++k) {
    const uint32_t step = static_cast<uint32_t>(k) * 2048;
    multiply_shared<true, true>(d, matrix_descriptor(base + step, kPanel, 1024),
                                matrix_descriptor(base + kPanel + step, kPanel, 1024), k != 0, T{});
  }
  products_commit();
  products_wait<0>();
  pin_registers(d);
  put_all(out, d);
}

// d = a b, or a^T b, with b [64 k, 128] in two panels of 64 columns.
template <class T, bool kTransposedA>
__device__ void product_of_panels(const uint32_t* in, uint32_t* out) {
  const uint32_t base = shared_base();
  store_panels(base, in, 3 * kPanel / 4);
  float d[16][4] = {};
  products_fence();
  for (int k = 0; k < 4; ++k) {
    const uint32_t step = static_cast<uint32_t>(k) * 2048;
    const uint32_t a = base + (kTransposedA ? step : static_cast<uint32_t>(k) * 32);
    multiply_shared<kTransposedA, true>(d, matrix_descriptor(a, kTransposedA ? kPanel : 16, 1024),
                                        matrix_descriptor(base + kPanel + step, kPanel, 1024),
                                        k != 0, T{});
  }
  products_commit();
  products_wait<0>();
  pin_registers(d);
  put_all(out, d);
}
template <class T>
__global__ void product_mixed(const uint32_t* in, uint32_t* out) {
  product_of_panels<T, false>(in, out);
}
template <class T>
__global__ void product_wide(const uint32_t* in, uint32_t* out) {
  product_of_panels<T, true>(in, out);
}

// d = a b with a [64, 64] in registers and b [64 k, 128] in two panels of 64 columns.
template <class T>
__global__ void product_held(const uint32_t* in, uint32_t* out) {
  const uint32_t base = shared_base();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  store_panels(base, in + kPanel / 4, 2 * kPanel / 4);
  float d[16][4] = {};
  uint32_t a[4][4];
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 4; ++i) {
      const int row = 16 * warp + lane / 4 + 8 * (i % 2);
      a[k][i] = in[row * 32 + 8 * k + lane % 4 + 4 * (i / 2)];
    }
  }
  products_fence();
  for (int k = 0; k < 4; ++k) {
    const uint32_t step = static_cast<uint32_t>(k) * 2048;
    multiply_held<true>(d, a[k], matrix_descriptor(base + step, kPanel, 1024), k != 0, T{});
  }
  products_commit();
  products_wait<0>();
  pin_registers(d);
  put_all(out, d);
}

// Each half of the block stores its words and passes one barrier by, then waits at the other for the
// words of the other half.
__global__ void named_barriers(const uint32_t* in, uint32_t* out) {
  const uint32_t base = shared_base();
  const int thread = static_cast<int>(threadIdx.x), half = thread / 64;
  store_shared(base + static_cast<uint32_t>(thread) * 4, __uint_as_float(in[thread]));
  named_arrive(1 + half, kThreads);
  named_sync(2 - half, kThreads);
  out[thread] = shared_word(base + static_cast<uint32_t>(thread ^ 64) * 4);
}

// Every third thread clears its 16 bytes; each reads the piece of the next thread.
__global__ void zeros(const uint32_t* in, uint32_t* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t mine = shared_base() + static_cast<uint32_t>(thread) * 16;
  for (int i = 0; i < 4; ++i)
    store_shared(mine + static_cast<uint32_t>(i) * 4, __uint_as_float(in[i * kThreads + thread]));
  if (thread % 3 == 0) store_shared_zeros(mine);
  __syncthreads();
  for (int i = 0; i < 4; ++i)
    out[i * kThreads + thread] =
        shared_word(shared_base() + static_cast<uint32_t>((thread + 1) % kThreads * 16 + i * 4));
}

// One warpgroup gives registers back, so that two others can have more than their share; what
// registers hold stays.
__global__ void __launch_bounds__(3 * kThreads, 1) registers(const uint32_t* in, uint32_t* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t held = in[thread];
  if (thread < kThreads) {
    release_registers<24>();
  } else {
    acquire_registers<240>();
  }
  out[thread] = held;
}

#ifndef ALIBI_CPU_MODEL
// The answer to "has the phase of this parity ended?" while a barrier for two arrivals goes through
// two phases.
__global__ void barrier_phases(const uint32_t*, uint32_t* out) {
  const uint32_t barrier = shared_base();
  if (threadIdx.x == 0) {
    int count = 0;
    const auto note = [&] {
      out[count++] = barrier_try_wait(barrier, 0);
      out[count++] = barrier_try_wait(barrier, 1);
    };
    barrier_init(barrier, 2);
    barrier_init_fence();
    note();
    barrier_arrive(barrier);
    note();
    barrier_arrive(barrier);
    note();
    barrier_arrive(barrier);
    barrier_arrive(barrier);
    note();
  }
}
#endif

// ---- a box of 64 columns and 16 rows at column 64, row 8 of a tensor of 20 rows and 80 columns

constexpr int kTensorRows = 20, kTensorColumns = 80, kBoxRows = 16;
__device__ CUtensorMap tensor_map;

__global__ void box(const uint32_t*, uint32_t* out) {
  const uint32_t base = shared_base(), barrier = base + kBarrier;
  for (int i = static_cast<int>(threadIdx.x); i < kBoxRows * 32; i += kThreads)
    store_shared(base + static_cast<uint32_t>(i) * 4, -1.0f);
  if (threadIdx.x == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
  }
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    barrier_arrive_expect(barrier, kBoxRows * 128);
    copy_box(base, tensor_map, barrier, 64, 8, 0, 0);
  }
  barrier_wait(barrier, 0);
  for (int i = static_cast<int>(threadIdx.x); i < kBoxRows * 32; i += kThreads)
    out[i] = shared_word(base + static_cast<uint32_t>(i) * 4);
}

// ---- runs of 512 bytes, a word per thread

constexpr int kRun = kThreads * 4;

__device__ __forceinline__ uint32_t word_at(uint32_t run, int i) {
  return run + static_cast<uint32_t>(i) * 4;
}
__device__ __forceinline__ void store_term(uint32_t run, uint32_t word) {
  store_shared(word_at(run, static_cast<int>(threadIdx.x)),
               __float_as_uint(static_cast<float>(static_cast<int>(word))));
}

// A run to shared memory, where every thread passes on the word of its neighbour; two runs take
// them back, the second half first.
__global__ void runs(const uint32_t* in, uint32_t* out) {
  const uint32_t base = shared_base(), back = base + kRun, barrier = base + kBarrier;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
    barrier_arrive_expect(barrier, kRun);
    copy_run(base, in, barrier, kRun);
  }
  __syncthreads();
  barrier_wait(barrier, 0);
  store_shared(word_at(back, thread), shared_word(word_at(base, thread ^ 1)));
  fence_async_proxy();
  __syncthreads();
  if (thread != 0) return;
  store_run(out, back + kRun / 2, kRun / 2);
  runs_commit();
  store_run(out + kThreads / 2, back, kRun / 2);
  runs_commit();
  runs_wait_read<1>();
  runs_wait<0>();
}

// Two runs of terms to the same sums, the second from where the terms of the first were.
__global__ void additions(const uint32_t* in, uint32_t* out) {
  const uint32_t base = shared_base();
  const int thread = static_cast<int>(threadIdx.x);
  float* sums = reinterpret_cast<float*>(out);
  sums[thread] = static_cast<float>(static_cast<int>(in[thread]));
  store_term(base, in[kThreads + thread]);
  fence_async_proxy_global();
  fence_async_proxy();
  __syncthreads();
  if (thread == 0) {
    add_run(sums, base, kRun);
    runs_commit();
    runs_wait_read<0>();
  }
  __syncthreads();
  store_term(base, in[2 * kThreads + thread]);
  fence_async_proxy();
  __syncthreads();
  if (thread != 0) return;
  runs_wait<0>();
  add_run(sums, base, kRun);
  runs_commit();
  runs_wait<0>();
}

// One by one, by the thread that has stored the first term.
__global__ void single_additions(const uint32_t* in, uint32_t* out) {
  const int thread = static_cast<int>(threadIdx.x);
  float* sum = reinterpret_cast<float*>(out) + thread;
  *sum = static_cast<float>(static_cast<int>(in[thread]));
  for (int i = 1; i < 16; ++i)
    add_float(sum, static_cast<float>(static_cast<int>(in[i * kThreads + thread])));
}

// A sum below or at the lower end of the normal range.
__global__ void subnormals(const uint32_t* in, uint32_t* out) {
  constexpr uint32_t kSignAndLow = 0x80ffffff;
  const uint32_t base = shared_base();
  const int thread = static_cast<int>(threadIdx.x);
  out[thread] = in[thread] & kSignAndLow;
  store_shared(word_at(base, thread), in[kThreads + thread] & kSignAndLow);
  fence_async_proxy_global();
  fence_async_proxy();
  __syncthreads();
  if (thread != 0) return;
  add_run(reinterpret_cast<float*>(out), base, kRun);
  runs_commit();
  runs_wait<0>();
}

// Blocks add terms to the same sums, in the order of their tickets. Then the last one writes down
// the sums as its threads see them, and as the copy engine does.
constexpr int kAdders = 32, kSums = 8;
__device__ int tickets, turns[kSums];

__global__ void flags(const uint32_t* in, uint32_t* out) {
  const uint32_t base = shared_base(), back = base + 2 * kRun, barrier = base + kBarrier;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    barrier_init(barrier, 1);
    barrier_init_fence();
    store_shared(base + kRun, static_cast<uint32_t>(take_ticket(&tickets)));
  }
  __syncthreads();
  const int ticket = static_cast<int>(shared_word(base + kRun));
  for (int i = 0; i < kSums; ++i) {
    float* sums = reinterpret_cast<float*>(out) + i * kThreads;
    store_term(base, in[ticket * kThreads + (thread + 17 * i) % kThreads]);
    fence_async_proxy();
    __syncthreads();
    if (thread == 0) {
      while (load_acquire(turns + i) != ticket) {
      }
      fence_async_proxy_global();
      if (ticket == 0) {
        store_run(sums, base, kRun);
      } else {
        add_run(sums, base, kRun);
      }
      runs_commit();
      runs_wait<0>();
      store_release(turns + i, ticket + 1);
    }
    __syncthreads();
  }
  if (ticket + 1 < kAdders) return;
  if (thread == 0) {
    barrier_arrive_expect(barrier, kSums * kRun);
    copy_run(back, out, barrier, kSums * kRun);
  }
  barrier_wait(barrier, 0);
  for (int i = thread; i < kSums * kThreads; i += kThreads) {
    out[kSums * kThreads + i] = out[i];
    out[2 * kSums * kThreads + i] = shared_word(word_at(back, i));
  }
}

#ifdef ALIBI_CPU_MODEL
auto find_encoder() { return &cuTensorMapEncodeTiled; }
bool keep(const CUtensorMap& map) {
  tensor_map = map;
  return true;
}
#else
auto find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                   &found);
#else
  cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}
bool keep(const CUtensorMap& map) {
  return cudaMemcpyToSymbol(tensor_map, &map, sizeof(map)) == cudaSuccess;
}
#endif

bool encode_map(uint32_t* tensor) {
  const auto encode = find_encoder();
  if (encode == nullptr) return false;
  const cuuint64_t sizes[] = {kTensorColumns, kTensorRows, 1, 1};
  const cuuint64_t bytes = kTensorColumns * 2, strides[] = {bytes, bytes * kTensorRows, 16};
  const cuuint32_t shape[] = {64, kBoxRows, 1, 1}, steps[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4, tensor, sizes, strides, shape, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS && keep(map);
}

constexpr Probe kProbes[] = {
#ifndef ALIBI_CPU_MODEL  // which waits, but does not ask
    {"barrier_phases", barrier_phases, kWords, kExact, 32, 64, 1, 1},
#endif
    {"named_barriers", named_barriers, kWords, kExact, kThreads, kThreads * 4, 1, 1},
    {"zeros", zeros, kWords, kExact, kThreads, kThreads * 16, 4, 4},
    {"registers", registers, kWords, kExact, 3 * kThreads, 0, 1, 1},
    {"box", box, kWords, kExact, kThreads, kShared, 7, 4, encode_map},
    {"runs", runs, kWords, kExact, kThreads, kShared, 1, 1},
    {"additions", additions, kWords, kExact, kThreads, kRun, 3, 1},
    {"single_additions", single_additions, kWords, kExact, kThreads, 0, 16, 1},
    {"subnormals", subnormals, kWords, kExact, kThreads, kRun, 2, 1},
    {"flags", flags, kWords, kExact, kThreads, kShared, kAdders, 3 * kSums, nullptr, kAdders},
    {"rows_float16", product_rows<half_t>, kHalfIntegers, kExact, kThreads, kShared, 32, 32},
    {"rows_bfloat16", product_rows<bfloat_t>, kBfloatIntegers, kExact, kThreads, kShared, 32, 32},
    {"columns_float16", product_columns<half_t>, kHalfIntegers, kExact, kThreads, kShared, 32, 32},
    {"columns_bfloat16", product_columns<bfloat_t>, kBfloatIntegers, kExact, kThreads, kShared, 32,
     32},
    {"mixed_float16", product_mixed<half_t>, kHalfIntegers, kExact, kThreads, kShared, 48, 64},
    {"mixed_bfloat16", product_mixed<bfloat_t>, kBfloatIntegers, kExact, kThreads, kShared, 48, 64},
    {"wide_float16", product_wide<half_t>, kHalfIntegers, kExact, kThreads, kShared, 48, 64},
    {"wide_bfloat16", product_wide<bfloat_t>, kBfloatIntegers, kExact, kThreads, kShared, 48, 64},
    {"held_float16", product_held<half_t>, kHalfIntegers, kExact, kThreads, kShared, 48, 64},
    {"held_bfloat16", product_held<bfloat_t>, kBfloatIntegers, kExact, kThreads, kShared, 48, 64},
};

}  // namespace

int main(int count, char** arguments) { return run_all(kProbes, count, arguments); }
