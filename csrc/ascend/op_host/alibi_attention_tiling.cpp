// CANN's side of tiling: reads shapes and attributes from the context and leaves the arithmetic to
// make_tiling.h.
#include <cstdio>

#include "alibi_attention_ops.h"
#include "make_tiling.h"
#include "tiling/platform/platform_ascendc.h"

namespace alibi {
namespace ascend {
namespace {

// What sets the two ops apart.
struct Op {
  size_t spans;  // index of the optional inputs
  size_t reach;
  bool rows_from_heads;
  int64_t (*bytes_per_core)(int32_t head_dim);
};

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
  shape->has_reach = context->GetOptionalInputShape(op.reach) != nullptr;
  shape->rows_from_heads = op.rows_from_heads;
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
  workspace[0] = platform.GetLibApiWorkSpaceSize() +
                 static_cast<size_t>(op.bytes_per_core(tiling->head_dim) * tiling->blocks);
  context->SetBlockDim(static_cast<uint32_t>(tiling->blocks));
  return ge::GRAPH_SUCCESS;
}

}  // namespace

ge::graphStatus tile_forward(gert::TilingContext* context) {
  return tile(context, {kForwardSpans, kForwardReach, true,
                        [](int32_t head_dim) { return fwd_workspace(head_dim).bytes; }});
}

ge::graphStatus tile_backward(gert::TilingContext* context) {
  return tile(context, {kBackwardSpans, kBackwardReach, false,
                        [](int32_t head_dim) { return grad_workspace(head_dim).bytes; }});
}

}  // namespace ascend
}  // namespace alibi
