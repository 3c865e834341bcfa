// Layer normalisation of the rows of a matrix.
//
// Forward. A row is read from memory once and then twice more from the first-level cache: for its
// mean, for its variance, for the result. The mean m of pass one carries roundings of the size of
// the row's elements, which in a row far from zero can be larger than the row's spread. So pass two
// sums c = x - m besides c^2; that difference is exact, or nearly so, and its average d is what m
// lacks:
//
//   mean = m + d      variance = sum c^2 / n - d^2      y = (c - d) rstd gamma + beta
//
// No cancellation is left: d^2 is as small beside the variance as the roundings of m are beside it.
//
// Backward, with u = (x - mean) rstd and g = dy gamma:
//
//   dx = rstd (g - avg(g) - u avg(g u))      dgamma = sum over rows of dy u      dbeta = of dy
//
// Pass one forms the two averages, and again the d that the stored mean lacks; pass two the
// results. The sums over rows: row_blocks.inl.h.
#ifndef ALIBI_CPU_NORM_INL_H_
#define ALIBI_CPU_NORM_INL_H_

#include <stdint.h>

#include "row_blocks.inl.h"

namespace alibi::cpu {
namespace {

// Only decides whether a call is worth a second thread.
constexpr double kNormFlops = 8;  // per element

template <class V>
void norm_row(const AlibiLayerNormFwdArgs& a, int64_t row) {
  const float* x = a.x + row * a.width;
  float* y = a.y + row * a.width;
  const float n = static_cast<float>(a.width);

  Sum<V> sum;
  along_row<V>(a.width, [&](auto lanes, int64_t c, int chain) {
    sum.chains[chain] = V::add(sum.chains[chain], lanes.load(x + c));
  });
  const float rough = sum.total() / n;
  const auto m = V::set1(rough);

  Sum<V> first, second;
  along_row<V>(a.width, [&](auto lanes, int64_t c, int chain) {
    const auto centred = lanes.keep(V::sub(lanes.load(x + c), m));
    first.chains[chain] = V::add(first.chains[chain], centred);
    second.chains[chain] = V::fma(centred, centred, second.chains[chain]);
  });
  const float lack = first.total() / n;
  float variance = second.total() / n - lack * lack;
  if (variance < 0) variance = 0;  // a rounding, in constant rows
  const float rstd =
      static_cast<float>(1 / __builtin_sqrt(static_cast<double>(variance) + a.epsilon));

  const auto d = V::set1(lack), r = V::set1(rstd);
  along_row<V>(a.width, [&](auto lanes, int64_t c, int) {
    const auto unit = V::mul(V::sub(V::sub(lanes.load(x + c), m), d), r);
    lanes.store(y + c, V::fma(unit, lanes.load(a.gamma + c), lanes.load(a.beta + c)));
  });
  a.mean[row] = rough + lack;
  a.rstd[row] = rstd;
}

template <class V>
struct NormFwdCall {
  const AlibiLayerNormFwdArgs& args;
  RowBlocks blocks;

  static void item(const void* self, int64_t i, float*) {
    const auto& call = *static_cast<const NormFwdCall*>(self);
    for (int64_t r = call.blocks.begin(i); r < call.blocks.end(i); ++r) norm_row<V>(call.args, r);
  }
};

template <class V>
int32_t layer_norm_fwd(const AlibiLayerNormFwdArgs& a, int threads) {
  const NormFwdCall<V> call{a, RowBlocks(a.rows)};
  const double flops = kNormFlops * static_cast<double>(a.rows) * static_cast<double>(a.width);
  return run_items(call.blocks.count, threads, flops, 0, &NormFwdCall<V>::item, &call);
}

template <class V>
void norm_gradient_row(const AlibiLayerNormBwdArgs& a, int64_t row, float* dgamma, float* dbeta) {
  const float *x = a.x + row * a.width, *dy = a.dy + row * a.width;
  float* dx = a.dx + row * a.width;
  const float n = static_cast<float>(a.width), rstd = a.rstd[row];
  const auto m = V::set1(a.mean[row]);

  Sum<V> centred_sum, g_sum, product_sum;
  along_row<V>(a.width, [&](auto lanes, int64_t c, int chain) {
    const auto centred = lanes.keep(V::sub(lanes.load(x + c), m));
    const auto g = V::mul(lanes.load(dy + c), lanes.load(a.gamma + c));
    centred_sum.chains[chain] = V::add(centred_sum.chains[chain], centred);
    g_sum.chains[chain] = V::add(g_sum.chains[chain], g);
    product_sum.chains[chain] = V::fma(g, centred, product_sum.chains[chain]);
  });
  const float lack = centred_sum.total() / n, g_total = g_sum.total();
  const auto d = V::set1(lack), r = V::set1(rstd), g_average = V::set1(g_total / n);
  const auto along = V::set1((product_sum.total() - lack * g_total) * rstd / n);  // avg(g u)

  along_row<V>(a.width, [&](auto lanes, int64_t c, int) {
    const auto arrived = lanes.load(dy + c);
    const auto unit = V::mul(V::sub(V::sub(lanes.load(x + c), m), d), r);
    const auto g = V::mul(arrived, lanes.load(a.gamma + c));
    lanes.store(dx + c, V::mul(r, V::fnma(unit, along, V::sub(g, g_average))));
    lanes.store(dgamma + c, V::fma(arrived, unit, lanes.load(dgamma + c)));
    lanes.store(dbeta + c, V::add(arrived, lanes.load(dbeta + c)));
  });
}

template <class V>
struct NormBwdCall {
  const AlibiLayerNormBwdArgs& args;
  RowBlocks blocks;
  PartialSums<V> sums;  // dgamma, dbeta

  explicit NormBwdCall(const AlibiLayerNormBwdArgs& a)
      : args(a), blocks(a.rows), sums(blocks, 2, a.width) {}

  static void item(const void* self, int64_t i, float*) {
    const auto& call = *static_cast<const NormBwdCall*>(self);
    call.sums.clear(i);
    for (int64_t r = call.blocks.begin(i); r < call.blocks.end(i); ++r) {
      norm_gradient_row<V>(call.args, r, call.sums.of(i, 0), call.sums.of(i, 1));
    }
  }
};

template <class V>
int32_t layer_norm_bwd(const AlibiLayerNormBwdArgs& a, int threads) {
  const NormBwdCall<V> call(a);
  if (!call.sums.allocated()) return ALIBI_OUT_OF_MEMORY;
  const double flops = 2 * kNormFlops * static_cast<double>(a.rows) * static_cast<double>(a.width);
  const int32_t status =
      run_items(call.blocks.count, threads, flops, 0, &NormBwdCall<V>::item, &call);
  if (status != ALIBI_OK) return status;
  call.sums.add_up(0, a.dgamma);
  call.sums.add_up(1, a.dbeta);
  return ALIBI_OK;
}

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_NORM_INL_H_
