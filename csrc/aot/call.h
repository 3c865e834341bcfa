// One call of an operator: reads its attributes, takes its operands in order, checks what Python
// could not see in a dynamic graph, and fills the structs of the C contract.
#ifndef ALIBI_AOT_CALL_H_
#define ALIBI_AOT_CALL_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "../alibi_attention.h"
#include "aot_extra.h"

// What the last call that ended with one of the statuses of has_words() met: only in libraries that
// know more than a status.
extern "C" ALIBI_EXPORT __attribute__((weak)) const char* alibi_last_error(void);

namespace alibi::aot {

using Shape = std::vector<int64_t>;

struct Dtype {
  const char* name;
  int32_t code;
  int64_t size;  // bytes
};
constexpr Dtype kDtypes[] = {
    {"float32", ALIBI_FLOAT32, 4}, {"float16", ALIBI_FLOAT16, 2}, {"bfloat16", ALIBI_BFLOAT16, 2}};

// What to do about each status, in the order of AlibiStatus.
constexpr const char* kAdvice[ALIBI_STATUS_COUNT] = {
    "nothing",
    "a tensor arrived without memory; please report this as a bug",
    "the sizes of the inputs do not fit together, or are too large to index",
    "q, k and v must be float32, float16 or bfloat16, all of one type",
    "the number of query heads must be a multiple of the number of key/value heads",
    "head_dim must be 1 to 256 here; use backend=\"reference\" for larger ones",
    "bias must be \"symmetric\" or \"signed\"",
    "scale must be a finite number",
    "each row (kv_start, kv_end, q_start) of spans must have 0 <= kv_start <= kv_end <= Sk and, "
    "when causal, q_start >= 0; without spans a causal call needs Sq <= Sk, because the queries "
    "are aligned to the end of the keys",
    "this build of the kernels has no such feature; use backend=\"reference\"",
    "the instruction set named by ALIBI_CPU_ISA is unknown, not built or not on this CPU; unset "
    "it, or choose one that `python -m alibi_kernels.info` lists",
    "not enough memory for scratch space",
    "the accelerator reported an error, or there is none",
};

[[noreturn]] inline void fail(const std::string& op, const std::string& what) {
  throw std::runtime_error(op + ": " + what);
}

inline std::string to_string(const int64_t* shape, int64_t rank) {
  std::string text = "(";
  for (int64_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

inline bool has_words(int32_t status) {
  return status == ALIBI_UNSUPPORTED || status == ALIBI_OUT_OF_MEMORY || status == ALIBI_DEVICE;
}

// ---- Attributes: read once, at Init.

struct Attributes : AotKernelData {
  float scale = NAN;  // NaN: head_dim^-0.5
  bool causal = false;
  bool prune = false;
  bool signed_bias = false;
  bool heads_first = false;  // "BNSD": [B, H, S, D]; otherwise "BSND": [B, S, H, D]
  bool has_spans = false;
  bool has_key_norms = false;
  std::vector<float> slopes;      // fixed slopes; empty: they are an operand
  bool trained_slopes = false;    // an operand that gets a gradient
  std::array<int64_t, 3> slot{};  // where q, k and v lie on axis 2 of a packed tensor
};

inline bool one_of(AotExtra* extra, const char* name, const char* yes, const char* no) {
  const std::string value = extra->get_string(name);
  if (value != yes && value != no)
    fail(name, "expected \"" + std::string(yes) + "\" or \"" + no + "\", got \"" + value + "\"");
  return value == yes;
}

inline bool is_set(AotExtra* extra, const char* name) {
  return extra->HasAttr(name) && extra->get_bool(name);
}
inline bool has_fixed_slopes(AotExtra* extra) { return is_set(extra, "fixed_slopes"); }

inline int init(AotExtra* extra) {
  auto* a = new Attributes;
  extra->set_kernel_data(a);  // before anything can throw: MindSpore owns it from here
  if (extra->HasAttr("scale")) a->scale = extra->get_float("scale");
  a->causal = extra->get_bool("causal");
  a->prune = extra->get_bool("prune");
  a->signed_bias = one_of(extra, "bias", "signed", "symmetric");
  a->heads_first = one_of(extra, "input_layout", "BNSD", "BSND");
  a->has_spans = extra->get_bool("has_spans");
  a->has_key_norms = is_set(extra, "has_key_norms");
  if (extra->HasAttr("slopes")) a->slopes = extra->get_floats("slopes");
  a->trained_slopes = a->slopes.empty() && !has_fixed_slopes(extra);
  if (extra->HasAttr("order")) {
    const std::string order = extra->get_string("order");
    std::string sorted = order;
    std::sort(sorted.begin(), sorted.end());
    if (sorted != "kqv") fail("order", "expected a permutation of \"qkv\", got \"" + order + "\"");
    for (int i = 0; i < 3; ++i) a->slot[i] = static_cast<int64_t>(order.find("qkv"[i]));
  }
  return 0;
}

// ---- One call.

class Call {
 public:
  Call(const char* op, int count, void** data, int* ranks, int64_t** shapes, const char** dtypes,
       void* extra)
      : op_(op),
        count_(count),
        data_(data),
        ranks_(ranks),
        shapes_(shapes),
        dtypes_(dtypes),
        attributes_(*static_cast<const Attributes*>(static_cast<AotExtra*>(extra)->kernel_data())) {
  }

  // q and k, which between them fix every size of the problem.
  template <class Args>
  void take_q_and_k(Args* args) {
    const int64_t* q = peek_rank(0, "q", 4);
    const int64_t* k = peek_rank(1, "k", 4);
    const int heads = attributes_.heads_first ? 1 : 2, length = 3 - heads;
    set_problem(q[0], q[heads], k[heads], q[length], k[length], q[3]);
    args->problem = problem_;
    args->q = take_rows("q");
    args->k = take_keys("k");
  }

  // packed [B, S, 3, H, D]: q, k and v (or their gradients) are its thirds.
  template <class Args>
  void take_packed(Args* args) {
    const int64_t* shape = peek_rank(0, "packed", 5);
    set_problem(shape[0], shape[3], shape[3], shape[1], shape[1], shape[4]);
    args->problem = problem_;
    void* data = take("packed", packed_shape(), problem_type_);
    args->q = third(data, 0);
    args->k = third(data, 1);
    args->v = third(data, 2);
  }
  void take_packed_gradient(AlibiAttentionBwdArgs* args) {
    void* data = take("dpacked", packed_shape(), problem_type_);
    args->dq = third(data, 0);
    args->dk = third(data, 1);
    args->dv = third(data, 2);
  }

  // [slopes] [spans]: what the attributes say is present.
  template <class Args>
  void take_slopes_and_spans(Args* args) {
    const std::vector<float>& fixed = attributes_.slopes;
    if (!fixed.empty() && static_cast<int64_t>(fixed.size()) != problem_.heads_q) {
      fail(op_, "got " + std::to_string(fixed.size()) + " slopes for " +
                    std::to_string(problem_.heads_q) + " query heads");
    }
    args->slopes = fixed.empty() ? take_floats("slopes", {problem_.heads_q}) : fixed.data();
    if (attributes_.has_spans)
      args->spans = static_cast<const int32_t*>(take("spans", {problem_.batch, 3}, "int32"));
  }
  // [key_norms]
  const float* take_key_norms() {
    if (!attributes_.has_key_norms) return nullptr;
    const int64_t blocks = (problem_.len_k + ALIBI_NORM_KEYS - 1) / ALIBI_NORM_KEYS;
    return take_floats("key_norms", {problem_.batch, problem_.heads_kv, blocks});
  }
  float* take_slope_gradient() {
    return attributes_.trained_slopes ? take_floats("dslopes", {problem_.heads_q}) : nullptr;
  }

  AlibiTensor take_rows(const char* name) {
    return take_strided(name, problem_.heads_q, problem_.len_q);
  }
  AlibiTensor take_keys(const char* name) {
    return take_strided(name, problem_.heads_kv, problem_.len_k);
  }
  AlibiTensor take_weights(const char* name) {
    const AlibiProblem& p = problem_;
    void* data = take(name, {p.batch, p.heads_q, p.len_q, p.len_k}, problem_type_);
    return {data, p.heads_q * p.len_q * p.len_k, p.len_q * p.len_k, p.len_k};
  }
  float* take_row_floats(const char* name) {
    return take_floats(name, {problem_.batch, problem_.heads_q, problem_.len_q});
  }

  int finish(int32_t status) const {
    if (status == ALIBI_OK) return 0;
    const bool known = status > 0 && status < ALIBI_STATUS_COUNT;
    const std::string detail =
        alibi_last_error != nullptr && has_words(status) ? alibi_last_error() : "";
    fail(op_, std::string("status \"") + alibi_status_name(status) +
                  "\": " + (known ? kAdvice[status] : "unknown status") +
                  (detail.empty() ? "" : " (" + detail + ")"));
  }

 private:
  const int64_t* peek_rank(int ahead, const char* name, int rank) const {
    const int i = next_ + ahead;
    if (i >= count_) fail(op_, std::string("operand ") + name + " is missing");
    if (ranks_[i] != rank) {
      fail(op_, std::string(name) + " must have " + std::to_string(rank) +
                    " dimensions, got shape " + to_string(shapes_[i], ranks_[i]));
    }
    return shapes_[i];
  }

  void* take(const char* name, const Shape& expected, const char* dtype) {
    const int64_t* shape = peek_rank(0, name, static_cast<int>(expected.size()));
    const int i = next_++;
    if (!std::equal(expected.begin(), expected.end(), shape)) {
      fail(op_, std::string(name) + " must have shape " + to_string(expected.data(), ranks_[i]) +
                    " to fit the other inputs, got " + to_string(shape, ranks_[i]));
    }
    if (std::strcmp(dtypes_[i], dtype) != 0) {
      fail(op_, std::string(name) + " must be " + dtype + ", got " + dtypes_[i]);
    }
    return data_[i];
  }
  float* take_floats(const char* name, const Shape& expected) {
    return static_cast<float*>(take(name, expected, "float32"));
  }
  AlibiTensor take_strided(const char* name, int64_t heads, int64_t length) {
    const int64_t b = problem_.batch, d = problem_.head_dim;
    if (attributes_.heads_first)
      return {take(name, {b, heads, length, d}, problem_type_), heads * length * d, length * d, d};
    return {take(name, {b, length, heads, d}, problem_type_), heads * length * d, d, heads * d};
  }

  Shape packed_shape() const {
    return {problem_.batch, problem_.len_q, 3, problem_.heads_q, problem_.head_dim};
  }
  AlibiTensor third(void* data, int which) const {
    const int64_t row = problem_.heads_q * problem_.head_dim;
    char* start = static_cast<char*>(data);
    if (start != nullptr) start += attributes_.slot[which] * row * element_size_;
    return {start, problem_.len_q * 3 * row, problem_.head_dim, 3 * row};
  }

  void set_problem(int64_t batch, int64_t heads_q, int64_t heads_kv, int64_t len_q, int64_t len_k,
                   int64_t head_dim) {
    problem_type_ = dtypes_[next_];
    const auto* dtype =
        std::find_if(std::begin(kDtypes), std::end(kDtypes),
                     [this](const Dtype& t) { return std::strcmp(t.name, problem_type_) == 0; });
    if (dtype == std::end(kDtypes)) finish(ALIBI_DTYPE);
    element_size_ = dtype->size;
    problem_.batch = batch;
    problem_.heads_q = heads_q;
    problem_.heads_kv = heads_kv;
    problem_.len_q = len_q;
    problem_.len_k = len_k;
    problem_.head_dim = head_dim;
    problem_.dtype = dtype->code;
    problem_.bias = attributes_.signed_bias ? ALIBI_SIGNED : ALIBI_SYMMETRIC;
    problem_.causal = attributes_.causal;
    problem_.prune = attributes_.prune;
    problem_.scale = std::isnan(attributes_.scale)
                         ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))
                         : attributes_.scale;
  }

  const char* op_;
  int count_;
  void** data_;
  int* ranks_;
  int64_t** shapes_;
  const char** dtypes_;
  const Attributes& attributes_;
  AlibiProblem problem_{};
  const char* problem_type_ = nullptr;  // dtype of q; every rank-4 tensor has it
  int64_t element_size_ = 0;
  int next_ = 0;
};

}  // namespace alibi::aot

#endif  // ALIBI_AOT_CALL_H_
