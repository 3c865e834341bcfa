// What the products multiply. A register of operands has kWidth lanes of 32 bits; a lane holds
// kTerms elements, and one multiply-add sums kTerms products per lane:
//
//   float32            kTerms = 1     a lane is a number, mac is fma
//   bfloat16 pairs     kTerms = 2     c + a.first * b.first + a.second * b.second
//
// A sum over x therefore takes its operands `kTerms values of x at a time`: Q^T and K hold pairs of
// head dims, P^T and V pairs of keys, and the sums over rows of the backward pairs of rows. Along
// the axis that is broadcast (K, or P^T in add_outer) such a pair is just two neighbouring elements
// of a row; along the lanes it is a Lane, which the functions of tile_io.inl.h put together.
//
// This is the form of every vector type whose products are float32. VecAvx512Bf16 has its own
// (vec_avx512_bf16.h).
#ifndef ALIBI_CPU_OPERANDS_INL_H_
#define ALIBI_CPU_OPERANDS_INL_H_

#include <stdint.h>

#include "../alibi_attention.h"
#include "dtype.h"

namespace alibi::cpu {
namespace {

template <class V>
struct Operands {
  using Element = float;
  using Lane = float;
  using Reg = typename V::Reg;
  static constexpr int kTerms = 1;
  static constexpr int32_t kDtype = ALIBI_FLOAT32;  // of Element

  static ALIBI_INLINE Reg load(const Lane* p) { return V::load(p); }
  static ALIBI_INLINE Reg load(const Lane* p, int n) {  // the first n lanes, or all
    return n < V::kWidth ? V::load_first(p, n) : V::load(p);
  }
  // The same kTerms elements in every lane.
  static ALIBI_INLINE Reg broadcast(const Element* p) { return V::set1(*p); }
  static ALIBI_INLINE Reg mac(Reg a, Reg b, Reg c) { return V::fma(a, b, c); }

  // kTerms registers of float32 become one of lanes; lanes become the float32 of one term.
  static ALIBI_INLINE void store(Lane* p, const Reg (&terms)[kTerms]) { V::store(p, terms[0]); }
  static ALIBI_INLINE Reg term(Reg lanes, int) { return lanes; }
  static ALIBI_INLINE float term(const Lane* p, int) { return *p; }

  // kWidth * kTerms elements of a row as a register of lanes; the first n of them, then zeros.
  template <class T>
  static ALIBI_INLINE Reg load_row(const T* p) {
    return V::load(p);
  }
  template <class T>
  static ALIBI_INLINE Reg load_row(const T* p, int n) {
    return V::load_first(p, n);
  }
  // n <= kWidth elements, and zeros up to kWidth.
  template <class T>
  static ALIBI_INLINE void copy(const T* p, int n, Element* dst) {
    V::store(dst, n == V::kWidth ? V::load(p) : V::load_first(p, n));
  }

  // Where the factor scale2 = scale * log2(e) of the scores goes: into Q^T. It costs nothing there,
  // and float32 loses nothing by it.
  static ALIBI_INLINE Reg scale_query(Reg lanes, Reg factor) { return V::mul(lanes, factor); }
  static ALIBI_INLINE float ramp_factor(float) { return 1.0f; }
  static ALIBI_INLINE float norm_factor(float) { return 1.0f; }
  static ALIBI_INLINE Reg score(Reg acc, Reg) { return acc; }
  static ALIBI_INLINE Reg score(Reg acc, Reg, Reg offset) { return V::add(acc, offset); }
};

template <class V>
using Element = typename Operands<V>::Element;
template <class V>
using Lane = typename Operands<V>::Lane;
template <class V>
constexpr int kTerms = Operands<V>::kTerms;

// Lanes that hold n elements.
template <class V>
constexpr int lanes_of(int n) {
  return (n + kTerms<V> - 1) / kTerms<V>;
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_OPERANDS_INL_H_
