// The entry points of the CUDA library: check the arguments, describe them to the kernels, get
// scratch, launch.
#include <stdint.h>

#include "../alibi_attention.h"
#include "../check.h"
#include "geometry.h"
#include "kernels.h"

#ifdef ALIBI_CPU_MODEL
#define ALIBI_ARCHITECTURES 750, 800, 900
#elif defined(__CUDA_ARCH_LIST__)
#define ALIBI_ARCHITECTURES __CUDA_ARCH_LIST__
#else
#define ALIBI_ARCHITECTURES  // the nvcc of CUDA 11.2 does not say
#endif

namespace alibi {
namespace cuda {
namespace {

constexpr const char* kStatusNames[] = {
    "ok",    "null_pointer", "shape",       "dtype", "head_groups",   "head_dim", "bias",
    "scale", "spans",        "unsupported", "isa",   "out_of_memory", "device",
};
static_assert(sizeof(kStatusNames) / sizeof(kStatusNames[0]) == ALIBI_STATUS_COUNT,
              "one name per status");

int element_bytes(const AlibiProblem& p) { return p.dtype == ALIBI_FLOAT32 ? 4 : 2; }

ProblemView problem_view(const AlibiProblem& p, const float* slopes, const int32_t* spans) {
  return {static_cast<int>(p.batch),
          static_cast<int>(p.heads_q),
          static_cast<int>(p.heads_kv),
          static_cast<int>(p.len_q),
          static_cast<int>(p.len_k),
          static_cast<int>(p.head_dim),
          p.causal != 0,
          p.bias == ALIBI_SYMMETRIC,
          p.prune != 0,
          p.scale,
          slopes,
          spans};
}

// Whether the rows of [B, heads, len, D] all start on 16-byte boundaries. A stride that is never
// used may be anything.
TensorView tensor_view(const AlibiTensor& t, const AlibiProblem& p, int64_t heads, int64_t len) {
  const int64_t bytes = element_bytes(p);
  const auto fits = [&](int64_t count, int64_t stride) {
    return count <= 1 || stride * bytes % 16 == 0;
  };
  const bool aligned = reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && fits(p.batch, t.stride_b) &&
                       fits(heads, t.stride_h) && fits(len, t.stride_s);
  return {t.data, t.stride_b, t.stride_h, t.stride_s, aligned};
}

// A kernel input: the tensor itself when its rows are aligned, otherwise an aligned copy in
// scratch.
TensorView input_view(Call& call, const AlibiTensor& t, const AlibiProblem& p, int64_t heads,
                      int64_t len) {
  const TensorView view = tensor_view(t, p, heads, len);
  if (view.aligned) return view;
  const int bytes = element_bytes(p), width = round_up(static_cast<int>(p.head_dim), 16 / bytes);
  void* copy = call.scratch<char>(p.batch * heads * len * width * bytes);
  const TensorView packed = {copy, heads * len * width, len * width, width, true};
  run_pack(call, p.dtype, view, packed, static_cast<int>(p.batch), static_cast<int>(heads),
           static_cast<int>(len), static_cast<int>(p.head_dim));
  return packed;
}

TensorView query_input(Call& call, const AlibiTensor& t, const AlibiProblem& p) {
  return input_view(call, t, p, p.heads_q, p.len_q);
}
TensorView key_input(Call& call, const AlibiTensor& t, const AlibiProblem& p) {
  return input_view(call, t, p, p.heads_kv, p.len_k);
}
TensorView query_output(const AlibiTensor& t, const AlibiProblem& p) {
  return tensor_view(t, p, p.heads_q, p.len_q);
}
TensorView key_output(const AlibiTensor& t, const AlibiProblem& p) {
  return tensor_view(t, p, p.heads_kv, p.len_k);
}

// Checks that hold for every entry point; ALIBI_OK when there is work to do.
template <class Args>
int32_t check_call(const Args* args) {
  if (args == nullptr) return ALIBI_NULL_POINTER;
  const int32_t status = check(*args);
  if (status != ALIBI_OK) return status;
  const AlibiProblem& p = args->problem;
  return p.len_q > kMaxLength || p.len_k > kMaxLength ? ALIBI_SHAPE : ALIBI_OK;
}

// The oldest compute capability (75 is 7.5) that the library has machine code for; 0 where the
// compiler does not say.
constexpr int oldest_capability() {
  constexpr int kNone = 10000, kArchitectures[] = {kNone, ALIBI_ARCHITECTURES};
  int oldest = kNone;
  for (const int architecture : kArchitectures) oldest = least(oldest, architecture);
  return oldest == kNone ? 0 : oldest / 10;
}

// Whether the kernels for a dtype run on the GPU of the call.
void check_device(Call& call, int32_t dtype) {
  const int have = call.capability(), major = have / 10, minor = have % 10;
  constexpr int kOldest = oldest_capability();
  if (have < kOldest) {
    call.fail(ALIBI_UNSUPPORTED,
              "this GPU has compute capability %d.%d, and the library was built for %d.%d and "
              "later; %s",
              major, minor, kOldest / 10, kOldest % 10,
              have >= 75 ? "build it with 75 in ALIBI_CUDA_ARCHITECTURES"
                         : "use backend \"reference\", or a GPU of 7.5 or later");
  }
  if (have < 80 && dtype == ALIBI_BFLOAT16) {
    call.fail(ALIBI_UNSUPPORTED,
              "this GPU has compute capability %d.%d, and bfloat16 needs 8.0 or later; use float16 "
              "or float32",
              major, minor);
  }
}

// Largest key norms for the pruning bound; null when the bound cannot hold for any head.
const float* prepare_key_norms(Call& call, int32_t dtype, const ProblemView& problem,
                               const TensorView& k) {
  if (!problem.prune || (!problem.causal && !problem.symmetric)) return nullptr;
  float* norms = call.scratch<float>(int64_t{problem.batch} * problem.heads_kv);
  if (call.ok()) run_key_norms(call, dtype, problem, k, norms);
  return norms;
}

// What a forward kernel needs to leave keys out, where problem.prune permits it.
void prune_by_scores(Call&, int32_t, ForwardParams&) {}  // nothing: it sees them as it goes
void prune_by_norms(Call& call, int32_t dtype, ForwardParams& params) {
  params.key_norms = prepare_key_norms(call, dtype, params.problem, params.k);
  params.problem.prune = params.key_norms != nullptr;
}
#if CUDART_VERSION >= 12000
void prune_many_keys_by_norms(Call& call, int32_t dtype, ForwardParams& params) {
  params.splits = 1;
  params.problem.prune = params.problem.prune && hopper_prunes(params.problem);
  prune_by_norms(call, dtype, params);
}
#endif

// The implementations of each pass, best first; a call runs on the first that takes it. The last
// one takes any.
struct ForwardRoute {
  bool (*takes)(const Call& call, int32_t dtype, const ForwardParams& params);
  void (*prepare)(Call& call, int32_t dtype, ForwardParams& params);
  void (*run)(Call& call, int32_t dtype, const ForwardParams& params);
};
bool takes_any(const Call&, int32_t, const ForwardParams&) { return true; }
bool takes_decoding(const Call&, int32_t, const ForwardParams& params) {
  return decode_takes(params.problem);
}
constexpr ForwardRoute kForwardRoutes[] = {
    {takes_decoding, prune_by_scores, run_decode},
#if CUDART_VERSION >= 12000  // the first one that knows the instructions of sm_90a
    {hopper_takes_forward, prune_many_keys_by_norms, run_forward_hopper},
#endif
    {takes_any, prune_by_norms, run_forward},
};

const ForwardRoute& route_forward(const Call& call, int32_t dtype, const ForwardParams& params) {
  const ForwardRoute* route = kForwardRoutes;
  while (!route->takes(call, dtype, params)) ++route;
  return *route;
}

int32_t attention_fwd(const AlibiAttentionFwdArgs& args, void* stream) {
  const AlibiProblem& p = args.problem;
  if (no_queries(p)) return ALIBI_OK;
  Call call(stream);
  check_device(call, p.dtype);
  ForwardParams params = {};
  params.problem = problem_view(p, args.slopes, args.spans);
  params.q = query_input(call, args.q, p);
  params.k = key_input(call, args.k, p);
  params.v = key_input(call, args.v, p);
  params.out = query_output(args.out, p);
  params.lse = args.lse;
  params.splits = decode_takes(params.problem) ? decode_splits(call, p.dtype, params.problem)
                                               : forward_splits(call, p.dtype, params.problem);
  const ForwardRoute& route = route_forward(call, p.dtype, params);
  route.prepare(call, p.dtype, params);
  if (params.splits > 1) {
    const int64_t rows = p.batch * p.heads_q * p.len_q * params.splits;
    params.split_out = call.scratch<float>(rows * p.head_dim);
    params.split_lse = call.scratch<float>(rows);
  }
  route.run(call, p.dtype, params);
  return call.status();
}

struct BackwardRoute {
  bool (*takes)(const Call& call, int32_t dtype, const BackwardParams& params);
  int64_t (*parts)(const Call& call, int32_t dtype, const ProblemView& problem);
  void (*run)(Call& call, int32_t dtype, const BackwardParams& params);
};
bool takes_any(const Call&, int32_t, const BackwardParams&) { return true; }
constexpr BackwardRoute kBackwardRoutes[] = {
#if CUDART_VERSION >= 12000
    {hopper_takes_backward, hopper_slope_parts, run_backward_hopper},
#endif
    {takes_any, slope_parts, run_backward},
};

const BackwardRoute& route_backward(const Call& call, int32_t dtype, const BackwardParams& params) {
  const BackwardRoute* route = kBackwardRoutes;
  while (!route->takes(call, dtype, params)) ++route;
  return *route;
}

int32_t attention_bwd(const AlibiAttentionBwdArgs& args, void* stream) {
  const AlibiProblem& p = args.problem;
  if (no_queries(p) && no_keys(p) && args.dslopes == nullptr) return ALIBI_OK;
  Call call(stream);
  check_device(call, p.dtype);
  BackwardParams params = {};
  params.problem = problem_view(p, args.slopes, args.spans);
  const ProblemView& problem = params.problem;
  params.q = query_input(call, args.q, p);
  params.k = key_input(call, args.k, p);
  params.v = key_input(call, args.v, p);
  params.out = query_output(args.out, p);
  params.dout = query_input(call, args.dout, p);
  params.lse = args.lse;
  params.dlse = args.dlse;
  params.key_norms = prepare_key_norms(call, p.dtype, problem, params.k);
  params.problem.prune = params.key_norms != nullptr;
  params.dq = query_output(args.dq, p);
  params.dk = key_output(args.dk, p);
  params.dv = key_output(args.dv, p);
  const BackwardRoute& route = route_backward(call, p.dtype, params);
  const int64_t parts = int64_t{problem.batch} * route.parts(call, p.dtype, problem);
  params.slope_parts =
      args.dslopes == nullptr ? nullptr : call.scratch<float>(parts * problem.heads_q);
  route.run(call, p.dtype, params);
  if (args.dslopes != nullptr)
    run_sum_slopes(call, params.slope_parts, args.dslopes, problem.heads_q, parts);
  return call.status();
}

int32_t weights_fwd(const AlibiWeightsFwdArgs& args, void* stream) {
  const AlibiProblem& p = args.problem;
  if (no_queries(p) || no_keys(p)) return ALIBI_OK;
  Call call(stream);
  check_device(call, p.dtype);
  WeightsForwardParams params = {};
  params.problem = problem_view(p, args.slopes, args.spans);
  params.q = query_input(call, args.q, p);
  params.k = key_input(call, args.k, p);
  params.p = query_output(args.p, p);
  run_weights_forward(call, p.dtype, params);
  return call.status();
}

int32_t weights_bwd(const AlibiWeightsBwdArgs& args, void* stream) {
  const AlibiProblem& p = args.problem;
  if (no_queries(p) && no_keys(p) && args.dslopes == nullptr) return ALIBI_OK;
  Call call(stream);
  check_device(call, p.dtype);
  WeightsBackwardParams params = {};
  params.problem = problem_view(p, args.slopes, args.spans);
  const ProblemView& problem = params.problem;
  params.q = query_input(call, args.q, p);
  params.k = key_input(call, args.k, p);
  params.p = query_output(args.p, p);
  params.dp = query_output(args.dp, p);
  params.delta = call.scratch<float>(int64_t{problem.batch} * problem.heads_q * problem.len_q);
  params.dq = query_output(args.dq, p);
  params.dk = key_output(args.dk, p);
  const int64_t parts = int64_t{problem.batch} * slope_parts(call, p.dtype, problem);
  params.slope_parts =
      args.dslopes == nullptr ? nullptr : call.scratch<float>(parts * problem.heads_q);
  run_weights_backward(call, p.dtype, params);
  if (args.dslopes != nullptr)
    run_sum_slopes(call, params.slope_parts, args.dslopes, problem.heads_q, parts);
  return call.status();
}

template <class Args>
int32_t enter(const Args* args, void* stream, int32_t (*run)(const Args&, void*)) {
  const int32_t status = check_call(args);
  return status == ALIBI_OK ? run(*args, stream) : status;
}

}  // namespace
}  // namespace cuda
}  // namespace alibi

