// The entry points of the CPU library: check the arguments, choose the instruction set and the
// threads, call the kernel.
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <string>

#include "../alibi_attention.h"
#include "../alibi_cache.h"
#include "../alibi_layer.h"
#include "../check.h"
#include "isa_table.h"
#include "parallel.h"
#include "testing.h"
#include "tuning.h"

namespace alibi::cpu {
namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

constexpr const char* kStatusNames[] = {
    "ok",    "null_pointer", "shape",       "dtype", "head_groups",   "head_dim", "bias",
    "scale", "spans",        "unsupported", "isa",   "out_of_memory", "device",
};
static_assert(sizeof(kStatusNames) / sizeof(kStatusNames[0]) == ALIBI_STATUS_COUNT);

bool spans_valid(const AlibiProblem& p, const int32_t* spans) {
  if (spans == nullptr) return true;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int32_t start = spans[3 * b], end = spans[3 * b + 1], q_start = spans[3 * b + 2];
    if (start < 0 || start > end || end > p.len_k || (p.causal != 0 && q_start < 0)) return false;
  }
  return true;
}

template <class Args>
int32_t check_call(const Args& args) {
  const int32_t status = check(args);
  return status == ALIBI_OK && !spans_valid(args.problem, args.spans) ? ALIBI_SPANS : status;
}

int32_t check_call(const AlibiKeyNormsArgs& a) {
  for (const int64_t size : {a.batch, a.heads_kv, a.len_k, a.blocks}) {
    if (size < 0 || size >= kMaxSize) return ALIBI_SHAPE;
  }
  if (a.head_dim < 1 || a.head_dim >= kMaxSize) return ALIBI_HEAD_DIM;
  if (a.dtype < ALIBI_FLOAT32 || a.dtype > ALIBI_BFLOAT16) return ALIBI_DTYPE;
  if (a.batch == 0 || a.heads_kv == 0 || a.len_k == 0) return ALIBI_OK;
  if (a.k.data == nullptr || a.start == nullptr) return ALIBI_NULL_POINTER;
  for (int64_t b = 0; b < a.batch; ++b) {
    if (a.start[b] < 0 || a.start[b] + a.len_k > a.blocks * ALIBI_NORM_KEYS) return ALIBI_SPANS;
  }
  return a.norms == nullptr ? ALIBI_NULL_POINTER : ALIBI_OK;
}

// The checks of alibi_layer.h. `vectors` are [width] or sums over rows, `matrices` may be null
// without rows.
int32_t check_rows(int64_t rows, int64_t width, std::initializer_list<const void*> vectors,
                   std::initializer_list<const void*> matrices) {
  if (rows < 0 || rows >= kMaxSize || width < 1 || width >= kMaxSize) return ALIBI_SHAPE;
  for (const void* vector : vectors) {
    if (vector == nullptr) return ALIBI_NULL_POINTER;
  }
  for (const void* matrix : matrices) {
    if (matrix == nullptr && rows > 0) return ALIBI_NULL_POINTER;
  }
  return ALIBI_OK;
}
int32_t check_call(const AlibiLayerNormFwdArgs& a) {
  if (!(a.epsilon >= 0) || !std::isfinite(a.epsilon)) return ALIBI_SCALE;
  return check_rows(a.rows, a.width, {a.gamma, a.beta}, {a.x, a.y, a.mean, a.rstd});
}
int32_t check_call(const AlibiLayerNormBwdArgs& a) {
  return check_rows(a.rows, a.width, {a.gamma, a.dgamma, a.dbeta},
                    {a.x, a.mean, a.rstd, a.dy, a.dx});
}
int32_t check_call(const AlibiBiasGeluFwdArgs& a) {
  return check_rows(a.rows, a.width, {a.bias}, {a.x, a.y});
}
int32_t check_call(const AlibiBiasGeluBwdArgs& a) {
  return check_rows(a.rows, a.width, {a.bias, a.dbias}, {a.x, a.dy, a.dx});
}

