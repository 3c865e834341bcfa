// The vector operations of the kernels on NEON (aarch64). vec_scalar.h documents what each one
// means.
#ifndef ALIBI_CPU_VEC_NEON_H_
#define ALIBI_CPU_VEC_NEON_H_

#include <arm_neon.h>
#include <string.h>

#include "dtype.h"

namespace alibi::cpu {
namespace {

struct VecNeon {
  using Narrow = VecNeon;
  using Reg = float32x4_t;
  using Mask = uint32x4_t;
  static constexpr int kWidth = 4;
  static constexpr int kRegisters = 32;
  static constexpr int kKeys = 4;     // 4 keys x 6 row vectors = 24 accumulators,
  static constexpr int kRowVecs = 6;  // + 6 row vectors + 1 broadcast = 31 of 32 registers
  static constexpr int kParts = 1;
  static constexpr bool kFreeAdditions = false;

  static ALIBI_INLINE Reg set1(float x) { return vdupq_n_f32(x); }
  static ALIBI_INLINE Reg zero() { return vdupq_n_f32(0.0f); }
  static ALIBI_INLINE Reg iota() { return Reg{0, 1, 2, 3}; }

  static ALIBI_INLINE Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static ALIBI_INLINE Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static ALIBI_INLINE Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static ALIBI_INLINE Reg div(Reg a, Reg b) { return vdivq_f32(a, b); }
  static ALIBI_INLINE Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static ALIBI_INLINE Reg fnma(Reg a, Reg b, Reg c) { return vfmsq_f32(c, a, b); }
  static ALIBI_INLINE Reg max(Reg a, Reg b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static ALIBI_INLINE Reg abs(Reg a) { return vabsq_f32(a); }
  static ALIBI_INLINE Reg sqrt(Reg a) { return vsqrtq_f32(a); }

  static ALIBI_INLINE Mask lt(Reg a, Reg b) { return vcltq_f32(a, b); }
  static ALIBI_INLINE Mask le(Reg a, Reg b) { return vcleq_f32(a, b); }
  static ALIBI_INLINE Mask eq(Reg a, Reg b) { return vceqq_f32(a, b); }
  static ALIBI_INLINE Reg select(Mask m, Reg yes, Reg no) { return vbslq_f32(m, yes, no); }
  static ALIBI_INLINE bool any(Mask m) { return vmaxvq_u32(m) != 0; }
  static ALIBI_INLINE bool all(Mask m) { return vminvq_u32(m) != 0; }

  static ALIBI_INLINE float reduce_add(Reg a) { return vaddvq_f32(a); }
  static ALIBI_INLINE float reduce_max(Reg a) { return vmaxvq_f32(a); }
  static ALIBI_INLINE Reg sum_quads(const Reg (&r)[1]) { return r[0]; }
  static ALIBI_INLINE Reg sum_in_quads(const Reg (&r)[4]) {
    return vpaddq_f32(vpaddq_f32(r[0], r[1]), vpaddq_f32(r[2], r[3]));
  }

  static ALIBI_INLINE Reg clamp_exponent(Reg x) {  // vmaxq and vminq pass NaN
    return vminq_f32(set1(128.0f), vmaxq_f32(set1(-127.0f), x));
  }
  static ALIBI_INLINE Reg fraction(Reg x) { return vsubq_f32(x, vrndmq_f32(x)); }
  static ALIBI_INLINE Reg scale_exponent(Reg p, Reg x) {
    const int32x4_t biased = vaddq_s32(vcvtmq_s32_f32(x), vdupq_n_s32(127));
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
  }

  static ALIBI_INLINE Reg load(const float* p) { return vld1q_f32(p); }
  static ALIBI_INLINE Reg load(const Half* p) { return load_first(p, kWidth); }
  static ALIBI_INLINE Reg load(const BFloat16* p) { return load_first(p, kWidth); }
  static ALIBI_INLINE Reg load_first(const float* p, int n) {
    Reg r = zero();
    memcpy(&r, p, 4 * static_cast<size_t>(n));
    return r;
  }
  static ALIBI_INLINE Reg load_first(const Half* p, int n) {
    return vcvt_f32_f16(vreinterpret_f16_u16(load_bits(p, n)));
  }
  static ALIBI_INLINE Reg load_first(const BFloat16* p, int n) {
    return vreinterpretq_f32_u32(vshll_n_u16(load_bits(p, n), 16));
  }

  static ALIBI_INLINE void store(float* p, Reg a) { vst1q_f32(p, a); }
  static ALIBI_INLINE void store(Half* p, Reg a) { store_first(p, a, kWidth); }
  static ALIBI_INLINE void store(BFloat16* p, Reg a) { store_first(p, a, kWidth); }
  static ALIBI_INLINE void store_first(float* p, Reg a, int n) {
    memcpy(p, &a, 4 * static_cast<size_t>(n));
  }
  static ALIBI_INLINE void store_first(Half* p, Reg a, int n) {
    const uint16x4_t bits = vreinterpret_u16_f16(vcvt_f16_f32(a));
    memcpy(p, &bits, 2 * static_cast<size_t>(n));
  }
  static ALIBI_INLINE void store_first(BFloat16* p, Reg a, int n) {
    const uint16x4_t bits = narrow(a);
    memcpy(p, &bits, 2 * static_cast<size_t>(n));
  }

  static ALIBI_INLINE void transpose(Reg (&r)[kWidth]) {
    const Reg a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]);
    const Reg c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
    r[1] = vcombine_f32(vget_low_f32(b), vget_low_f32(d));
    r[2] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
    r[3] = vcombine_f32(vget_high_f32(b), vget_high_f32(d));
  }

 private:
  static ALIBI_INLINE uint16x4_t load_bits(const void* p, int n) {
    uint16x4_t bits = vdup_n_u16(0);
    memcpy(&bits, p, 2 * static_cast<size_t>(n));
    return bits;
  }
  // Round to nearest even; NaN keeps its upper bits and becomes quiet.
  static ALIBI_INLINE uint16x4_t narrow(Reg a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16);
  }
};

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_VEC_NEON_H_
