// What this machine can do at most, measured beside every benchmark run: the denominators of
// "fraction of the floor".
//
//   fma        float32 fused multiply-adds from registers, the widest vectors of the CPU GFLOP/s
//   bf16       bfloat16 dot products (vdpbf16ps) from registers                         GFLOP/s
//   exp        2^x to float32 accuracy in registers: vreduceps, degree 5, vscalefps     G/s
//   work       a number of fma or bf16 operations: a benchmark takes it in turns with kernels
//   bandwidth  a plain read of a buffer far larger than the caches                      GB/s
//   read       the same of two given arrays: a benchmark takes it in turns with decoding
//
// Rates are sums over `threads` OpenMP threads; 0 = not on this CPU. Built by CMake as
// libalibi_ceilings.so when ALIBI_WITH_BENCH is ON; nothing but benchmarks/ loads it.
// GCC 12 warns of its own vscalefps.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
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

// The Taylor coefficients take as long as any others.
__attribute__((target("avx512f,avx512dq"))) void exp2_avx512(int64_t steps) {
  const float c[] = {1.0f, 0.6931472f, 0.2402265f, 0.05550411f, 0.009618129f, 0.001333356f};
  __m512 x = _mm512_set1_ps(-1.3f);
  for (int64_t s = 0; s < steps; s++) {
    __m512 r[8], p[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      asm volatile("" : "+v"(x));
      r[i] = _mm512_reduce_ps(x, 1);
      p[i] = _mm512_set1_ps(c[5]);
    }
#pragma GCC unroll 5
    for (int k = 4; k >= 0; k--) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) p[i] = _mm512_fmadd_ps(p[i], r[i], _mm512_set1_ps(c[k]));
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      p[i] = _mm512_scalef_ps(p[i], x);
      asm volatile("" ::"v"(p[i]));
    }
  }
}

// A unit of arithmetic: operations per step of its loop, and whether this CPU has it.
struct Unit {
  void (*body)(int64_t steps);
  double per_step;
  bool here;
};

enum { kFma = 0, kFmaAvx2 = 1, kBf16 = 2, kExp = 3 };

Unit unit(int which) {
  const bool avx512 = __builtin_cpu_supports("avx512f");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  switch (which) {
    case kFma:
      if (avx512) return {fma_avx512, 24.0 * 16 * 2, true};
      [[fallthrough]];
    case kFmaAvx2:
      return {fma_avx2, 12.0 * 8 * 2, avx2};
    case kBf16:
      return {dot_bf16, 24.0 * 16 * 4, avx512 && __builtin_cpu_supports("avx512bf16")};
    default:
      return {exp2_avx512, 8.0 * 16, avx512 && __builtin_cpu_supports("avx512dq")};
  }
}

// Operations per second of `body(steps)`, which does `per_step` of them per step, on `threads`
// threads at once.
double rate(void (*body)(int64_t), double per_step, int threads, double seconds) {
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
    total += static_cast<double>(steps) * per_step / seconds_since(start);
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

// 1e9 operations per second of a unit of the enum above.
__attribute__((visibility("default"))) double alibi_ceiling_rate(int which, int threads,
                                                                 double seconds) {
  const Unit u = unit(which);
  return u.here ? rate(u.body, u.per_step, threads, seconds) * 1e-9 : 0;
}

// Does `operations` of a unit, split over the threads; false: not on this CPU.
__attribute__((visibility("default"))) bool alibi_ceiling_work(int which, double operations,
                                                               int threads) {
  const Unit u = unit(which);
  if (!u.here) return false;
  const auto steps = static_cast<int64_t>(operations / threads / u.per_step);
#pragma omp parallel num_threads(threads)
  u.body(steps);
  return true;
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
