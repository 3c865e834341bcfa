// 2^x for a register of floats.
//
//   2^x = 2^floor(x) * 2^f,   f = x - floor(x) in [0, 1)
//
// 2^f is a polynomial of degree 5 with the smallest maximum relative error among those that are 1
// at f = 0: 8.3e-8. With the roundings of its evaluation the result is within 2e-7 of the true
// value, relatively, wherever the true value is 2^-126 or more. Below that the result lies between
// 0 and 2^-126 (some instruction sets give subnormal numbers, others 0); from 2^128 on it is inf.
// -inf gives 0, +inf gives inf, NaN gives NaN, and integers from -126 to 127 give exact powers of
// two.
#ifndef ALIBI_CPU_EXP_INL_H_
#define ALIBI_CPU_EXP_INL_H_

#include "dtype.h"

namespace alibi::cpu {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr double kLn2 = 0.69314718055994531;

// For n registers, step by step: in program order their chains of dependent operations lie side by
// side, within what the CPU looks ahead.
template <class V, int n>
ALIBI_INLINE void exp2_each(typename V::Reg (&x)[n]) {
  constexpr float kCoefficients[] = {0.009017036296f, 0.05579990894f, 0.2401644588f, 0.6931512952f,
                                     1.0f};
  typename V::Reg f[n], p[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    x[i] = V::clamp_exponent(x[i]);
    f[i] = V::fraction(x[i]);
    p[i] = V::set1(0.001867127838f);
  }
#pragma GCC unroll 8
  for (int c = 0; c < 5; ++c) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) p[i] = V::fma(p[i], f[i], V::set1(kCoefficients[c]));
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) x[i] = V::scale_exponent(p[i], x[i]);
}

template <class V>
ALIBI_INLINE typename V::Reg exp2(typename V::Reg x) {
  typename V::Reg one[1] = {x};
  exp2_each<V>(one);
  return one[0];
}

// Weights of a softmax, which may share any factor, their unit: the sums of weights and of weighted
// values have it too, and it cancels. So the leading coefficient of the polynomial may be 1, and with
// that degree 5 takes three multiply-adds:
//
//   u = f^2 + a f + b,   2^f * unit = u (u (f + c) + d) + e
//
// and two additions, which some CPUs execute beside multiply-adds (V::kFreeAdditions). There a weight
// is within 4e-7 of unit * 2^x, relatively, where exp2 is within 2e-7 of 2^x. Two things cost that: the
// unit is a power of two, so that integers still give exact ones; and u (...) is up to twice the sum
// with e. All else is as for exp2.
template <class V>
constexpr float kWeightUnit = V::kFreeAdditions ? 512.0f : 1.0f;

template <class V, int n>
ALIBI_INLINE void weigh_each(typename V::Reg (&x)[n]) {
  if constexpr (V::kFreeAdditions) {
    typename V::Reg f[n], u[n], p[n];
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      x[i] = V::clamp_exponent(x[i]);
      f[i] = V::fraction(x[i]);
      u[i] = V::fma(V::add(f[i], V::set1(0x1.7eb1eep+1f)), f[i], V::set1(0x1.c79d1cp+3f));
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      p[i] = V::fma(V::add(f[i], V::set1(-0x1.7723f8p+0f)), u[i], V::set1(0x1.72825p+6f));
    }
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) p[i] = V::fma(p[i], u[i], V::set1(-0x1.fdc20cp+8f));
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) x[i] = V::scale_exponent(p[i], x[i]);
  } else {
    exp2_each<V>(x);
  }
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_EXP_INL_H_
