// Runs the CPU kernels against float64 loops, without Python: for cross-compiled builds under an
// emulator.
//
//   native_test [--verbose] ISA...      every ISA named has to be built and to run here
//
// Each case runs every entry point in every dtype and ISA. Outputs start as NaN between guard
// words, so that an element that is not written, or one written outside, is seen. Bounds: see
// `tolerance`.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "alibi_attention.h"
#include "layer_cases.h"
#include "truth.h"

namespace {

using truth::Values;

constexpr int64_t kGuard = 16;  // elements before and after every output
constexpr uint8_t kGuardByte = 0xA5;

// float16 and bfloat16 as 16-bit patterns, rounded to nearest even.

uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

double half_to_double(uint16_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 1023;
  double x = std::numeric_limits<double>::quiet_NaN();
  if (exponent == 0) x = std::ldexp(mantissa, -24);
  if (exponent > 0 && exponent < 31) x = std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31 && mantissa == 0) x = std::numeric_limits<double>::infinity();
  return h & 0x8000 ? -x : x;
}

// For the normal range, where the test's inputs lie.
uint16_t double_to_half(double x) {
  int exponent;
  const double fraction = std::frexp(std::fabs(x), &exponent);  // |x| = fraction * 2^exponent
  if (fraction == 0) return std::signbit(x) ? 0x8000 : 0;
  const double unit = exponent < -13 ? -24 : exponent - 11;  // subnormals share one unit
  const auto steps =
      static_cast<int>(std::nearbyint(std::ldexp(std::fabs(x), -static_cast<int>(unit))));
  const int magnitude = exponent < -13 ? steps : (exponent + 13) * 1024 + steps;
  return static_cast<uint16_t>(magnitude | (std::signbit(x) ? 0x8000 : 0));
}

