// layer_norm and bias_gelu against float64 loops, for native_test.cc. Outputs start as NaN between
// guard words.
#ifndef ALIBI_TESTS_NEON_LAYER_CASES_H_
#define ALIBI_TESTS_NEON_LAYER_CASES_H_

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "alibi_layer.h"

namespace layer_cases {

constexpr int kGuard = 16;
constexpr float kGuardValue = 12345.0f;

struct Floats {
  std::vector<float> all;
  explicit Floats(int64_t n) : all(n + 2 * kGuard, std::numeric_limits<float>::quiet_NaN()) {
    for (int i = 0; i < kGuard; ++i) all[i] = all[all.size() - 1 - i] = kGuardValue;
  }
  Floats(int64_t n, double mean, double spread, std::mt19937* generator) : Floats(n) {
    std::normal_distribution<double> normal(mean, spread);
    for (int64_t i = 0; i < n; ++i) data()[i] = static_cast<float>(normal(*generator));
  }
  float* data() { return all.data() + kGuard; }
  double operator[](int64_t i) const { return all[kGuard + i]; }
  bool guards_intact() const {
    for (int i = 0; i < kGuard; ++i) {
      if (all[i] != kGuardValue || all[all.size() - 1 - i] != kGuardValue) return false;
    }
    return true;
  }
};

// Errors may be 16 float32 roundings of the largest element, and `floor` where that is tiny; sums
// over the rows of these cases stay below that too.
inline int failed(const char* what, const Floats& got, const std::vector<double>& want,
                  double floor) {
  double largest = floor, worst = 0;
  for (double x : want) largest = std::fmax(largest, std::fabs(x));
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(got[static_cast<int64_t>(i)] - want[i]);
    if (!(error <= worst)) worst = error;  // NaN too
  }
  if (worst <= 16 * 0x1p-23 * largest && got.guards_intact()) return 0;
  std::printf("FAIL %s: worst error %g of largest %g, guards %s\n", what, worst, largest,
              got.guards_intact() ? "intact" : "broken");
  return 1;
}

inline int norm(int64_t rows, int64_t width, double mean, AlibiOptions* options) {
  std::mt19937 generator(static_cast<unsigned>(rows * 1000 + width));
  Floats x(rows * width, mean, 1, &generator), dy(rows * width, 0, 1, &generator);
  Floats gamma(width, 1, 0.5, &generator), beta(width, 0, 1, &generator);
  Floats y(rows * width), m(rows), r(rows), dx(rows * width), dgamma(width), dbeta(width);
  const float epsilon = 1e-5f;
  const AlibiLayerNormFwdArgs fwd{rows,        width,    epsilon,  x.data(), gamma.data(),
                                  beta.data(), y.data(), m.data(), r.data(), options};
  const AlibiLayerNormBwdArgs bwd{rows,          width,        x.data(),  gamma.data(),
                                  m.data(),      r.data(),     dy.data(), dx.data(),
                                  dgamma.data(), dbeta.data(), options};
  if (alibi_layer_norm_fwd(&fwd, nullptr) != 0 || alibi_layer_norm_bwd(&bwd, nullptr) != 0) {
    std::printf("FAIL layer_norm returned an error\n");
    return 1;
  }
  std::vector<double> ty(rows * width), tdx(rows * width), tdg(width), tdb(width);
  const double n = static_cast<double>(width);
  for (int64_t i = 0; i < rows; ++i) {
    double average = 0, variance = 0, g_sum = 0, gu_sum = 0;
    for (int64_t c = 0; c < width; ++c) average += x[i * width + c] / n;
    for (int64_t c = 0; c < width; ++c) variance += std::pow(x[i * width + c] - average, 2) / n;
    const double rstd = 1 / std::sqrt(variance + static_cast<double>(epsilon));
    for (int64_t c = 0; c < width; ++c) {
      const double u = (x[i * width + c] - average) * rstd, d = dy[i * width + c];
      ty[i * width + c] = u * gamma[c] + beta[c];
      g_sum += d * gamma[c];
      gu_sum += d * gamma[c] * u;
      tdg[c] += d * u;
      tdb[c] += d;
    }
    for (int64_t c = 0; c < width; ++c) {
      const double u = (x[i * width + c] - average) * rstd;
      tdx[i * width + c] = rstd * (dy[i * width + c] * gamma[c] - g_sum / n - u * gu_sum / n);
    }
  }
  // A row of one element has rstd = epsilon^-1/2 = 316 and terms of dx of that size.
  const double terms = width == 1 ? 1000 : 1;
  return failed("norm y", y, ty, 1) + failed("norm dx", dx, tdx, terms) +
         failed("norm dgamma", dgamma, tdg, 1) + failed("norm dbeta", dbeta, tdb, 1);
}

inline int gelu(int64_t rows, int64_t width, AlibiOptions* options) {
  std::mt19937 generator(static_cast<unsigned>(rows * 1000 + width));
  Floats x(rows * width, 0, 3, &generator), dy(rows * width, 0, 1, &generator);
  Floats bias(width, 0, 1, &generator), y(rows * width), dx(rows * width), dbias(width);
  const AlibiBiasGeluFwdArgs fwd{rows, width, x.data(), bias.data(), y.data(), options};
  const AlibiBiasGeluBwdArgs bwd{rows,      width,     x.data(),     bias.data(),
                                 dy.data(), dx.data(), dbias.data(), options};
  if (alibi_bias_gelu_fwd(&fwd, nullptr) != 0 || alibi_bias_gelu_bwd(&bwd, nullptr) != 0) {
    std::printf("FAIL bias_gelu returned an error\n");
    return 1;
  }
  std::vector<double> ty(rows * width), tdx(rows * width), tdb(width);
  for (int64_t i = 0; i < rows * width; ++i) {
    const double h = x[i] + bias[i % width], below = std::erfc(-h / std::sqrt(2.0)) / 2;
    ty[i] = h * below;
    tdx[i] = dy[i] * (below + h * std::exp(-h * h / 2) * 0.3989422804014327);
    tdb[i % width] += tdx[i];
  }
  return failed("gelu y", y, ty, 1) + failed("gelu dx", dx, tdx, 1) +
         failed("gelu dbias", dbias, tdb, 1);
}

// Runs every case; returns the number of failures and counts the cases.
inline int run(const char* isa, int* cases) {
  AlibiOptions options{2, isa, nullptr};
  int failures = 0;
  for (int64_t rows : {1, 3, 70}) {
    for (int64_t width : {1, 7, 16, 100}) {
      failures += norm(rows, width, 0, &options) + norm(rows, width, 30, &options) +
                  gelu(rows, width, &options);
      *cases += 3;
    }
  }
  return failures;
}

}  // namespace layer_cases

#endif  // ALIBI_TESTS_NEON_LAYER_CASES_H_
