// Runs the kernels of csrc/ascend on the emulator behind a C interface for ctypes. All tensors are
// contiguous host arrays.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "emulator/machine.h"
#include "op_host/make_tiling.h"

using alibi::ascend::AttentionShape;
using alibi::ascend::AttentionTiling;

// Weak: a library may lack a dtype that its tests do not call.
using Kernel = void(uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*,
                    uint8_t*, uint8_t*);
using GradKernel = void(uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*,
                        uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*,
                        uint8_t*);
extern "C" __attribute__((weak)) Kernel alibi_attention_half, alibi_attention_bfloat16;
extern "C" __attribute__((weak)) GradKernel alibi_attention_grad_half,
    alibi_attention_grad_bfloat16;
using WeightsKernel = void(uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*, uint8_t*);
extern "C" __attribute__((weak)) WeightsKernel alibi_attention_weights_half,
    alibi_attention_weights_bfloat16;
extern "C" __attribute__((weak)) Kernel alibi_attention_weights_grad_half,
    alibi_attention_weights_grad_bfloat16;

namespace {

using emu::Use;

// Mirrors the ctypes structure in tests/ascend/device.py.
struct Call {
  int64_t batch, heads_q, heads_kv, len_q, len_k, head_dim;
  int32_t sequence_first, causal, symmetric, bfloat16, cores;
  uint32_t seed;
  float scale;
};
struct Report {
  char error[512];
  uint64_t instructions, vector_elements, macs;
};

// Device memory for one call: tensors as the kernel may use them, and a workspace full of NaN.
class Memory {
 public:
  explicit Memory(int64_t workspace_bytes)
      : workspace_(
            static_cast<uint8_t*>(std::aligned_alloc(512, (workspace_bytes + 511) / 512 * 512))) {
    emu::machine().clear_regions();
    std::memset(workspace_, 0xff, workspace_bytes);
    emu::machine().add_region("workspace", Use::kWorkspace, workspace_,
                              static_cast<uint64_t>(workspace_bytes));
  }
  ~Memory() { std::free(workspace_); }
  Memory(const Memory&) = delete;
  // A tensor that may be absent.
  uint8_t* add(const char* name, Use use, const void* data, int64_t bytes) {
    auto* address = static_cast<uint8_t*>(const_cast<void*>(data));
    if (address) emu::machine().add_region(name, use, address, static_cast<uint64_t>(bytes));
    return address;
  }
  uint8_t* workspace() { return workspace_; }

 private:
  uint8_t* workspace_;
};

int finish(Report* report, const char* error) {
  const emu::Counts& counts = emu::machine().counts;
  report->instructions = counts.instructions;
  report->vector_elements = counts.vector_elements;
  report->macs = counts.macs;
  std::snprintf(report->error, sizeof report->error, "%s", error);
  return *error != 0;
}

AttentionShape shape_of(const Call& c, bool spans, bool reach, bool fused_forward) {
  return {c.batch,
          c.heads_q,
          c.heads_kv,
          c.len_q,
          c.len_k,
          c.head_dim,
          c.sequence_first != 0,
          c.causal != 0,
          c.symmetric != 0,
          spans,
          reach,
          fused_forward,
          c.scale};
}

struct Sizes {
  int64_t query, key;  // bytes of tensors like q and like k
  int64_t rows;        // of one float per query row
  int64_t reach;
  int64_t weights;  // of a [batch, heads_q, len_q, len_k] tensor
};
Sizes sizes_of(const Call& c) {
  const int64_t rows = c.batch * c.heads_q * c.len_q, keys = c.batch * c.heads_kv * c.len_k;
  const int64_t tiles = (c.len_q + alibi::ascend::kTileQ - 1) / alibi::ascend::kTileQ;
  return {rows * c.head_dim * 2, keys * c.head_dim * 2, rows * 4, c.batch * c.heads_q * tiles * 4,
          rows * c.len_k * 2};
}

// Tiling of an op that takes no reach; null, or why it cannot run.
const char* plain_tiling(const Call& call, const int32_t* spans, AttentionTiling* tiling) {
  return alibi::ascend::make_tiling(shape_of(call, spans != nullptr, false, false), call.cores,
                                    tiling);
}

int launch(const Call& call, const AttentionTiling& tiling, Report* report,
           const std::function<void()>& kernel) {
  try {
    emu::machine().launch(tiling.blocks, call.seed, kernel);
  } catch (const emu::Fault& fault) {
    return finish(report, fault.what());
  }
  return finish(report, "");
}

}  // namespace

