// The vector operations of the kernels in portable C++: a register is four floats, the compiler
// maps them to whatever the CPU has. This file is also the documentation of the interface;
// vec_avx2.h, vec_avx512.h and vec_neon.h offer the same names.
//
//   kWidth    floats in a register          kKeys     keys (or head dims) of one micro-kernel
//   kRowVecs  registers of query rows in a tile: kKeys * kRowVecs accumulators have to fit in the
//   register file
//   kRegisters  how many registers the CPU has
//   kParts    parts of such a micro-kernel that take turns (TileWeights in scores.inl.h); 1: it has none
//   kFreeAdditions  additions run beside multiply-adds (exp.inl.h)
#ifndef ALIBI_CPU_VEC_SCALAR_H_
#define ALIBI_CPU_VEC_SCALAR_H_

#include <stdint.h>
#include <string.h>

#include "dtype.h"

namespace alibi::cpu {
namespace {

struct VecScalar {
  // What computes the blocks that a mask crosses: this type, or one of narrower registers for tiles
  // of the same rows (kWidth * kRowVecs), where half a register takes half the time.
  using Narrow = VecScalar;
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Mask __attribute__((vector_size(16)));  // a lane is all ones or all zeros
  static constexpr int kWidth = 4;
  static constexpr int kRegisters = 16;
  static constexpr int kKeys = 4;
  static constexpr int kRowVecs = 3;
  static constexpr int kParts = 1;
  static constexpr bool kFreeAdditions = false;

  static ALIBI_INLINE Reg set1(float x) { return Reg{x, x, x, x}; }
  static ALIBI_INLINE Reg zero() { return Reg{}; }
  static ALIBI_INLINE Reg iota() { return Reg{0, 1, 2, 3}; }

