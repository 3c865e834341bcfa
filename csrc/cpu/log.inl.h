// log2 in double precision, for as many numbers as a register of the instruction set holds doubles.
//
//   log2(x) = e + log2(m),   x = 2^e m,   m in [sqrt(1/2), sqrt(2))
//   log2(m) = 2 / ln(2) * (s + s^3 / 3 + s^5 / 5 + s^7 / 7 + s^9 / 9 + ...),   s = (m - 1) / (m + 1)
//
// |s| <= 0.1716, so what is left out is below 1.1e-9: the result is within 1.2e-9 of the true value,
// for every x that is a float32 or a sum of two. Powers of two give their exponents exactly; 0 gives
// -inf, inf gives inf, NaN gives NaN.
#ifndef ALIBI_CPU_LOG_INL_H_
#define ALIBI_CPU_LOG_INL_H_

#include <stdint.h>
#include <string.h>

#include "dtype.h"

namespace alibi::cpu {
namespace {

// n floats, doubles, and the bits of n doubles. Written out: compilers differ in what they do with a
// vector_size that depends on a template argument.
template <int n>
struct Vectors;
template <>
struct Vectors<2> {
  typedef float Floats __attribute__((vector_size(8)));
  typedef double Reg __attribute__((vector_size(16)));
  typedef uint64_t Bits __attribute__((vector_size(16)));
};
template <>
struct Vectors<4> {
  typedef float Floats __attribute__((vector_size(16)));
  typedef double Reg __attribute__((vector_size(32)));
  typedef uint64_t Bits __attribute__((vector_size(32)));
};
template <>
struct Vectors<8> {
  typedef float Floats __attribute__((vector_size(32)));
  typedef double Reg __attribute__((vector_size(64)));
  typedef uint64_t Bits __attribute__((vector_size(64)));
};

template <class V>
struct Doubles {
  static constexpr int kWidth = V::kWidth / 2;
  using Floats = typename Vectors<kWidth>::Floats;
  using Reg = typename Vectors<kWidth>::Reg;
  using Bits = typename Vectors<kWidth>::Bits;

  static ALIBI_INLINE Reg load(const float* p) {
    Floats x;
    memcpy(&x, p, sizeof(x));
    return __builtin_convertvector(x, Reg);
  }

  static ALIBI_INLINE Reg log2(Reg x) {
    constexpr uint64_t kOne = 0x3ff0000000000000, kRootHalf = 0x3fe6a09e667f3bcd;
    constexpr uint64_t kMantissa = 0x000fffffffffffff, kTwo52 = 0x4330000000000000;
    const Bits moved = reinterpret_cast<Bits>(x) + (kOne - kRootHalf);  // e steps at sqrt(1/2)
    const Reg e = reinterpret_cast<Reg>((moved >> 52) | kTwo52) - (0x1p52 + 1023.0);
    const Reg m = reinterpret_cast<Reg>((moved & kMantissa) + kRootHalf);
    const Reg s = (m - 1.0) / (m + 1.0), z = s * s;
    Reg p = z * (1.0 / 9.0) + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    p = p * z + 1.0;
    const Reg finite = s * p * 2.8853900817779268 + e;  // 2 / ln(2)
    const Reg zero = x - __builtin_inf();               // of 0: -inf; of inf and NaN: NaN, not used
    const Reg special = x == 0.0 ? zero : x;
    return (x > 0.0) & (x < __builtin_inf()) ? finite : special;
  }
};

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_LOG_INL_H_
