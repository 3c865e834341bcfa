// The vector operations of the kernels on AVX-512 (F, BW, DQ, VL). vec_scalar.h documents what each
// one means.
#ifndef ALIBI_CPU_VEC_AVX512_H_
#define ALIBI_CPU_VEC_AVX512_H_

// GCC 12 warns about the deliberately undefined operands inside its own intrinsics.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "dtype.h"
#include "vec_avx2.h"

namespace alibi::cpu {
namespace {

// Half of a register of VecAvx512, in tiles of the same rows: what a masked diagonal needs. Its 2^x
// is that of whole registers.
struct VecAvx512Half : VecAvx2 {
  static constexpr int kKeys = 8;
  static constexpr int kRowVecs = 6;
  static constexpr bool kFreeAdditions = true;

  static ALIBI_INLINE Reg clamp_exponent(Reg x) { return x; }
  static ALIBI_INLINE Reg fraction(Reg x) { return _mm256_reduce_ps(x, 9); }
  static ALIBI_INLINE Reg scale_exponent(Reg p, Reg x) { return _mm256_scalef_ps(p, x); }
};

struct VecAvx512 {
  using Narrow = VecAvx512Half;
  using Reg = __m512;
  using Mask = __mmask16;
  static constexpr int kWidth = 16;
  static constexpr int kRegisters = 32;
  static constexpr int kKeys = 8;     // 8 keys x 3 row vectors = 24 accumulators,
  static constexpr int kRowVecs = 3;  // + 3 row vectors + 1 broadcast = 28 of 32 registers
  static constexpr int kParts = 2;    // the scores of 4 keys and the 2^x of 4 others, side by side
  static constexpr bool kFreeAdditions = true;

  static ALIBI_INLINE Reg set1(float x) { return _mm512_set1_ps(x); }
  static ALIBI_INLINE Reg zero() { return _mm512_setzero_ps(); }
  static ALIBI_INLINE Reg iota() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }

  static ALIBI_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static ALIBI_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static ALIBI_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static ALIBI_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static ALIBI_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static ALIBI_INLINE Reg fnma(Reg a, Reg b, Reg c) { return _mm512_fnmadd_ps(a, b, c); }
  static ALIBI_INLINE Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static ALIBI_INLINE Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static ALIBI_INLINE Reg sqrt(Reg a) { return _mm512_sqrt_ps(a); }

  static ALIBI_INLINE Mask lt(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static ALIBI_INLINE Mask le(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static ALIBI_INLINE Mask eq(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static ALIBI_INLINE Reg select(Mask m, Reg yes, Reg no) {
    return _mm512_mask_blend_ps(m, no, yes);
  }
  static ALIBI_INLINE bool any(Mask m) { return m != 0; }
  static ALIBI_INLINE bool all(Mask m) { return m == 0xffff; }

  static ALIBI_INLINE float reduce_add(Reg a) { return _mm512_reduce_add_ps(a); }
  static ALIBI_INLINE float reduce_max(Reg a) { return _mm512_reduce_max_ps(a); }
  static ALIBI_INLINE Reg sum_quads(const Reg (&r)[4]) {
    return add_neighbours(add_neighbours(r[0], r[1]), add_neighbours(r[2], r[3]));
  }
  static ALIBI_INLINE Reg sum_in_quads(const Reg (&r)[4]) {
    const Reg a = add(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
    const Reg b = add(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
    return add(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  }

  static ALIBI_INLINE Reg clamp_exponent(Reg x) { return x; }  // scale_exponent saturates by itself
  static ALIBI_INLINE Reg fraction(Reg x) {
    return _mm512_reduce_ps(x, 9);
  }  // x - floor(x); 0 at inf
  static ALIBI_INLINE Reg scale_exponent(Reg p, Reg x) { return _mm512_scalef_ps(p, x); }

  static ALIBI_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static ALIBI_INLINE Reg load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static ALIBI_INLINE Reg load(const BFloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static ALIBI_INLINE Reg load_first(const float* p, int n) {
    return _mm512_maskz_loadu_ps(first(n), p);
  }
  static ALIBI_INLINE Reg load_first(const Half* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static ALIBI_INLINE Reg load_first(const BFloat16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), p));
  }

  static ALIBI_INLINE void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static ALIBI_INLINE void store(Half* p, Reg a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static ALIBI_INLINE void store(BFloat16* p, Reg a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
  }
  static ALIBI_INLINE void store_first(float* p, Reg a, int n) {
    _mm512_mask_storeu_ps(p, first(n), a);
  }
  static ALIBI_INLINE void store_first(Half* p, Reg a, int n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static ALIBI_INLINE void store_first(BFloat16* p, Reg a, int n) {
    _mm256_mask_storeu_epi16(p, first(n), narrow(a));
  }

  // Rows become columns. Each round doubles the span of lanes that are already in place.
  static ALIBI_INLINE void transpose(Reg (&r)[kWidth]) {
    Reg t[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        r[i + 2 * k] = _mm512_shuffle_ps(t[i + k], t[i + 2 + k], 0x44);
        r[i + 2 * k + 1] = _mm512_shuffle_ps(t[i + k], t[i + 2 + k], 0xee);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 8) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        t[i + k] = _mm512_shuffle_f32x4(r[i + k], r[i + 4 + k], 0x88);
        t[i + 4 + k] = _mm512_shuffle_f32x4(r[i + k], r[i + 4 + k], 0xdd);
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      r[k] = _mm512_shuffle_f32x4(t[k], t[8 + k], 0x88);
      r[8 + k] = _mm512_shuffle_f32x4(t[k], t[8 + k], 0xdd);
    }
  }

 private:
  // Adds neighbouring quads: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
  static ALIBI_INLINE Reg add_neighbours(Reg a, Reg b) {
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  static ALIBI_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static ALIBI_INLINE Reg widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  // Round to nearest even; NaN keeps its upper bits and becomes quiet.
  static ALIBI_INLINE __m256i narrow(Reg a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
  }
};

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_VEC_AVX512_H_
