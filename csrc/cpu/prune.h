// When the rest of a run of keys cannot matter.
//
// Half of what may be left out, 2^-25 of a row's sum, is for keys that nobody looks at; the other
// half for keys whose scores are known but whose values, or gradients, are left alone (kDropShare).
// The first half: for a row i and the keys at distances d, d + 1, ... on one side of it (slope > 0),
//
//   s_ij <= u_i - slope * (distance of j)                            (Cauchy-Schwarz)
//   u_i   = |q_i| * scale * max |k_j|  over the keys still ahead
//   sum of exp(s_ij) <= exp(u_i - slope * d) / (1 - exp(-slope))     (geometric series)
//
// and the run ends when, for every row of the tile, that is at most 2^-25 of the row's sum so far
// (2^-26 per side when there are two sides, so that both together stay below 2^-25). In the log2
// units of the kernels, with reference m_i and sum l_i,
//
//   exp2(u_i + bias(i, next key) - log2(1 - exp(-slope)) + 25 [+ 1] + kSlack - m_i) <= l_i
//
// Rounding: both norms are computed in float32 from at most 256 squares and enlarged by
// kNormFactor = 1 + 2^-12, which exceeds the error of the sum (257 * 2^-24), of the square root, of
// the products here and of the dot products that the dense result would use (256 * 2^-24), all
// relative to u_i. kNormFloor covers squares that a process which flushes subnormals to zero loses.
// kSlack = 0.01 covers the roundings that do not scale with u_i and the error of exp2. NaN and inf
// never satisfy the test: such rows visit every key. The backward applies the same test with the
// row's final log-sum-exp in place of m_i and l_i = 1 / (1 + slope * distance): Rule B of
// docs/maths.md.
#ifndef ALIBI_CPU_PRUNE_H_
#define ALIBI_CPU_PRUNE_H_

#include <math.h>
#include <stdint.h>

#include "exp.inl.h"
#include "geometry.h"
#include "parallel.h"

