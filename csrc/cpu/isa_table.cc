// The one table of instruction sets. A row needs its isa_*.cc compiled with the flags below and the
// macro in the second column defined for this file; all other files are compiled for the baseline
// of the architecture.
//
//   isa_scalar.cc        always                      (no flags)
//   isa_avx2.cc          ALIBI_ISA_AVX2              -mavx2 -mfma -mf16c
//   isa_avx512.cc        ALIBI_ISA_AVX512            -mavx2 -mfma -mf16c -mavx512f -mavx512bw
//                                                    -mavx512dq -mavx512vl
//                                                    -mprefer-vector-width=512
//   isa_avx512_bf16.cc   ALIBI_ISA_AVX512_BF16       the same, -mavx512bf16
//   isa_neon.cc          ALIBI_ISA_NEON              (no flags; aarch64 only)
#include "isa_table.h"

#include <cstdlib>
#include <cstring>

namespace alibi::cpu {

extern const IsaKernels kScalarKernels;
#ifdef ALIBI_ISA_AVX2
extern const IsaKernels kAvx2Kernels;
constexpr const IsaKernels* kAvx2 = &kAvx2Kernels;
#else
constexpr const IsaKernels* kAvx2 = nullptr;
#endif
#ifdef ALIBI_ISA_AVX512
extern const IsaKernels kAvx512Kernels;
constexpr const IsaKernels* kAvx512 = &kAvx512Kernels;
#else
constexpr const IsaKernels* kAvx512 = nullptr;
#endif
#ifdef ALIBI_ISA_AVX512_BF16
extern const IsaKernels kAvx512Bf16Kernels;
constexpr const IsaKernels* kAvx512Bf16 = &kAvx512Bf16Kernels;
#else
constexpr const IsaKernels* kAvx512Bf16 = nullptr;
#endif
#ifdef ALIBI_ISA_NEON
extern const IsaKernels kNeonKernels;
constexpr const IsaKernels* kNeon = &kNeonKernels;
#else
constexpr const IsaKernels* kNeon = nullptr;
#endif

namespace {

#if defined(__x86_64__)
// __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
bool has_neon() { return false; }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
#if defined(__aarch64__)
bool has_neon() { return true; }  // part of the baseline
#else
bool has_neon() { return false; }
#endif
#endif
bool has_scalar() { return true; }

constexpr Isa kIsas[] = {
    {"avx512_bf16", kAvx512Bf16, has_avx512_bf16},
    {"avx512", kAvx512, has_avx512},
    {"avx2", kAvx2, has_avx2},
    {"neon", kNeon, has_neon},
    {"scalar", &kScalarKernels, has_scalar},
};

bool can_run(const Isa& isa) { return isa.kernels != nullptr && isa.supported(); }

}  // namespace

const Isa* isa_table(int* count) {
  *count = sizeof(kIsas) / sizeof(kIsas[0]);
  return kIsas;
}

const Isa* select_isa(const char* name) {
  if (name == nullptr) name = std::getenv("ALIBI_CPU_ISA");
  const bool any = name == nullptr || *name == '\0';
  for (const Isa& isa : kIsas) {
    if (any ? can_run(isa) : std::strcmp(isa.name, name) == 0) return can_run(isa) ? &isa : nullptr;
  }
  return nullptr;
}

}  // namespace alibi::cpu
