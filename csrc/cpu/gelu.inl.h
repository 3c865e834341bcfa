// The exact GELU of a matrix plus a bias, and its gradient. With h = x + bias, a = |h|:
//
//   Phi(-a) = e^(-a^2 / 2) R(a)                    R(a) = e^(a^2 / 2) erfc(a / sqrt 2) / 2
//   gelu(h) = h Phi(h)   = max(h, 0) - a Phi(-a)
//   gelu'(h) = Phi(h) + h phi(h) = s for h < 0 and 1 - s for h >= 0,
//              s = Phi(-a) - a phi(a) = e^(-a^2 / 2) (R(a) - a / sqrt(2 pi))
//
// So one exponential serves both, and nothing cancels in the negative tail, where 1 + erf(h / sqrt
// 2) keeps no digit. R falls from 1/2 like 1 / a; as t times a polynomial of degree 8 in
// t = 1 / (1 + 0.35 a) it has a relative error of at most 3.2e-8 for a <= 14.5, beyond which the
// exponential is below the smallest float. The exponent a^2 / 2 * log2(e) is rounded in proportion
// to its size, hence the h^2 in the first bound. In float32, everything included:
//
//   |gelu - true|  <= 6e-7 (1 + h^2 / 2) |true| + 2^-120     for h < 0
//                  <= 3e-7 max(true, 0.25)                   for h >= 0
//   |gelu' - true| <= 5e-7
//
// a stops at 20, so that infinite h gives the limits: gelu is inf at +inf and 0 at -inf, its
// gradient 1 and 0. NaN gives NaN.
#ifndef ALIBI_CPU_GELU_INL_H_
#define ALIBI_CPU_GELU_INL_H_

#include <stdint.h>

#include "exp.inl.h"
#include "row_blocks.inl.h"

namespace alibi::cpu {
namespace {

// Only decides whether a call is worth a second thread.
constexpr double kGeluFlops = 40;  // per element

template <class V>
struct GeluParts {
  using Reg = typename V::Reg;
  Reg minus_a;      // -|h|, at least -20
  Reg exponential;  // e^(-a^2 / 2)
  Reg ratio;        // R(a)

  ALIBI_INLINE explicit GeluParts(Reg h) {
    // max returns its second argument where one is NaN.
    minus_a = V::max(V::set1(-20.0f), V::mul(V::set1(-1.0f), V::abs(h)));
    const Reg exponent = V::mul(V::mul(minus_a, minus_a), V::set1(-0.5f * kLog2E));
    exponential = exp2<V>(exponent);
    const Reg t = V::div(V::set1(1.0f), V::fnma(V::set1(0.35f), minus_a, V::set1(1.0f)));
    Reg p = V::set1(-0.02915787138044834f);
    p = V::fma(p, t, V::set1(0.1440308541059494f));
    p = V::fma(p, t, V::set1(-0.25583887100219727f));
    p = V::fma(p, t, V::set1(0.15931954979896545f));
    p = V::fma(p, t, V::set1(-0.023212261497974396f));
    p = V::fma(p, t, V::set1(0.10555246472358704f));
    p = V::fma(p, t, V::set1(0.11982129514217377f));
    p = V::fma(p, t, V::set1(0.139863520860672f));
    p = V::fma(p, t, V::set1(0.139621302485466f));
    ratio = V::mul(p, t);
  }
};

template <class V>
ALIBI_INLINE typename V::Reg gelu(typename V::Reg h) {
  const GeluParts<V> parts(h);
  return V::fma(parts.minus_a, V::mul(parts.exponential, parts.ratio), V::max(V::zero(), h));
}

template <class V>
ALIBI_INLINE typename V::Reg gelu_gradient(typename V::Reg h) {
  const GeluParts<V> parts(h);
  const auto inverse_root = V::set1(0.3989422804f);  // 1 / sqrt(2 pi)
  const auto s = V::mul(parts.exponential, V::fma(parts.minus_a, inverse_root, parts.ratio));
  return V::select(V::lt(h, V::zero()), s, V::sub(V::set1(1.0f), s));
}

template <class V>
struct GeluFwdCall {
  const AlibiBiasGeluFwdArgs& args;
  RowBlocks blocks;

  static void item(const void* self, int64_t i, float*) {
    const auto& call = *static_cast<const GeluFwdCall*>(self);
    const AlibiBiasGeluFwdArgs& a = call.args;
    for (int64_t row = call.blocks.begin(i); row < call.blocks.end(i); ++row) {
      const float* x = a.x + row * a.width;
      float* y = a.y + row * a.width;
      along_row<V>(a.width, [&](auto lanes, int64_t c, int) {
        lanes.store(y + c, gelu<V>(V::add(lanes.load(x + c), lanes.load(a.bias + c))));
      });
    }
  }
};

template <class V>
int32_t bias_gelu_fwd(const AlibiBiasGeluFwdArgs& a, int threads) {
  const GeluFwdCall<V> call{a, RowBlocks(a.rows)};
  const double flops = kGeluFlops * static_cast<double>(a.rows) * static_cast<double>(a.width);
  return run_items(call.blocks.count, threads, flops, 0, &GeluFwdCall<V>::item, &call);
}

template <class V>
struct GeluBwdCall {
  const AlibiBiasGeluBwdArgs& args;
  RowBlocks blocks;
  PartialSums<V> sums;  // dbias

  explicit GeluBwdCall(const AlibiBiasGeluBwdArgs& a)
      : args(a), blocks(a.rows), sums(blocks, 1, a.width) {}

  static void item(const void* self, int64_t i, float*) {
    const auto& call = *static_cast<const GeluBwdCall*>(self);
    const AlibiBiasGeluBwdArgs& a = call.args;
    float* dbias = call.sums.of(i, 0);
    call.sums.clear(i);
    for (int64_t row = call.blocks.begin(i); row < call.blocks.end(i); ++row) {
      const float *x = a.x + row * a.width, *dy = a.dy + row * a.width;
      float* dx = a.dx + row * a.width;
      along_row<V>(a.width, [&](auto lanes, int64_t c, int) {
        const auto h = V::add(lanes.load(x + c), lanes.load(a.bias + c));
        const auto d = V::mul(lanes.load(dy + c), gelu_gradient<V>(h));
        lanes.store(dx + c, d);
        lanes.store(dbias + c, V::add(d, lanes.load(dbias + c)));
      });
    }
  }
};

template <class V>
int32_t bias_gelu_bwd(const AlibiBiasGeluBwdArgs& a, int threads) {
  const GeluBwdCall<V> call(a);
  if (!call.sums.allocated()) return ALIBI_OUT_OF_MEMORY;
  const double flops = kGeluFlops * static_cast<double>(a.rows) * static_cast<double>(a.width);
  const int32_t status =
      run_items(call.blocks.count, threads, flops, 0, &GeluBwdCall<V>::item, &call);
  if (status != ALIBI_OK) return status;
  call.sums.add_up(0, a.dbias);
  return ALIBI_OK;
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_GELU_INL_H_
