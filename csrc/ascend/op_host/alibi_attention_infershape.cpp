// Output shapes and types of the two ops.
#include "alibi_attention_ops.h"

namespace alibi {
namespace ascend {
namespace {

// [B, Hq, Sq] of a query tensor in either layout.
ge::graphStatus row_shape(const gert::Shape& query, bool sequence_first, gert::Shape* rows) {
  if (query.GetDimNum() != 4) return ge::GRAPH_FAILED;
  rows->SetDimNum(3);
  rows->SetDim(0, query.GetDim(0));
  rows->SetDim(1, query.GetDim(sequence_first ? 2 : 1));
  rows->SetDim(2, query.GetDim(sequence_first ? 1 : 2));
  return ge::GRAPH_SUCCESS;
}

// Outputs 0 .. copies-1 are shaped like the inputs of the same index, output `copies` has one float
// per query row.
ge::graphStatus infer_shapes(gert::InferShapeContext* context, int copies) {
  for (int i = 0; i < copies; ++i) {
    const gert::Shape* input = context->GetInputShape(kQuery + i);
    gert::Shape* output = context->GetOutputShape(i);
    if (input == nullptr || output == nullptr) return ge::GRAPH_FAILED;
    *output = *input;
  }
  const gert::RuntimeAttrs* attributes = context->GetAttrs();
  gert::Shape* rows = context->GetOutputShape(copies);
  if (attributes == nullptr || rows == nullptr) return ge::GRAPH_FAILED;
  const bool* sequence_first = attributes->GetAttrPointer<bool>(kSequenceFirst);
  if (sequence_first == nullptr) return ge::GRAPH_FAILED;
  return row_shape(*context->GetInputShape(kQuery), *sequence_first, rows);
}

ge::graphStatus infer_types(gert::InferDataTypeContext* context, int copies) {
  for (int i = 0; i < copies; ++i) context->SetOutputDataType(i, context->GetInputDataType(kQuery));
  context->SetOutputDataType(copies, ge::DT_FLOAT);
  return ge::GRAPH_SUCCESS;
}

constexpr int kForwardCopies = 1;   // out
constexpr int kBackwardCopies = 3;  // dq, dk, dv

}  // namespace

ge::graphStatus infer_forward_shapes(gert::InferShapeContext* context) {
  return infer_shapes(context, kForwardCopies);
}
ge::graphStatus infer_forward_types(gert::InferDataTypeContext* context) {
  return infer_types(context, kForwardCopies);
}
ge::graphStatus infer_backward_shapes(gert::InferShapeContext* context) {
  return infer_shapes(context, kBackwardCopies);
}
ge::graphStatus infer_backward_types(gert::InferDataTypeContext* context) {
  return infer_types(context, kBackwardCopies);
}

}  // namespace ascend
}  // namespace alibi