uint16_t double_to_bfloat16(double x) {
  const uint32_t u = bits_of(static_cast<float>(x));
  return static_cast<uint16_t>((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

struct Dtype {
  AlibiDtype code;
  const char* name;
  int64_t size;
  double epsilon;  // spacing of numbers at 1
};
const Dtype kDtypes[] = {{ALIBI_FLOAT32, "float32", 4, 0x1p-23},
                         {ALIBI_FLOAT16, "float16", 2, 0x1p-10},
                         {ALIBI_BFLOAT16, "bfloat16", 2, 0x1p-7}};

// What an error may be, relative to the largest element of the truth: rounding to the dtype is half
// an epsilon, float16 and bfloat16 gradients see the rounding of `out` and `p` again, and float32
// sums of a few hundred terms add the rest.
double tolerance(const Dtype& dtype) {
  return (dtype.code == ALIBI_FLOAT32 ? 64 : 4) * dtype.epsilon;
}

// A tensor in one of the dtypes, [B, H, S, X] or [B, S, H, X] in memory, between guard words.
class Buffer {
 public:
  Buffer(const Dtype& dtype, int64_t b, int64_t h, int64_t s, int64_t x, bool bsnd)
      : dtype_(dtype),
        sizes_{b, h, s, x},
        bytes_((b * h * s * x + 2 * kGuard) * dtype.size, kGuardByte) {
    strides_ = {h * s * x, bsnd ? x : s * x, bsnd ? h * x : x};
    for (int64_t n = 0; n < count(); ++n) store(n, std::numeric_limits<double>::quiet_NaN());
  }

  int64_t count() const { return sizes_[0] * sizes_[1] * sizes_[2] * sizes_[3]; }

  AlibiTensor tensor() { return {data(), strides_[0], strides_[1], strides_[2]}; }
  float* floats() { return reinterpret_cast<float*>(data()); }

  // Fills from contiguous values, and rounds the values to what the buffer now holds.
  void fill(Values* values) {
    for (int64_t n = 0; n < count(); ++n) {
      store(offset(n), (*values)[n]);
      (*values)[n] = load(offset(n));
    }
  }

  Values values() const {
    Values result(count());
    for (int64_t n = 0; n < count(); ++n) result[n] = load(offset(n));
    return result;
  }

  bool guards_intact() const {
    const int64_t guard = kGuard * dtype_.size, size = static_cast<int64_t>(bytes_.size());
    for (int64_t n = 0; n < guard; ++n) {
      if (bytes_[n] != kGuardByte || bytes_[size - 1 - n] != kGuardByte) return false;
    }
    return true;
  }

 private:
  uint8_t* data() { return bytes_.data() + kGuard * dtype_.size; }

  int64_t offset(int64_t n) const {  // of the n-th element in [B, H, S, X] order
    const int64_t x = n % sizes_[3], s = n / sizes_[3] % sizes_[2];
    const int64_t h = n / (sizes_[3] * sizes_[2]) % sizes_[1],
                  b = n / (sizes_[3] * sizes_[2] * sizes_[1]);
    return b * strides_[0] + h * strides_[1] + s * strides_[2] + x;
  }

  void store(int64_t n, double value) {
    const auto single = static_cast<float>(value);
    uint16_t half =
        dtype_.code == ALIBI_FLOAT16 ? double_to_half(value) : double_to_bfloat16(value);
    if (std::isnan(value)) half = 0x7FFF;
    const void* source = dtype_.size == 4 ? static_cast<const void*>(&single) : &half;
    std::memcpy(data() + n * dtype_.size, source, dtype_.size);
  }

  double load(int64_t n) const {
    const uint8_t* source = bytes_.data() + (kGuard + n) * dtype_.size;
    uint16_t half;
    float single;
    std::memcpy(&half, source, 2);
    if (dtype_.size == 4) std::memcpy(&single, source, 4);
    if (dtype_.code == ALIBI_FLOAT16) return half_to_double(half);
    return dtype_.code == ALIBI_BFLOAT16 ? float_of(static_cast<uint32_t>(half) << 16) : single;
  }

  const Dtype& dtype_;
  std::vector<int64_t> sizes_, strides_;
  std::vector<uint8_t> bytes_;
};

struct Case {
  const char* name;
  int64_t b, hq, hkv, sq, sk, d;
  bool causal;
  AlibiBias bias;
  bool bsnd;
  std::vector<int32_t> spans;  // empty: null
};
const Case kCases[] = {
    {"causal", 1, 2, 2, 97, 97, 32, true, ALIBI_SYMMETRIC, false, {}},
    {"one row of one key", 1, 1, 1, 1, 1, 1, true, ALIBI_SYMMETRIC, false, {}},
    {"symmetric encoder, odd head_dim", 2, 3, 3, 33, 33, 5, false, ALIBI_SYMMETRIC, true, {}},
    {"signed encoder", 1, 2, 2, 50, 50, 40, false, ALIBI_SIGNED, false, {}},
    {"grouped heads, decode", 2, 6, 2, 1, 131, 64, true, ALIBI_SYMMETRIC, false, {}},
    {"grouped heads, chunk, BSND", 1, 4, 1, 13, 77, 80, true, ALIBI_SIGNED, true, {}},
    {"padding, nothing allowed",
     3,
     2,
     2,
     29,
     29,
     16,
     true,
     ALIBI_SYMMETRIC,
     false,
     {5, 29, 0, 0, 20, 0, 7, 7, 3}},
    {"static cache", 2, 2, 1, 7, 200, 24, true, ALIBI_SYMMETRIC, true, {0, 60, 53, 0, 200, 193}},
    {"widest head", 1, 1, 1, 19, 35, 256, true, ALIBI_SYMMETRIC, false, {}},
    {"no keys", 1, 2, 2, 3, 0, 8, false, ALIBI_SYMMETRIC, false, {}},
};

int failures = 0;
bool verbose = false;

// Counts and prints what is wrong in one case, dtype and ISA.
struct Check {
  std::string label;

  bool status(const char* entry, int32_t code) const {
    if (code == ALIBI_OK) return true;
    std::printf("FAIL %s: %s returned %s\n", label.c_str(), entry, alibi_status_name(code));
    ++failures;
    return false;
  }

  void close(const char* what, const Buffer& got, const Values& truth, double bound) const {
    double error = 0, largest = 0;
    const Values values = got.values();
    for (size_t n = 0; n < truth.size(); ++n) {
      if (values[n] == truth[n]) continue;  // also the infinities of lse
      const double difference = std::fabs(values[n] - truth[n]);
      error = std::isnan(difference) ? INFINITY : std::fmax(error, difference);
    }
    for (double value : truth)
      largest = std::isfinite(value) ? std::fmax(largest, std::fabs(value)) : largest;
    // 1e-3: a truth of zeros (one key only: p = 1 whatever q is) still meets the rounding of its
    // terms.
    const bool ok = error <= bound * std::fmax(largest, 1e-3) && got.guards_intact();
    if (verbose || !ok) {
      std::printf("%s %s %s: error %.2e of %.2e, allowed %.2e%s\n", ok ? "ok  " : "FAIL",
                  label.c_str(), what, error, largest, bound * std::fmax(largest, 1e-3),
                  got.guards_intact() ? "" : ", guard words overwritten");
    }
    failures += !ok;
  }
};

Values normal(int64_t count, std::mt19937* generator) {
  std::normal_distribution<double> distribution;
  Values values(count);
  for (double& value : values) value = distribution(*generator);
  return values;
}

// A case in one dtype and ISA: its inputs, rounded to the dtype, and buffers for its tensors.
struct Run {
  const Case& c;
  const Dtype& dtype;
  const Check check;
  const AlibiOptions options;
  AlibiProblem x{};
  std::vector<float> slopes;
  const int32_t* spans;
  const int64_t rows = c.b * c.hq * c.sq, keys = c.b * c.hkv * c.sk;
  std::mt19937 generator{7};
  Values q_values = normal(rows * c.d, &generator), k_values = normal(keys * c.d, &generator);
  Buffer q = like_q(), k = like_k();

  Run(const Case& a_case, const Dtype& a_dtype, const char* isa)
      : c(a_case),
        dtype(a_dtype),
        check{std::string(isa) + " " + a_dtype.name + " [" + a_case.name + "]"},
        options{0, isa, nullptr},
        spans(a_case.spans.empty() ? nullptr : a_case.spans.data()) {
    x.batch = c.b, x.heads_q = c.hq, x.heads_kv = c.hkv, x.len_q = c.sq, x.len_k = c.sk;
    x.head_dim = c.d, x.dtype = dtype.code, x.bias = c.bias, x.causal = c.causal, x.prune = 1;
    x.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.d)));
    for (int64_t h = 0; h < c.hq; ++h) {
      slopes.push_back(h == 1 ? 0.f : std::exp2(-1.f - static_cast<float>(h)));
    }
    q.fill(&q_values), k.fill(&k_values);
  }

  Buffer like_q() const { return Buffer(dtype, c.b, c.hq, c.sq, c.d, c.bsnd); }
  Buffer like_k() const { return Buffer(dtype, c.b, c.hkv, c.sk, c.d, c.bsnd); }
  Buffer like_p() const { return Buffer(dtype, c.b, c.hq, c.sq, c.sk, false); }
  Buffer like_lse() const { return Buffer(kDtypes[0], c.b, c.hq, c.sq, 1, false); }
  Buffer like_slopes() const { return Buffer(kDtypes[0], 1, 1, 1, c.hq, false); }
};

