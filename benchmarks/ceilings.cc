// What this machine can do at most, measured beside every benchmark run: the denominators of
// "fraction of the floor".
//
//   fma        float32 fused multiply-adds from registers, the widest vectors of the CPU GFLOP/s
//   bf16       bfloat16 dot products (vdpbf16ps) from registers                         GFLOP/s
//   bandwidth  a plain read of a buffer far larger than the caches                      GB/s
//   read       the same of two given arrays: a benchmark takes it in turns with decoding
//
// Rates are sums over `threads` OpenMP threads; 0 = not on this CPU. Built by CMake as libalibi_ceilings.so when ALIBI_WITH_BENCH is ON;
// nothing but benchmarks/ loads it.
#include <immintrin.h>
#include <omp.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// 24 independent accumulators hide the latency of two FMA ports. The sum is returned so that
// nothing is optimised away.
__attribute__((target("avx512f"))) void fma_avx512(int64_t steps) {
  __m512 a[24];
  for (int i = 0; i < 24; i++) a[i] = _mm512_set1_ps(static_cast<float>(i));
  __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
  for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 24
    for (int i = 0; i < 24; i++) a[i] = _mm512_fmadd_ps(a[i], x, y);
    asm volatile("" : "+v"(x), "+v"(y));
  }
  for (auto& acc : a) asm volatile("" ::"v"(acc));
}

__attribute__((target("avx2,fma"))) void fma_avx2(int64_t steps) {
  __m256 a[12];
  for (int i = 0; i < 12; i++) a[i] = _mm256_set1_ps(static_cast<float>(i));
  __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
  for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) a[i] = _mm256_fmadd_ps(a[i], x, y);
    asm volatile("" : "+v"(x), "+v"(y));
  }
  for (auto& acc : a) asm volatile("" ::"v"(acc));
}

__attribute__((target("avx512f,avx512bf16"))) void dot_bf16(int64_t steps) {
  __m512 a[24];
  for (int i = 0; i < 24; i++) a[i] = _mm512_set1_ps(static_cast<float>(i));
  __m512i bits = _mm512_set1_epi32(0x3f003f00);
  for (int64_t s = 0; s < steps; s++) {
    asm volatile("" : "+v"(bits));
#pragma GCC unroll 24
    for (int i = 0; i < 24; i++) a[i] = _mm512_dpbf16_ps(a[i], (__m512bh)bits, (__m512bh)bits);
  }
  for (auto& acc : a) asm volatile("" ::"v"(acc));
}

// Operations per second of `body(steps)`, which does `flops_per_step` per step, on `threads`
// threads at once.
double rate(void (*body)(int64_t), double flops_per_step, int threads, double seconds) {
  constexpr int64_t kSteps = 100000;
  double total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    body(kSteps);
    int64_t steps = 0;
#pragma omp barrier
    const auto start = Clock::now();
    do {
      body(kSteps);
      steps += kSteps;
    } while (seconds_since(start) < seconds);
    total += static_cast<double>(steps) * flops_per_step / seconds_since(start);
  }
  return total;
}

__attribute__((target("avx2"))) void read_all(const uint8_t* data, int64_t bytes) {
  __m256i sum[8];
  for (auto& x : sum) x = _mm256_setzero_si256();
  for (int64_t i = 0; i + 256 <= bytes; i += 256) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++)
      sum[k] = _mm256_xor_si256(
          sum[k], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + i + 32 * k)));
  }
  for (int k = 1; k < 8; k++) sum[0] = _mm256_xor_si256(sum[0], sum[k]);
  asm volatile("" ::"x"(sum[0]));
}

}  // namespace

extern "C" {

// GFLOP/s of float32 multiply-adds; isa 0 = the widest, 1 = AVX2.
__attribute__((visibility("default"))) double alibi_ceiling_fma(int threads, double seconds,
                                                                int isa) {
  if (isa == 0 && __builtin_cpu_supports("avx512f"))
    return rate(fma_avx512, 24.0 * 16 * 2, threads, seconds) * 1e-9;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return rate(fma_avx2, 12.0 * 8 * 2, threads, seconds) * 1e-9;
  return 0;
}

// GFLOP/s of bfloat16 dot products with float32 accumulation.
__attribute__((visibility("default"))) double alibi_ceiling_bf16(int threads, double seconds) {
  if (!__builtin_cpu_supports("avx512bf16")) return 0;
  return rate(dot_bf16, 24.0 * 16 * 4, threads, seconds) * 1e-9;
}

// GB/s of reading `bytes` (a multiple of 4096) once per pass, split over the threads.
__attribute__((visibility("default"))) double alibi_ceiling_bandwidth(int threads, int64_t bytes,
                                                                      int passes) {
  const int64_t part = bytes / threads / 4096 * 4096;
  auto* data = static_cast<uint8_t*>(std::aligned_alloc(4096, static_cast<size_t>(part * threads)));
  if (data == nullptr || !__builtin_cpu_supports("avx2")) {
    std::free(data);
    return 0;
  }
  double best = 0;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int t = 0; t < threads; t++)
    __builtin_memset(data + t * part, t + 1, static_cast<size_t>(part));
  for (int pass = 0; pass < passes; pass++) {
    const auto start = Clock::now();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; t++) read_all(data + t * part, part);
    const double now = static_cast<double>(part * threads) / seconds_since(start) * 1e-9;
    best = now > best ? now : best;
  }
  std::free(data);
  return best;
}

// Reads `bytes` of two arrays once, every thread its part of each; false: not on this CPU.
__attribute__((visibility("default"))) bool alibi_ceiling_read(const void* a, const void* b,
                                                               int64_t bytes, int threads) {
  if (!__builtin_cpu_supports("avx2")) return false;
  const int64_t part = bytes / threads / 256 * 256;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int t = 0; t < threads; t++) {
    for (const void* array : {a, b}) {
      read_all(static_cast<const uint8_t*>(array) + t * part,
               t + 1 == threads ? bytes - t * part : part);
    }
  }
  return true;
}

}  // extern "C"