  static ALIBI_INLINE Reg add(Reg a, Reg b) { return a + b; }
  static ALIBI_INLINE Reg sub(Reg a, Reg b) { return a - b; }
  static ALIBI_INLINE Reg mul(Reg a, Reg b) { return a * b; }
  static ALIBI_INLINE Reg div(Reg a, Reg b) { return a / b; }
  static ALIBI_INLINE Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }   // one or two roundings
  static ALIBI_INLINE Reg fnma(Reg a, Reg b, Reg c) { return c - a * b; }  // c - a * b
  static ALIBI_INLINE Reg max(Reg a, Reg b) { return a > b ? a : b; }      // b where one is NaN
  static ALIBI_INLINE Reg abs(Reg a) {
    return reinterpret_cast<Reg>(reinterpret_cast<Mask>(a) & 0x7fffffff);
  }
  static ALIBI_INLINE Reg sqrt(Reg a) {
    return Reg{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]),
               __builtin_sqrtf(a[3])};
  }

  static ALIBI_INLINE Mask lt(Reg a, Reg b) { return a < b; }  // comparisons are false at NaN
  static ALIBI_INLINE Mask le(Reg a, Reg b) { return a <= b; }
  static ALIBI_INLINE Mask eq(Reg a, Reg b) { return a == b; }
  static ALIBI_INLINE Reg select(Mask m, Reg yes, Reg no) { return m ? yes : no; }
  static ALIBI_INLINE bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
  static ALIBI_INLINE bool all(Mask m) { return (m[0] & m[1] & m[2] & m[3]) != 0; }

  static ALIBI_INLINE float reduce_add(Reg a) { return (a[0] + a[1]) + (a[2] + a[3]); }
  static ALIBI_INLINE float reduce_max(Reg a) {  // of numbers
    const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
    return x > y ? x : y;
  }
  // A register is kWidth / 4 quads of lanes. Quad i is the sum of the quads of r[i].
  static ALIBI_INLINE Reg sum_quads(const Reg (&r)[1]) { return r[0]; }
  // In every quad, lane i is the sum of the lanes of this quad of r[i].
  static ALIBI_INLINE Reg sum_in_quads(const Reg (&r)[4]) {
    return Reg{reduce_add(r[0]), reduce_add(r[1]), reduce_add(r[2]), reduce_add(r[3])};
  }

  // The three pieces of 2^x (exp.inl.h): x limited to where the other two work (NaN passes), x -
  // floor(x), p * 2^floor(x).
  static ALIBI_INLINE Reg clamp_exponent(Reg x) {
    x = x < -127.0f ? set1(-127.0f) : x;
    return x > 128.0f ? set1(128.0f) : x;
  }
  static ALIBI_INLINE Reg fraction(Reg x) { return x - floor(x); }
  static ALIBI_INLINE Reg scale_exponent(Reg p, Reg x) {
    // Adding 1.5 * 2^23 leaves the integer in the low mantissa bits; + 127 makes it a biased
    // exponent: 0 is 0, 255 is inf.
    const Reg biased = floor(x) + (12582912.0f + 127.0f);
    return p * reinterpret_cast<Reg>(reinterpret_cast<Mask>(biased) << 23);
  }

  static ALIBI_INLINE Reg load(const float* p) {
    Reg r;
    memcpy(&r, p, sizeof(r));
    return r;
  }
  static ALIBI_INLINE Reg load(const Half* p) {
    return Reg{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
  }
  static ALIBI_INLINE Reg load(const BFloat16* p) {
    return Reg{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
  }
  // The first n elements (0 <= n <= kWidth), zeros behind them. Touches no memory beyond them.
  template <class T>
  static ALIBI_INLINE Reg load_first(const T* p, int n) {
    T buffer[kWidth] = {};
    for (int i = 0; i < n; ++i) buffer[i] = p[i];
    return load(buffer);
  }

  static ALIBI_INLINE void store(float* p, Reg a) { memcpy(p, &a, sizeof(a)); }
  static ALIBI_INLINE void store(Half* p, Reg a) { store_first(p, a, kWidth); }
  static ALIBI_INLINE void store(BFloat16* p, Reg a) { store_first(p, a, kWidth); }
  // The first n lanes, rounded to nearest even.
  template <class T>
  static ALIBI_INLINE void store_first(T* p, Reg a, int n) {
    for (int i = 0; i < n; ++i) narrow(a[i], p + i);
  }

  static ALIBI_INLINE void transpose(Reg (&r)[kWidth]) {
    const Reg a = r[0], b = r[1], c = r[2], d = r[3];
    r[0] = Reg{a[0], b[0], c[0], d[0]};
    r[1] = Reg{a[1], b[1], c[1], d[1]};
    r[2] = Reg{a[2], b[2], c[2], d[2]};
    r[3] = Reg{a[3], b[3], c[3], d[3]};
  }

 private:
  static ALIBI_INLINE Reg floor(Reg x) {  // for |x| < 2^22
    const Reg nearest = (x + 12582912.0f) - 12582912.0f;
    return nearest > x ? nearest - 1.0f : nearest;
  }
  static ALIBI_INLINE float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
  }
  static ALIBI_INLINE uint32_t to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
  }
  static ALIBI_INLINE float widen(BFloat16 x) {
    return from_bits(static_cast<uint32_t>(x.bits) << 16);
  }
  // Moving the 15 bits into place scales the value by 2^-112 whether it is normal or not; one
  // product brings it back.
  static ALIBI_INLINE float widen(Half x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
    const bool special = (x.bits & 0x7c00) == 0x7c00;
    const uint32_t bits =
        special ? magnitude | 0x7f800000 : to_bits(from_bits(magnitude) * 0x1p112f);
    return from_bits(bits | sign);
  }
  static ALIBI_INLINE void narrow(float x, float* out) { *out = x; }
  static ALIBI_INLINE void narrow(float x, BFloat16* out) {
    const uint32_t bits = to_bits(x);
    const uint32_t rounded = x != x ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
    out->bits = static_cast<uint16_t>(rounded >> 16);
  }
  static ALIBI_INLINE void narrow(float x, Half* out) {
    const uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    uint32_t half;
    if (magnitude >= 0x47800000) {  // 2^16 and above: inf; NaN becomes quiet
      half = magnitude > 0x7f800000 ? 0x7e00 | ((magnitude >> 13) & 0x3ff) : 0x7c00;
    } else if (magnitude <
               0x38800000) {  // below 2^-14: adding 0.5 aligns and rounds the mantissa at 2^-24
      half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000;
    } else {
      half = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    }
    out->bits = static_cast<uint16_t>(half | sign);
  }
};

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_VEC_SCALAR_H_
