// The CUDA language as far as the kernels use it, for a C++ compiler: qualifiers, vector and 16-bit
// types, bit casts.
#ifndef SIMT_TYPES_H_
#define SIMT_TYPES_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct Uint3 {
  unsigned x, y, z;
};
struct float2 {
  float x, y;
};

inline float __uint_as_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}
inline int __float_as_int(float f) { return static_cast<int>(__float_as_uint(f)); }

namespace simt {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

inline float bfloat_value(Bfloat b) { return __uint_as_float(static_cast<uint32_t>(b.bits) << 16); }

inline float half_value(Half h) {
  const int exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
  float f;
  if (exponent == 31 && mantissa != 0)
    return __uint_as_float(0x7fffffff);  // of every NaN, recorded
  if (exponent == 31) {
    f = INFINITY;
  } else if (exponent == 0) {
    f = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    f = __uint_as_float(static_cast<uint32_t>(exponent + 112) << 23 |
                        static_cast<uint32_t>(mantissa) << 13);
  }
  return h.bits >> 15 != 0 ? -f : f;
}

// Both round to nearest, ties to even.
inline Bfloat to_bfloat(float f) {
  if (f != f) return {0x7fff};
  const uint32_t u = __float_as_uint(f);
  return {static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

inline Half to_half(float f) {
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  const float a = std::fabs(f);
  if (f != f) return {0x7fff};
  if (a >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (a < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(a * 0x1p24f)))};
  }
  uint32_t u = __float_as_uint(a);
  u += 0xfff + (u >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((u >> 13) - (112 << 10)))};
}

}  // namespace simt

#endif  // SIMT_TYPES_H_