namespace alibi::cpu {
namespace {

constexpr int kNormBlock = ALIBI_NORM_KEYS;  // keys per entry of the tables below
constexpr float kNormFactor = 1.0f + 0x1p-12f;
constexpr float kNormFloor = 256 * 0x1p-126f;
constexpr float kPruneBits = 25.0f;
constexpr float kSlack = 0.01f;
constexpr float kDropShare = 0x1.fp-26f;  // 2^-25 less what the sums of weights may be off

// Largest key norm among the keys of a span up to a block, and from a block on (unless causal);
// null pointers when nothing is pruned.
struct KeyNorms {
  const float* prefix;  // [blocks]
  const float* suffix;  // [blocks]
};

ALIBI_INLINE int64_t norm_blocks(int64_t len_k) { return (len_k + kNormBlock - 1) / kNormBlock; }

// What the bound needs besides norms and bias, log2 units: the geometric series, 2^-25 per row, one
// bit more for each of two sides.
ALIBI_INLINE float prune_constant(const AlibiProblem& p, float slope) {
  const double geometric = -::log2(-::expm1(-static_cast<double>(slope)));
  return static_cast<float>(geometric) + kPruneBits + kSlack + (p.causal != 0 ? 0.0f : 1.0f);
}

constexpr int64_t kFewestPrunedKeys = 128;

// A problem that the bound can say something about, with keys enough to pay for reading their norms.
ALIBI_INLINE bool prunable(const AlibiProblem& p) {
  return p.prune != 0 && (p.causal != 0 || p.bias == ALIBI_SYMMETRIC) &&
         p.len_k > kFewestPrunedKeys;
}

template <class V, class T>
float squared_norm(const T* x, int dim) {
  typename V::Reg sum = V::zero();
  for (int d = 0; d < dim; d += V::kWidth) {
    const int n = min_int(V::kWidth, dim - d);
    const typename V::Reg part = n == V::kWidth ? V::load(x + d) : V::load_first(x + d, n);
    sum = V::fma(part, part, sum);
  }
  return V::reduce_add(sum);
}

ALIBI_INLINE float enlarged_norm(float squares) {
  return __builtin_sqrtf(squares + kNormFloor) * kNormFactor;
}

// The largest squared norm of the keys [begin, end).
template <class V>
float largest_square(const HeadView& k, int64_t begin, int64_t end, int dim) {
  float largest = 0.0f;
  with_row(k, 0, [&](const auto* rows) {
    for (int64_t j = begin; j < end; ++j) {
      const float norm = squared_norm<V>(rows + j * k.stride, dim);
      if (norm > largest) largest = norm;
    }
  });
  return largest;
}

// No smaller than enlarged_norm(norm * norm), for less. A norm that is no bound at all (NaN,
// negative) counts as inf.
ALIBI_INLINE float enlarged_kept_norm(float norm) {
  constexpr float kRootOfFloor = 0x1p-59f;
  static_assert(kRootOfFloor * kRootOfFloor == kNormFloor);
  return norm >= 0.0f ? (norm + kRootOfFloor) * kNormFactor : __builtin_inff();
}

// dst[i] = the largest of 0 and x[0 .. i]. Each maximum waits for the one before, so parts of x take
// turns; what lies before a part is added in a second sweep.
ALIBI_INLINE void running_maxima(const float* x, int64_t n, float* dst) {
  constexpr int kParts = 8;
  const int64_t part = n / kParts;
  float largest[kParts] = {};
  for (int64_t i = 0; i < part; ++i) {
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p) {
      const float next = x[p * part + i];
      largest[p] = next > largest[p] ? next : largest[p];
      dst[p * part + i] = largest[p];
    }
  }
  float before = largest[0];
  for (int p = 1; p < kParts; ++p) {
    float* begin = dst + p * part;
    for (int64_t i = 0; i < part; ++i) begin[i] = begin[i] > before ? begin[i] : before;
    before = largest[p] > before ? largest[p] : before;
  }
  for (int64_t i = kParts * part; i < n; ++i) {
    before = x[i] > before ? x[i] : before;
    dst[i] = before;
  }
}

// Fills prefix[blocks] and, where there are keys on both sides, suffix[blocks] (adjacent) for the
// keys [kv_start, kv_end) of one head, from its keys or from the norms that the caller keeps,
// [blocks]. A decode step that is pruned by norms kept does little else, so this is not to be slow.
template <class V>
void fill_key_norms(const HeadView& k, const float* kept, const Span& span, int dim, int64_t blocks,
                    bool both_sides, float* prefix) {
  float* suffix = prefix + blocks;
  const int64_t first = span.kv_start / kNormBlock, last = norm_blocks(span.kv_end);
  for (int64_t t = 0; t < blocks; ++t) suffix[t] = 0.0f;
  for (int64_t t = first; t < last; ++t) {
    if (kept != nullptr) {
      suffix[t] = enlarged_kept_norm(kept[t]);
    } else {
      const int64_t begin = max_int64(span.kv_start, t * kNormBlock);
      const int64_t end = min_int64(span.kv_end, (t + 1) * kNormBlock);
      suffix[t] = enlarged_norm(largest_square<V>(k, begin, end, dim));
    }
  }
  running_maxima(suffix, blocks, prefix);
  float largest = 0.0f;
  for (int64_t t = blocks - 1; both_sides && t >= 0; --t) {
    largest = suffix[t] > largest ? suffix[t] : largest;
    suffix[t] = largest;
  }
}

// The key norms of every (batch, key head) of a call: computed, or `kept` by the caller.
template <class V>
class KeyNormTable {
 public:
  KeyNormTable(const AlibiProblem& p, const AlibiTensor& k, const int32_t* spans,
               const float* kept = nullptr, bool wanted = true)
      : problem_(p),
        k_(k),
        spans_(spans),
        kept_(kept),
        wanted_(wanted && prunable(p)),
        blocks_(norm_blocks(p.len_k)),
        buffer_(wanted_ ? sizeof(float) * 2 * blocks_ * p.batch * p.heads_kv : 0) {}

  int32_t fill(int threads) {
    if (!wanted_) return ALIBI_OK;
    if (!allocated()) return ALIBI_OUT_OF_MEMORY;
    const int64_t heads = problem_.batch * problem_.heads_kv;
    const double flops =
        2.0 * heads * (kept_ == nullptr ? problem_.len_k * problem_.head_dim : blocks_);
    return run_items(heads, threads, flops, 0, &KeyNormTable::fill_head, this);
  }
  // For callers that fill in one head (of batch * heads_kv) after another themselves.
  bool allocated() const { return buffer_.data() != nullptr; }
  void fill_one(int64_t head) const {
    if (wanted_) fill_head(this, head, nullptr);
  }

  KeyNorms head(int64_t b, int64_t h) const {
    if (!wanted_) return {nullptr, nullptr};
    const float* prefix = buffer_.floats() + 2 * blocks_ * (b * problem_.heads_kv + h);
    return {prefix, prefix + blocks_};
  }