void run_attention(Run* r) {
  const AlibiProblem& x = r->x;
  const float* slopes = r->slopes.data();
  Values v_values = normal(r->keys * r->c.d, &r->generator);
  Values dout_values = normal(r->rows * r->c.d, &r->generator);
  Values dlse_values = normal(r->rows, &r->generator);
  Buffer v = r->like_k(), dout = r->like_q(), dlse = r->like_lse();
  v.fill(&v_values), dout.fill(&dout_values), dlse.fill(&dlse_values);

  const auto f = truth::forward(x, r->q_values, r->k_values, v_values, slopes, r->spans);
  const double bound = tolerance(r->dtype);
  Buffer out = r->like_q(), lse = r->like_lse();
  const AlibiAttentionFwdArgs fwd{x,          r->q.tensor(), r->k.tensor(), v.tensor(),   slopes,
                                  r->spans,   nullptr,       out.tensor(),  lse.floats(), nullptr,
                                  &r->options};
  if (!r->check.status("attention_fwd", alibi_attention_fwd(&fwd, nullptr))) return;
  r->check.close("out", out, f.out, bound);
  r->check.close("lse", lse, f.lse, tolerance(kDtypes[0]));

  const auto g = truth::attention_backward(x, r->q_values, r->k_values, v_values, f.p, dout_values,
                                           dlse_values, r->spans);
  Buffer dq = r->like_q(), dk = r->like_k(), dv = r->like_k(), dslopes = r->like_slopes();
  const AlibiAttentionBwdArgs bwd{
      x,           r->q.tensor(), r->k.tensor(),    v.tensor(),    slopes,        r->spans,
      nullptr,     out.tensor(),  lse.floats(),     dout.tensor(), dlse.floats(), dq.tensor(),
      dk.tensor(), dv.tensor(),   dslopes.floats(), &r->options};
  if (!r->check.status("attention_bwd", alibi_attention_bwd(&bwd, nullptr))) return;
  r->check.close("dq", dq, g.dq, bound);
  r->check.close("dk", dk, g.dk, bound);
  r->check.close("dv", dv, g.dv, bound);
  r->check.close("dslopes", dslopes, g.dslopes, bound);
}

