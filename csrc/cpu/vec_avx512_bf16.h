// AVX-512 with products of bfloat16 pairs (vdpbf16ps: two multiply-adds per lane, sums in float32).
// Everything that is not a product is VecAvx512.
//
// The scores are computed from q and k as they are: scaling q would round it once more, so the
// accumulators start from ramp / scale2, and the addition of the row's offset becomes a
// multiply-add that applies scale2. P and dS, which are float32 when they are formed, are rounded
// to bfloat16 for the products that they enter (docs/maths.md, section 4).
//
// What vdpbf16ps does differently from a float32 multiply-add: it rounds to nearest even whatever
// the process has set, and it takes subnormal operands as 0 and returns 0 where a sum is subnormal.
// Products of bfloat16 numbers are exact in float32 otherwise. So elements below 2^-126 count as 0,
// and a sum of n terms may be off by n * 2^-126 besides its roundings. The norms of prune.h cannot
// become too small by that: an element that counts as 0 adds nothing to a score either, and
// kNormFloor covers the squares.
#ifndef ALIBI_CPU_VEC_AVX512_BF16_H_
#define ALIBI_CPU_VEC_AVX512_BF16_H_

#include <string.h>

#include "operands.inl.h"
#include "vec_avx512.h"

namespace alibi::cpu {
namespace {

struct VecAvx512Bf16 : VecAvx512 {
  using Narrow = VecAvx512Bf16;  // halves gain nothing where products take half the time
  using VecAvx512::store;
  using VecAvx512::store_first;
  static ALIBI_INLINE void store(BFloat16* p, Reg a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a));
  }
  static ALIBI_INLINE void store_first(BFloat16* p, Reg a, int n) {
    _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), narrow(a));
  }
  static ALIBI_INLINE __m256i narrow(Reg a) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a));
  }
};

struct BFloat16Pair {
  uint32_t bits;  // the first in the lower half
};

template <>
struct Operands<VecAvx512Bf16> {
  using V = VecAvx512Bf16;
  using Element = BFloat16;
  using Lane = BFloat16Pair;
  using Reg = V::Reg;
  static constexpr int kTerms = 2;
  static constexpr int32_t kDtype = ALIBI_BFLOAT16;

  static ALIBI_INLINE Reg load(const Lane* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static ALIBI_INLINE Reg load(const Lane* p, int n) {
    const __mmask16 first = n < V::kWidth ? static_cast<__mmask16>((1u << n) - 1) : 0xffff;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi32(first, p));
  }
  static ALIBI_INLINE Reg broadcast(const Lane* p) { return broadcast_bits(p); }
  static ALIBI_INLINE Reg broadcast(const Element* p) { return broadcast_bits(p); }
  static ALIBI_INLINE Reg mac(Reg a, Reg b, Reg c) { return _mm512_dpbf16_ps(c, bits(a), bits(b)); }

  static ALIBI_INLINE void store(Lane* p, const Reg (&terms)[kTerms]) {
    const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(terms[1], terms[0]));
    _mm512_storeu_si512(p, interleave(halves));
  }
  static ALIBI_INLINE Reg term(Reg lanes, int i) {
    const __m512i x = _mm512_castps_si512(lanes);
    return _mm512_castsi512_ps(
        i == 0 ? _mm512_slli_epi32(x, 16)
               : _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static ALIBI_INLINE float term(const Lane* p, int i) {
    const uint32_t upper = i == 0 ? p->bits << 16 : p->bits & 0xffff0000u;
    float x;
    memcpy(&x, &upper, sizeof(x));
    return x;
  }
  static ALIBI_INLINE void store_lanes(Lane* p, Reg lanes) { _mm512_storeu_ps(p, lanes); }
  static ALIBI_INLINE Reg first_term(Reg lanes) {  // the second becomes 0
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(lanes), _mm512_set1_epi32(0xffff)));
  }

  static ALIBI_INLINE Reg load_row(const Element* p) {
    return _mm512_castsi512_ps(_mm512_loadu_si512(p));
  }
  static ALIBI_INLINE Reg load_row(const Element* p, int n) {
    return _mm512_castsi512_ps(
        _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p));
  }
  static ALIBI_INLINE void copy(const Element* p, int n, Element* dst) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), load_half(p, n));
  }
  template <class T>
  static ALIBI_INLINE void copy(const T* p, int n, float* dst) {
    V::store(dst, n == V::kWidth ? V::load(p) : V::load_first(p, n));
  }

  // One row of float32 becomes one of elements.
  static ALIBI_INLINE void store(Element* p, Reg a) { V::store(p, a); }
  // kWidth lanes (a[i], b[i]) from the first n elements of two rows; null is a row of zeros.
  static ALIBI_INLINE void pair(const Element* a, const Element* b, int n, Lane* dst) {
    __m512i halves = _mm512_castsi256_si512(load_half(a, n));
    halves = _mm512_inserti64x4(halves, b == nullptr ? _mm256_setzero_si256() : load_half(b, n), 1);
    _mm512_storeu_si512(dst, interleave(halves));
  }

  static ALIBI_INLINE Reg scale_query(Reg lanes, Reg) { return lanes; }
  static ALIBI_INLINE float ramp_factor(float scale2) { return 1.0f / scale2; }
  static ALIBI_INLINE float norm_factor(float scale2) { return __builtin_fabsf(scale2); }
  static ALIBI_INLINE Reg score(Reg acc, Reg scale2) { return V::mul(acc, scale2); }
  static ALIBI_INLINE Reg score(Reg acc, Reg scale2, Reg offset) {
    return V::fma(acc, scale2, offset);
  }

 private:
  static ALIBI_INLINE __m512bh bits(Reg a) { return reinterpret_cast<__m512bh>(a); }
  static ALIBI_INLINE Reg broadcast_bits(const void* p) {
    int32_t pair;
    memcpy(&pair, p, sizeof(pair));
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  static ALIBI_INLINE __m256i load_half(const Element* p, int n) {
    if (n == V::kWidth) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p);
  }
  // Elements i and 16 + i become lane i.
  static ALIBI_INLINE __m512i interleave(__m512i halves) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, halves);
  }
};

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_VEC_AVX512_BF16_H_