extern "C" int run_forward(const Call* call, const void* q, const void* k, const void* v,
                           const float* slopes, const int32_t* spans, const int32_t* reach,
                           void* out, float* lse, Report* report) {
  AttentionTiling tiling;
  const char* reason = alibi::ascend::make_tiling(
      shape_of(*call, spans != nullptr, reach != nullptr, true), call->cores, &tiling);
  if (reason) return finish(report, reason);
  const Sizes size = sizes_of(*call);
  Memory m(alibi::ascend::fwd_workspace_bytes(tiling));
  uint8_t* const args[] = {m.add("q", Use::kInput, q, size.query),
                           m.add("k", Use::kInput, k, size.key),
                           m.add("v", Use::kInput, v, size.key),
                           m.add("slopes", Use::kInput, slopes, call->heads_q * 4),
                           m.add("spans", Use::kInput, spans, call->batch * 12),
                           m.add("reach", Use::kInput, reach, size.reach),
                           m.add("out", Use::kOutput, out, size.query),
                           m.add("lse", Use::kOutput, lse, size.rows)};
  Kernel* const kernel = call->bfloat16 ? alibi_attention_bfloat16 : alibi_attention_half;
  return launch(*call, tiling, report, [&] {
    kernel(args[0], args[1], args[2], args[3], args[4], args[5], args[6], args[7], m.workspace(),
           reinterpret_cast<uint8_t*>(&tiling));
  });
}

extern "C" int run_backward(const Call* call, const void* q, const void* k, const void* v,
                            const float* slopes, const float* lse, const float* delta,
                            const void* dout, const int32_t* spans, const int32_t* reach, void* dq,
                            void* dk, void* dv, float* dslopes, Report* report) {
  AttentionTiling tiling;
  const char* reason = alibi::ascend::make_tiling(
      shape_of(*call, spans != nullptr, reach != nullptr, false), call->cores, &tiling);
  if (reason) return finish(report, reason);
  const Sizes size = sizes_of(*call);
  Memory m(alibi::ascend::grad_workspace_bytes(tiling));
  uint8_t* const a[] = {m.add("q", Use::kInput, q, size.query),
                        m.add("k", Use::kInput, k, size.key),
                        m.add("v", Use::kInput, v, size.key),
                        m.add("slopes", Use::kInput, slopes, call->heads_q * 4),
                        m.add("lse", Use::kInput, lse, size.rows),
                        m.add("delta", Use::kInput, delta, size.rows),
                        m.add("dout", Use::kInput, dout, size.query),
                        m.add("spans", Use::kInput, spans, call->batch * 12),
                        m.add("reach", Use::kInput, reach, size.reach),
                        m.add("dq", Use::kOutput, dq, size.query),
                        m.add("dk", Use::kOutput, dk, size.key),
                        m.add("dv", Use::kOutput, dv, size.key),
                        m.add("dslopes", Use::kOutput, dslopes, size.rows)};
  GradKernel* const kernel =
      call->bfloat16 ? alibi_attention_grad_bfloat16 : alibi_attention_grad_half;
  return launch(*call, tiling, report, [&] {
    kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
           m.workspace(), reinterpret_cast<uint8_t*>(&tiling));
  });
}

extern "C" int run_weights(const Call* call, const void* q, const void* k, const float* slopes,
                           const int32_t* spans, void* p, Report* report) {
  AttentionTiling tiling;
  if (const char* reason = plain_tiling(*call, spans, &tiling)) return finish(report, reason);
  const Sizes size = sizes_of(*call);
  Memory m(alibi::ascend::weights_workspace_bytes(tiling));
  uint8_t* const a[] = {m.add("q", Use::kInput, q, size.query),
                        m.add("k", Use::kInput, k, size.key),
                        m.add("slopes", Use::kInput, slopes, call->heads_q * 4),
                        m.add("spans", Use::kInput, spans, call->batch * 12),
                        m.add("p", Use::kOutput, p, size.weights)};
  WeightsKernel* const kernel =
      call->bfloat16 ? alibi_attention_weights_bfloat16 : alibi_attention_weights_half;
  return launch(*call, tiling, report, [&] {
    kernel(a[0], a[1], a[2], a[3], a[4], m.workspace(), reinterpret_cast<uint8_t*>(&tiling));
  });
}