void run_weights(Run* r) {
  const AlibiProblem& x = r->x;
  const float* slopes = r->slopes.data();
  Values dp_values = normal(r->rows * r->c.sk, &r->generator);
  Buffer dp = r->like_p(), p = r->like_p();
  dp.fill(&dp_values);

  const auto f = truth::forward(x, r->q_values, r->k_values, r->k_values, slopes, r->spans);
  const double bound = tolerance(r->dtype);
  const AlibiWeightsFwdArgs fwd{x,        r->q.tensor(), r->k.tensor(), slopes,
                                r->spans, nullptr,       p.tensor(),    &r->options};
  if (!r->check.status("weights_fwd", alibi_attention_weights_fwd(&fwd, nullptr))) return;
  r->check.close("p", p, f.p, bound);

  const auto g =
      truth::backward(x, r->q_values, r->k_values, f.p, dp_values, Values(r->rows), r->spans);
  Buffer dq = r->like_q(), dk = r->like_k(), dslopes = r->like_slopes();
  const AlibiWeightsBwdArgs bwd{x,           r->q.tensor(), r->k.tensor(),    slopes,
                                r->spans,    nullptr,       p.tensor(),       dp.tensor(),
                                dq.tensor(), dk.tensor(),   dslopes.floats(), &r->options};
  if (!r->check.status("weights_bwd", alibi_attention_weights_bwd(&bwd, nullptr))) return;
  r->check.close("weights dq", dq, g.dq, bound);
  r->check.close("weights dk", dk, g.dk, bound);
  r->check.close("weights dslopes", dslopes, g.dslopes, bound);
}

}  // namespace

int main(int argc, char** argv) {
  int cases = 0;
  for (int n = 1; n < argc; ++n) {
    if (std::strcmp(argv[n], "--verbose") == 0) {
      verbose = true;
      continue;
    }
    for (const Case& c : kCases) {
      for (const Dtype& dtype : kDtypes) {
        Run run(c, dtype, argv[n]);
        run_attention(&run);
        run_weights(&run);
        ++cases;
      }
    }
    failures += layer_cases::run(argv[n], &cases);
  }
  std::printf("%s\n%d cases, %d failures\n", alibi_build_info(), cases, failures);
  return failures != 0 || cases == 0;
}
