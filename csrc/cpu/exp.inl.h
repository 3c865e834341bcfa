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

template <class V>
ALIBI_INLINE typename V::Reg exp2(typename V::Reg x) {
  x = V::clamp_exponent(x);
  const typename V::Reg f = V::fraction(x);
  typename V::Reg p = V::set1(0.001867127838f);
  p = V::fma(p, f, V::set1(0.009017036296f));
  p = V::fma(p, f, V::set1(0.05579990894f));
  p = V::fma(p, f, V::set1(0.2401644588f));
  p = V::fma(p, f, V::set1(0.6931512952f));
  p = V::fma(p, f, V::set1(1.0f));
  return V::scale_exponent(p, x);
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_EXP_INL_H_