 private:
  static void fill_head(const void* context, int64_t index, float*) {
    const auto& self = *static_cast<const KeyNormTable*>(context);
    const int64_t b = index / self.problem_.heads_kv, h = index % self.problem_.heads_kv;
    fill_key_norms<V>(head_view(self.k_, self.problem_.dtype, b, h),
                      self.kept_ == nullptr ? nullptr : self.kept_ + index * self.blocks_,
                      span_of(self.problem_, self.spans_, b),
                      static_cast<int>(self.problem_.head_dim), self.blocks_,
                      self.problem_.causal == 0, self.buffer_.floats() + 2 * self.blocks_ * index);
  }

  const AlibiProblem& problem_;
  const AlibiTensor& k_;
  const int32_t* spans_;
  const float* kept_;  // [B, Hkv, blocks], or null
  bool wanted_;
  int64_t blocks_;
  Buffer buffer_;
};

// The test for one tile of rows.
template <class V>
class PruneTest {
 public:
  PruneTest() = default;  // prunes nothing
  // q_t is the tile's Q^T as load_transposed leaves it: in log2 units (multiplied by scale *
  // log2(e)) unless Operands<V> say otherwise. q_norm has room for kRows<V> floats. unit: of the sums
  // that the tests will be given.
  PruneTest(const AlibiProblem& p, const KeyNorms& norms, float slope, const RowTile& rows,
            const Lane<V>* q_t, float* q_norm, float unit = 1.0f)
      : norms_(norms), rows_(&rows), q_norm_(q_norm) {
    enabled_ = norms.prefix != nullptr && slope > 0;
    if (!enabled_) return;
    constant_ = prune_constant(p, slope) + static_cast<float>(::log2(static_cast<double>(unit)));
    const int lanes = lanes_of<V>(static_cast<int>(p.head_dim));
    const float factor = kNormFactor * Operands<V>::norm_factor(p.scale * kLog2E);
    for (int v = 0; v < rows.vecs * V::kWidth; v += V::kWidth) {
      typename V::Reg sum = V::set1(kNormFloor);
      for (int d = 0; d < lanes; ++d) {
        const typename V::Reg x = Operands<V>::load(q_t + d * kRows<V> + v);
        sum = Operands<V>::mac(x, x, sum);
      }
      V::store(q_norm_ + v, V::mul(V::sqrt(sum), V::set1(factor)));
    }
  }

  bool enabled() const { return enabled_; }

  // How many of the next `most` keys of a run, from `next` on, have to be visited: all of them, or
  // a multiple of kNormBlock after which the run may end.
  int reach(float gradient, int64_t next, bool left, int most, const float* reference,
            const float* sum) const {
    auto ends_after = [&](int blocks) {
      const int64_t keys = static_cast<int64_t>(blocks) * kNormBlock;
      return negligible(gradient, left ? next - keys : next + keys, left, reference, sum);
    };
    int low = 0, high = (most - 1) / kNormBlock;
    if (!ends_after(high)) return most;  // the usual answer, for the price of one test
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ends_after(middle)) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return high * kNormBlock;
  }

  // May the run that continues at key `next` end here? reference and sum: m_i and l_i, [kRows<V>].
  bool negligible(float gradient, int64_t next, bool left, const float* reference,
                  const float* sum) const {
    if (!enabled_) return false;
    const float largest =
        left ? norms_.prefix[next / kNormBlock] : norms_.suffix[next / kNormBlock];
    const float offset = static_cast<float>(next - rows_->pos0);
    for (int v = 0; v < rows_->vecs * V::kWidth; v += V::kWidth) {
      const typename V::Reg distance = V::sub(V::set1(offset), row_positions<V>(*rows_, v));
      const typename V::Reg bias = V::mul(V::set1(gradient), distance);
      const typename V::Reg bound =
          V::fma(V::load(q_norm_ + v), V::set1(largest), V::add(bias, V::set1(constant_)));
      typename V::Reg tail = exp2<V>(V::sub(bound, V::load(reference + v)));
      const typename V::Reg lane = V::add(V::iota(), V::set1(static_cast<float>(v)));
      tail = V::select(V::lt(lane, V::set1(static_cast<float>(rows_->rows))), tail, V::zero());
      if (!V::all(V::le(tail, V::load(sum + v)))) return false;
    }
    return true;
  }

 private:
  KeyNorms norms_;
  const RowTile* rows_;
  float* q_norm_;
  bool enabled_ = false;
  float constant_ = 0.0f;
};

}  // namespace
}  // namespace alibi::cpu

#endif  // ALIBI_CPU_PRUNE_H_
