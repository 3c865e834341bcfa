// CANN's side of tiling: reads shapes and attributes from the context and leaves the arithmetic to
// make_tiling.h.
#include <cstdio>

#include "alibi_attention_ops.h"
#include "make_tiling.h"
#include "tiling/platform/platform_ascendc.h"

namespace alibi {
namespace ascend {
namespace {

// What sets the ops apart.
struct Op {
  int spans;  // index of the optional inputs
  int reach;
  bool fused_forward;
  bool always_meets;  // the AI Cores wait for each other; the forward op does if it splits keys
  int64_t (*workspace_bytes)(const AttentionTiling& tiling);
};
constexpr uint32_t kBatchMode = 1;  // all AI Cores of a launch start together

ge::graphStatus refuse(gert::TilingContext* context, const char* reason) {
  std::fprintf(stderr, "%s: %s\n", context->GetNodeType(), reason);
  return ge::GRAPH_FAILED;
}

bool read_shape(gert::TilingContext* context, const Op& op, AttentionShape* shape) {
  const gert::StorageShape *query = context->GetInputShape(kQuery),
                           *key = context->GetInputShape(kKey);
  const gert::RuntimeAttrs* attributes = context->GetAttrs();
  if (query == nullptr || key == nullptr || attributes == nullptr) return false;
  const gert::Shape &q = query->GetStorageShape(), &k = key->GetStorageShape();
  const float* scale = attributes->GetAttrPointer<float>(kScale);
  const bool* causal = attributes->GetAttrPointer<bool>(kCausal);
  const bool* symmetric = attributes->GetAttrPointer<bool>(kSymmetric);
  const bool* sequence_first = attributes->GetAttrPointer<bool>(kSequenceFirst);
  if (q.GetDimNum() != 4 || k.GetDimNum() != 4 || !scale || !causal || !symmetric ||
      !sequence_first)
    return false;
  const size_t head = *sequence_first ? 2 : 1, row = *sequence_first ? 1 : 2;
  shape->batch = q.GetDim(0);
  shape->heads_q = q.GetDim(head);
  shape->heads_kv = k.GetDim(head);
  shape->len_q = q.GetDim(row);
  shape->len_k = k.GetDim(row);
  shape->head_dim = q.GetDim(3);
  shape->sequence_first = *sequence_first;
  shape->causal = *causal;
  shape->symmetric = *symmetric;
  shape->has_spans = context->GetOptionalInputShape(op.spans) != nullptr;
  shape->has_reach = op.reach != kAbsent && context->GetOptionalInputShape(op.reach) != nullptr;
  shape->fused_forward = op.fused_forward;
  shape->scale = *scale;
  return true;
}

ge::graphStatus tile(gert::TilingContext* context, const Op& op) {
  AttentionShape shape;
  if (!read_shape(context, op, &shape))
    return refuse(context, "q and k must be rank-4 tensors, and every attribute set");
  const auto platform = platform_ascendc::PlatformAscendC(context->GetPlatformInfo());
  AttentionTiling* tiling = context->GetTilingData<AttentionTiling>();
  size_t* workspace = context->GetWorkspaceSizes(1);
  if (tiling == nullptr || workspace == nullptr)
    return refuse(context, "no room for the tiling data");
  const char* reason = make_tiling(shape, static_cast<int32_t>(platform.GetCoreNumAic()), tiling);
  if (reason != nullptr) return refuse(context, reason);
  workspace[0] =
      platform.GetLibApiWorkSpaceSize() + static_cast<size_t>(op.workspace_bytes(*tiling));
  context->SetBlockDim(static_cast<uint32_t>(tiling->blocks));
  if (op.always_meets || tiling->parts > 1) context->SetScheduleMode(kBatchMode);
  return ge::GRAPH_SUCCESS;
}

}  // namespace

ge::graphStatus tile_forward(gert::TilingContext* context) {
  return tile(context, {kForwardSpans, kForwardReach, true, false, fwd_workspace_bytes});
}
ge::graphStatus tile_backward(gert::TilingContext* context) {
  return tile(context, {kBackwardSpans, kBackwardReach, false, false, grad_workspace_bytes});
}
ge::graphStatus tile_weights(gert::TilingContext* context) {
  return tile(context, {kWeightsSpans, kAbsent, false, false, weights_workspace_bytes});
}
ge::graphStatus tile_weights_grad(gert::TilingContext* context) {
  return tile(context, {kWeightsGradSpans, kAbsent, false, true, weights_grad_workspace_bytes});
}

}  // namespace ascend
}  // namespace alibi