// Shared by the entry points; `kernel` is the member of IsaKernels to call.
template <class Args>
int32_t run(const Args* args, int32_t (*IsaKernels::*kernel)(const Args&, int)) {
  if (args == nullptr) return ALIBI_NULL_POINTER;
  const int32_t status = check_call(*args);
  if (status != ALIBI_OK) return status;
  const AlibiOptions* options = args->options;
  const Isa* isa = select_isa(options != nullptr ? options->isa : nullptr);
  if (isa == nullptr) return ALIBI_ISA;
  if (options != nullptr && options->stats != nullptr) *options->stats = {};
  const int threads =
      options != nullptr && options->threads > 0 ? options->threads : default_threads();
  return (isa->kernels->*kernel)(*args, threads);
}

std::string build_info() {
  int count = 0;
  const Isa* table = isa_table(&count);
  const Isa* selected = select_isa(nullptr);
  std::string isas;
  for (int i = 0; i < count; ++i) {
    isas += i == 0 ? "" : ", ";
    isas += std::string("{\"name\": \"") + table[i].name + "\", \"built\": ";
    isas += table[i].kernels != nullptr ? "true" : "false";
    isas += ", \"supported\": ";
    isas += table[i].supported() ? "true}" : "false}";
  }
  return "{\"backend\": \"cpu\", \"abi\": " + std::to_string(ALIBI_ABI_VERSION) +
         ", \"compiler\": \"" + kCompiler + "\", \"openmp\": " + std::to_string(_OPENMP) +
         ", \"threads\": " + std::to_string(default_threads()) + ", \"selected\": \"" +
         (selected != nullptr ? selected->name : "") + "\", \"isas\": [" + isas + "]}";
}

}  // namespace
}  // namespace alibi::cpu

using alibi::cpu::IsaKernels;

int32_t alibi_attention_fwd(const AlibiAttentionFwdArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::attention_fwd);
}
int32_t alibi_attention_bwd(const AlibiAttentionBwdArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::attention_bwd);
}
int32_t alibi_attention_weights_fwd(const AlibiWeightsFwdArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::weights_fwd);
}
int32_t alibi_attention_weights_bwd(const AlibiWeightsBwdArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::weights_bwd);
}

int32_t alibi_key_norms(const AlibiKeyNormsArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::key_norms);
}

int32_t alibi_layer_norm_fwd(const AlibiLayerNormFwdArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::layer_norm_fwd);
}
int32_t alibi_layer_norm_bwd(const AlibiLayerNormBwdArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::layer_norm_bwd);
}
int32_t alibi_bias_gelu_fwd(const AlibiBiasGeluFwdArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::bias_gelu_fwd);
}
int32_t alibi_bias_gelu_bwd(const AlibiBiasGeluBwdArgs* args, void*) {
  return alibi::cpu::run(args, &IsaKernels::bias_gelu_bwd);
}

int32_t alibi_abi_version(void) { return ALIBI_ABI_VERSION; }

const char* alibi_status_name(int32_t status) {
  return status >= 0 && status < ALIBI_STATUS_COUNT ? alibi::cpu::kStatusNames[status] : "unknown";
}

const char* alibi_build_info(void) {
  static const std::string info = alibi::cpu::build_info();
  return info.c_str();
}

int32_t alibi_cpu_exp2(const float* x, float* y, int64_t n, const char* isa) {
  const alibi::cpu::Isa* row = alibi::cpu::select_isa(isa);
  if (row == nullptr) return ALIBI_ISA;
  row->kernels->exp2(x, y, n);
  return ALIBI_OK;
}

int32_t alibi_cpu_weight(const float* x, float* y, int64_t n, const char* isa) {
  const alibi::cpu::Isa* row = alibi::cpu::select_isa(isa);
  if (row == nullptr) return ALIBI_ISA;
  row->kernels->weight(x, y, n);
  return ALIBI_OK;
}

int32_t alibi_cpu_log2(const double* x, double* y, int64_t n, const char* isa) {
  const alibi::cpu::Isa* row = alibi::cpu::select_isa(isa);
  if (row == nullptr) return ALIBI_ISA;
  row->kernels->log2(x, y, n);
  return ALIBI_OK;
}

int32_t alibi_cpu_tuning(int32_t row) { return alibi::cpu::choose_tuning(row); }
