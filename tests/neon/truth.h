// ALiBi attention in float64, as plain loops over contiguous [B, H, S, D] arrays: what the kernels
// are compared with.
#ifndef ALIBI_TESTS_NEON_TRUTH_H_
#define ALIBI_TESTS_NEON_TRUTH_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "alibi_attention.h"

namespace truth {

using Values = std::vector<double>;

struct Forward {
  Values p;    // [B, Hq, Sq, Sk]
  Values out;  // [B, Hq, Sq, D]
  Values lse;  // [B, Hq, Sq]
};

struct Backward {
  Values dq, dk, dv, dslopes;  // dv stays empty without dout
};

// Offsets of the rows (b, h, i) of a query-side array and (b, h, j) of a key-side array.
struct Rows {
  const AlibiProblem& x;
  int64_t query(int64_t b, int64_t h, int64_t i) const { return (b * x.heads_q + h) * x.len_q + i; }
  int64_t key(int64_t b, int64_t h, int64_t j) const {
    return (b * x.heads_kv + h / (x.heads_q / x.heads_kv)) * x.len_k + j;
  }
};

inline int64_t position(const AlibiProblem& x, const int32_t* spans, int64_t b, int64_t i) {
  return i + (spans != nullptr ? spans[3 * b + 2] : x.len_k - x.len_q);
}

inline bool allowed(const AlibiProblem& x, const int32_t* spans, int64_t b, int64_t i, int64_t j) {
  const int64_t start = spans != nullptr ? spans[3 * b] : 0;
  const int64_t end = spans != nullptr ? spans[3 * b + 1] : x.len_k;
  return start <= j && j < end && (!x.causal || j <= position(x, spans, b, i));
}

// d bias / d slope.
inline double ramp(const AlibiProblem& x, const int32_t* spans, int64_t b, int64_t i, int64_t j) {
  const double offset = static_cast<double>(j - position(x, spans, b, i));
  return x.bias == ALIBI_SIGNED ? offset : -std::fabs(offset);
}

inline double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t x = 0; x < n; ++x) sum += a[x] * b[x];
  return sum;
}

// Calls visit(b, h, i, query row, its first element in p) for every query row.
template <typename Visit>
void for_each_row(const AlibiProblem& x, Visit visit) {
  for (int64_t b = 0; b < x.batch; ++b) {
    for (int64_t h = 0; h < x.heads_q; ++h) {
      for (int64_t i = 0; i < x.len_q; ++i) {
        const int64_t row = Rows{x}.query(b, h, i);
        visit(b, h, i, row, row * x.len_k);
      }
    }
  }
}

inline Forward forward(const AlibiProblem& x, const Values& q, const Values& k, const Values& v,
                       const float* slopes, const int32_t* spans) {
  const int64_t rows = x.batch * x.heads_q * x.len_q, d = x.head_dim;
  Forward f{Values(rows * x.len_k), Values(rows * d), Values(rows)};
  for_each_row(x, [&](int64_t b, int64_t h, int64_t i, int64_t row, int64_t first) {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t j = 0; j < x.len_k; ++j) {
      f.p[first + j] = -std::numeric_limits<double>::infinity();
      if (!allowed(x, spans, b, i, j)) continue;
      f.p[first + j] = x.scale * dot(&q[row * d], &k[Rows{x}.key(b, h, j) * d], d) +
                       slopes[h] * ramp(x, spans, b, i, j);
      largest = std::fmax(largest, f.p[first + j]);
    }
    for (int64_t j = 0; j < x.len_k; ++j) sum += std::exp(f.p[first + j] - largest);
    f.lse[row] = largest + std::log(sum);
    if (std::isinf(largest)) f.lse[row] = largest;
    for (int64_t j = 0; j < x.len_k; ++j) {
      double& p = f.p[first + j];
      p = std::isinf(largest) ? 0 : std::exp(p - f.lse[row]);
      const double* value = &v[Rows{x}.key(b, h, j) * d];
      for (int64_t c = 0; c < d; ++c) f.out[row * d + c] += p * value[c];
    }
  });
  return f;
}

// Through the softmax, from the gradient of the weights (dp [B, Hq, Sq, Sk]) and of lse ([B, Hq,
// Sq]).
inline Backward backward(const AlibiProblem& x, const Values& q, const Values& k, const Values& p,
                         const Values& dp, const Values& dlse, const int32_t* spans) {
  const int64_t d = x.head_dim;
  Backward g{Values(q.size()), Values(k.size()), {}, Values(x.heads_q)};
  for_each_row(x, [&](int64_t b, int64_t h, int64_t i, int64_t row, int64_t first) {
    const double delta = dot(&p[first], &dp[first], x.len_k) - dlse[row];
    for (int64_t j = 0; j < x.len_k; ++j) {
      const int64_t key = Rows{x}.key(b, h, j);
      const double ds = p[first + j] * (dp[first + j] - delta);
      for (int64_t c = 0; c < d; ++c) g.dq[row * d + c] += x.scale * ds * k[key * d + c];
      for (int64_t c = 0; c < d; ++c) g.dk[key * d + c] += x.scale * ds * q[row * d + c];
      g.dslopes[h] += ds * ramp(x, spans, b, i, j);
    }
  });
  return g;
}

// Through out = p v as well: dout [B, Hq, Sq, D].
inline Backward attention_backward(const AlibiProblem& x, const Values& q, const Values& k,
                                   const Values& v, const Values& p, const Values& dout,
                                   const Values& dlse, const int32_t* spans) {
  const int64_t d = x.head_dim;
  Values dp(p.size()), dv(v.size());
  for_each_row(x, [&](int64_t b, int64_t h, int64_t, int64_t row, int64_t first) {
    for (int64_t j = 0; j < x.len_k; ++j) {
      const int64_t key = Rows{x}.key(b, h, j);
      dp[first + j] = dot(&dout[row * d], &v[key * d], d);
      for (int64_t c = 0; c < d; ++c) dv[key * d + c] += p[first + j] * dout[row * d + c];
    }
  });
  Backward g = backward(x, q, k, p, dp, dlse, spans);
  g.dv = dv;
  return g;
}

}  // namespace truth

#endif  // ALIBI_TESTS_NEON_TRUTH_H_