using namespace alibi::cuda;

int32_t alibi_attention_fwd(const AlibiAttentionFwdArgs* args, void* stream) {
  return enter(args, stream, attention_fwd);
}
int32_t alibi_attention_bwd(const AlibiAttentionBwdArgs* args, void* stream) {
  return enter(args, stream, attention_bwd);
}
int32_t alibi_attention_weights_fwd(const AlibiWeightsFwdArgs* args, void* stream) {
  return enter(args, stream, weights_fwd);
}
int32_t alibi_attention_weights_bwd(const AlibiWeightsBwdArgs* args, void* stream) {
  return enter(args, stream, weights_bwd);
}

int32_t alibi_abi_version(void) { return ALIBI_ABI_VERSION; }

const char* alibi_status_name(int32_t status) {
  return status >= 0 && status < ALIBI_STATUS_COUNT ? kStatusNames[status] : "unknown";
}

#define ALIBI_TEXT_(...) #__VA_ARGS__
#define ALIBI_TEXT(...) ALIBI_TEXT_(__VA_ARGS__)
#if CUDART_VERSION >= 12000
#define ALIBI_IMPLEMENTATIONS "\"cuda-sm90\", \"cuda-sm80\""
#else
#define ALIBI_IMPLEMENTATIONS "\"cuda-sm80\""
#endif
#ifdef ALIBI_CPU_MODEL
#define ALIBI_BUILT_WITH "\"compiler\": \"cpu model\", \"architectures\": []"
#else
#define ALIBI_BUILT_WITH                                                   \
  "\"compiler\": \"nvcc " ALIBI_TEXT(__CUDACC_VER_MAJOR__) "." ALIBI_TEXT( \
      __CUDACC_VER_MINOR__) "\", \"architectures\": [" ALIBI_TEXT(ALIBI_ARCHITECTURES) "]"
#endif
const char* alibi_build_info(void) {
  return "{\"backend\": \"cuda\", \"abi\": " ALIBI_TEXT(
      ALIBI_ABI_VERSION) ", " ALIBI_BUILT_WITH ", \"implementations\": [" ALIBI_IMPLEMENTATIONS
                         "]}";
}

// Whether a GPU can be used for tensors of a dtype: "ok"; "device" or "unsupported" with the reason
// in alibi_last_error(). Touches no memory of the device.
extern "C" ALIBI_EXPORT int32_t alibi_device_status(int32_t dtype);
int32_t alibi_device_status(int32_t dtype) {
  Call call(nullptr);
  check_device(call, dtype);
  return call.status();
}

// What the last call of this thread that returned "device", "unsupported" or "out_of_memory" met,
// in words; "" if it succeeded.
extern "C" ALIBI_EXPORT const char* alibi_last_error(void);
const char* alibi_last_error(void) { return error_text(); }
