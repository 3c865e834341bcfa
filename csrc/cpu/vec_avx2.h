// The vector operations of the kernels on AVX2 + FMA + F16C. vec_scalar.h documents what each one
// means.
#ifndef ALIBI_CPU_VEC_AVX2_H_
#define ALIBI_CPU_VEC_AVX2_H_

#include <immintrin.h>
#include <string.h>

#include "dtype.h"

namespace alibi::cpu {
namespace {

struct VecAvx2 {
  using Narrow = VecAvx2;
  using Reg = __m256;
  using Mask = __m256;  // a lane is all ones or all zeros
  static constexpr int kWidth = 8;
  static constexpr int kRegisters = 16;
  static constexpr int kKeys = 4;     // 4 keys x 3 row vectors = 12 accumulators,
  static constexpr int kRowVecs = 3;  // + 3 row vectors + 1 broadcast = all 16 registers
  static constexpr int kParts = 1;
  static constexpr bool kFreeAdditions = false;

  static ALIBI_INLINE Reg set1(float x) { return _mm256_set1_ps(x); }
  static ALIBI_INLINE Reg zero() { return _mm256_setzero_ps(); }
  static ALIBI_INLINE Reg iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

  static ALIBI_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static ALIBI_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static ALIBI_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static ALIBI_INLINE Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static ALIBI_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static ALIBI_INLINE Reg fnma(Reg a, Reg b, Reg c) { return _mm256_fnmadd_ps(a, b, c); }
  static ALIBI_INLINE Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static ALIBI_INLINE Reg abs(Reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static ALIBI_INLINE Reg sqrt(Reg a) { return _mm256_sqrt_ps(a); }

  static ALIBI_INLINE Mask lt(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static ALIBI_INLINE Mask le(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
  static ALIBI_INLINE Mask eq(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static ALIBI_INLINE Reg select(Mask m, Reg yes, Reg no) { return _mm256_blendv_ps(no, yes, m); }
  static ALIBI_INLINE bool any(Mask m) { return _mm256_movemask_ps(m) != 0; }
  static ALIBI_INLINE bool all(Mask m) { return _mm256_movemask_ps(m) == 0xff; }

  static ALIBI_INLINE float reduce_add(Reg a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static ALIBI_INLINE float reduce_max(Reg a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
  }
  static ALIBI_INLINE Reg sum_quads(const Reg (&r)[2]) {
    return add(_mm256_permute2f128_ps(r[0], r[1], 0x20), _mm256_permute2f128_ps(r[0], r[1], 0x31));
  }
  static ALIBI_INLINE Reg sum_in_quads(const Reg (&r)[4]) {
    const Reg a = add(_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
    const Reg b = add(_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
    return add(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
  }

  // The second operand of max and min is the result where one is NaN, so NaN passes.
  static ALIBI_INLINE Reg clamp_exponent(Reg x) {
    return _mm256_min_ps(set1(128.0f), _mm256_max_ps(set1(-127.0f), x));
  }
  static ALIBI_INLINE Reg fraction(Reg x) { return sub(x, _mm256_floor_ps(x)); }
  static ALIBI_INLINE Reg scale_exponent(Reg p, Reg x) {
    // Adding 1.5 * 2^23 leaves the integer in the low mantissa bits; + 127 makes it a biased
    // exponent: 0 is 0, 255 is inf.
    const Reg biased = add(_mm256_floor_ps(x), set1(12582912.0f + 127.0f));
    return mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(biased), 23)));
  }

  static ALIBI_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static ALIBI_INLINE Reg load(const Half* p) { return _mm256_cvtph_ps(load_bits(p)); }
  static ALIBI_INLINE Reg load(const BFloat16* p) { return widen(load_bits(p)); }
  static ALIBI_INLINE Reg load_first(const float* p, int n) {
    return _mm256_maskload_ps(p, first(n));
  }
  static ALIBI_INLINE Reg load_first(const Half* p, int n) {
    return _mm256_cvtph_ps(load_bits_first(p, n));
  }
  static ALIBI_INLINE Reg load_first(const BFloat16* p, int n) {
    return widen(load_bits_first(p, n));
  }

  static ALIBI_INLINE void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static ALIBI_INLINE void store(Half* p, Reg a) { store_first(p, a, kWidth); }
  static ALIBI_INLINE void store(BFloat16* p, Reg a) { store_first(p, a, kWidth); }
  static ALIBI_INLINE void store_first(float* p, Reg a, int n) {
    _mm256_maskstore_ps(p, first(n), a);
  }
  static ALIBI_INLINE void store_first(Half* p, Reg a, int n) {
    store_bits_first(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT), n);
  }
  static ALIBI_INLINE void store_first(BFloat16* p, Reg a, int n) {
    store_bits_first(p, narrow(a), n);
  }

  static ALIBI_INLINE void transpose(Reg (&r)[kWidth]) {
    Reg t[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        r[i + 2 * k] = _mm256_shuffle_ps(t[i + k], t[i + 2 + k], 0x44);
        r[i + 2 * k + 1] = _mm256_shuffle_ps(t[i + k], t[i + 2 + k], 0xee);
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const Reg low = r[k], high = r[4 + k];
      r[k] = _mm256_permute2f128_ps(low, high, 0x20);
      r[4 + k] = _mm256_permute2f128_ps(low, high, 0x31);
    }
  }

 private:
  static ALIBI_INLINE __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static ALIBI_INLINE __m128i load_bits(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static ALIBI_INLINE __m128i load_bits_first(const void* p, int n) {
    __m128i bits = _mm_setzero_si128();
    memcpy(&bits, p, 2 * static_cast<size_t>(n));
    return bits;
  }
  static ALIBI_INLINE void store_bits_first(void* p, __m128i bits, int n) {
    memcpy(p, &bits, 2 * static_cast<size_t>(n));
  }
  static ALIBI_INLINE Reg widen(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  // Round to nearest even; NaN keeps its upper bits and becomes quiet.
  static ALIBI_INLINE __m128i narrow(Reg a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i x = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  }
};

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_VEC_AVX2_H_