extern "C" int run_weights_grad(const Call* call, const void* q, const void* k, const void* p,
                                const void* dp, const int32_t* spans, void* dq, void* dk,
                                float* dslopes, Report* report) {
  AttentionTiling tiling;
  if (const char* reason = plain_tiling(*call, spans, &tiling)) return finish(report, reason);
  const Sizes size = sizes_of(*call);
  Memory m(alibi::ascend::weights_grad_workspace_bytes(tiling));
  uint8_t* const a[] = {m.add("q", Use::kInput, q, size.query),
                        m.add("k", Use::kInput, k, size.key),
                        m.add("p", Use::kInput, p, size.weights),
                        m.add("dp", Use::kInput, dp, size.weights),
                        m.add("spans", Use::kInput, spans, call->batch * 12),
                        m.add("dq", Use::kOutput, dq, size.query),
                        m.add("dk", Use::kOutput, dk, size.key),
                        m.add("dslopes", Use::kOutput, dslopes, size.rows)};
  Kernel* const kernel =
      call->bfloat16 ? alibi_attention_weights_grad_bfloat16 : alibi_attention_weights_grad_half;
  return launch(*call, tiling, report, [&] {
    kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], m.workspace(),
           reinterpret_cast<uint8_t*>(&tiling));
  });
}

// key_tiles() of query rows [row, row + rows): {first, end}.
extern "C" int tile_range(const Call* call, const int32_t* span, int32_t row, int32_t rows,
                          int32_t reach, int32_t* range, Report* report) {
  AttentionTiling tiling;
  const char* reason = alibi::ascend::make_tiling(shape_of(*call, true, true, false), 1, &tiling);
  if (reason) return finish(report, reason);
  const alibi::ascend::TileRange tiles =
      alibi::ascend::key_tiles(tiling, {span[0], span[1], span[2]}, row, rows, reach);
  range[0] = tiles.first;
  range[1] = tiles.end;
  return finish(report, "");
}

// Bytes of L1 and UB of each op, in the order of tests/ascend/device.py.
extern "C" void budgets(int32_t* result) {
  using namespace alibi::ascend;
  const int32_t values[] = {kFwdL1,     kFwdUb,     kGradL1,        kGradUb,
                            kWeightsL1, kWeightsUb, kWeightsGradL1, kWeightsGradUb};
  std::copy(std::begin(values), std::end(values), result);
}

// What make_tiling() makes of a call, spans and reach given.
extern "C" int tiling_of(const Call* call, int fused_forward, AttentionTiling* tiling,
                         Report* report) {
  const char* reason = alibi::ascend::make_tiling(shape_of(*call, true, true, fused_forward != 0),
                                                  call->cores, tiling);
  return finish(report, reason ? reason : "");
}

// part_of(): {first, end}.
extern "C" void part_range(const int32_t* range, int32_t part, int32_t parts, int32_t* result) {
  const alibi::ascend::TileRange tiles = alibi::ascend::part_of({range[0], range[1]}, part, parts);
  result[0] = tiles.first;
  result[1] = tiles.end;
}

// Where each piece of the workspace of one AI Core begins, and where it ends; then the bytes of the
// whole workspace. `op` indexes the ops in the order of tests/ascend/device.py.
extern "C" int workspace_of(const AttentionTiling* t, int32_t op, int64_t* result) {
  using namespace alibi::ascend;
  const Workspace f = fwd_workspace(t->head_dim);
  const GradWorkspace g = grad_workspace(t->head_dim);
  const WeightsGradWorkspace w = weights_grad_workspace(t->head_dim);
  const std::vector<int64_t> offsets[] = {
      {f.scores, f.weights, f.product, f.bytes, fwd_workspace_bytes(*t)},
      {g.scores, g.weight_grads, g.weights, g.score_grads, g.sums, g.bytes,
       grad_workspace_bytes(*t)},
      {0, kFloatTiles, weights_workspace_bytes(*t)},
      {w.score_grads, w.sums, w.bytes, weights_grad_workspace_bytes(*t)}};
  std::copy(offsets[op].begin(), offsets[op].end(), result);
  return static_cast<int>(offsets[op].size());
}
